"""Going back to a generation: what a lookup shows, what moves, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from almanac.clock import utc_now
from almanac.errors import BlockError, Superseded, UsageError
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline
from almanac.stack.servers import running_redis
from serving_cache import layout
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.rollback import roll_back
from serving_cache.sync import sync_redis
from tests.generations import (
    grid_pipeline,
    migrated,
    overlay_of,
    published_generation,
    staged_generation,
    staged_parts,
    start_of,
)
from tests.lookups import declared, environment, eventually, running_lookup, unused_port

CELL = 9
NOWHERE = "redis://127.0.0.1:1/0"
"""A Redis that is away."""


@pytest.fixture
def pipeline(store: PostgresStore, postgres_url: str) -> Pipeline:
    """Two generations, the second one by another model, which has an overlay too."""
    found = migrated(postgres_url, grid_pipeline())
    now = utc_now() - timedelta(minutes=10)
    for number in (1, 2):
        start = start_of(found, f"run {number}", now, model=f"weather-v{number}")
        attempt = store.begin_generation(found, start, now=now)
        store.stage(attempt, staged_parts(found, 280.0 + number, now))
        store.publish(attempt, found, now=now)
    store.put_overlays(found.name, [overlay_of(str(CELL), utc_now(), 1, model="weather-v2", values={"t2m_6h": 299.0})])
    return found


def predictions(people: psycopg.Connection, pipeline: Pipeline) -> list[Any]:
    """Every row and overlay, and where it lies: one that was written again lies elsewhere."""
    table = sql.Identifier(layout.table_name(pipeline.name))
    rows = people.execute(sql.SQL("SELECT tableoid, ctid, xmin, t.* FROM {} t ORDER BY 1, 2").format(table)).fetchall()
    overlays = people.execute("SELECT ctid, xmin, o.* FROM overlay o WHERE pipeline = %s", (pipeline.name,)).fetchall()
    assert (len(rows), len(overlays)) == (128, 1)
    return [*rows, *overlays]


@pytest.fixture(params=["redis", "postgres"])
def place(request: pytest.FixtureRequest) -> str:
    """From where lookups are answered: with Redis, or with Redis away."""
    return str(request.param)


@pytest.fixture
def redis_of_its_own(place: str, tmp_path: Path) -> Iterator[str]:
    if place == "postgres":
        yield f"redis://127.0.0.1:{unused_port()}/0"
        return
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as url:
        yield url


def test_the_next_lookup_answers_from_the_generation_gone_back_to_and_no_prediction_moves(
    pipeline: Pipeline, store: PostgresStore, people: psycopg.Connection, postgres_url: str, tmp_path: Path,
    place: str, redis_of_its_own: str,
) -> None:  # fmt: skip
    file = declared(tmp_path, f'grid = grid_pipeline("{pipeline.name}")')
    path = f"/v1/{pipeline.name}/entities/{CELL}"
    with ExitStack() as stack:
        cache = stack.enter_context(RedisStore(redis_of_its_own))
        if place == "redis":
            sync_redis(pipeline, store, cache)
            blocks = cache.blocks(pipeline.name, hashes(store, pipeline, 1, 2))
            assert len(blocks) == 32
        settings = environment(tmp_path, file, postgres=postgres_url, redis=redis_of_its_own)
        client = stack.enter_context(running_lookup(settings, tmp_path / "lookup.log"))
        found: Any = eventually(client, path, place)
        assert (found["source"], found["model"], found["outputs"]["t2m_6h"]["value"]) == ("stream", "weather-v2", 299.0)
        before = predictions(people, pipeline)
        for to, expected in (
            (1, (1, "batch", "weather-v1", 281.0)),  # the overlay of the model that was left is gone with it
            (2, (2, "stream", "weather-v2", 299.0)),  # and forward again
        ):
            outcome, trouble = roll_back(pipeline, store, cache, to)
            assert bool(trouble) == (place == "postgres")
            found = eventually(client, path, place)
            assert (
                found["generation"],
                found["source"],
                found["model"],
                found["outputs"]["t2m_6h"]["value"],
            ) == expected
            assert found["epoch"] == outcome.epoch
        assert predictions(people, pipeline) == before
        if place == "redis":
            assert cache.blocks(pipeline.name, hashes(store, pipeline, 1, 2)) == blocks


def hashes(store: PostgresStore, pipeline: Pipeline, *generations: int) -> list[str]:
    return [entry.block_hash for number in generations for entry in store.manifest(pipeline.name, number).values()]


@pytest.mark.parametrize(
    ("damage", "match", "away"),
    [
        ("UPDATE {} SET t2m_6h = 2.0000002 WHERE cell_id = 9", "not those that were published", True),
        ("DELETE FROM {} WHERE cell_id = 9", "not those that were published", True),
        ("UPDATE {} SET partition = (partition + 1) %% 16", "not those that were published", True),
        ("DROP TABLE {}", "was dropped by retention", True),
        ("UPDATE {} SET t2m_6h = 2.0000002 WHERE cell_id = 9", "not those that were published", False),
    ],
)
def test_rows_that_are_not_what_was_published_are_not_gone_back_to(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore, people: psycopg.Connection,
    damage: str, match: str, away: bool,
) -> None:  # fmt: skip
    before = store.pointer(pipeline.name)
    name = sql.Identifier(layout.child_name(pipeline.name, 1))
    people.execute(sql.SQL(damage.replace("%%", "%")).format(name))
    with RedisStore(NOWHERE) as gone, pytest.raises(BlockError, match=match):
        roll_back(pipeline, store, gone if away else cache, 1)  # nothing was brought to Redis yet
    assert store.pointer(pipeline.name) == before


def test_a_generation_with_another_partitioning_is_not_gone_back_to(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore
) -> None:
    before = store.pointer(pipeline.name)
    changed = grid_pipeline(pipeline.name, partitions=Grid(rows=8, cols=8, tile=4))
    with pytest.raises(UsageError, match=r"generation 1 .* readers could not use it; put the declaration back first"):
        roll_back(changed, store, cache, 1)
    assert store.pointer(pipeline.name) == before


def test_an_attempt_that_lost_its_token_publishes_nothing_after_a_rollback_either(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore
) -> None:
    late = staged_generation(store, pipeline, 3.0, utc_now())
    store.take_over(pipeline.name, late.generation)
    roll_back(pipeline, store, cache, 1)
    store.clear_rollback(pipeline.name)
    before = store.pointer(pipeline.name)
    with pytest.raises(Superseded, match="taken over"):
        store.publish(late, pipeline, now=utc_now())
    assert store.pointer(pipeline.name) == before
    assert published_generation(store, pipeline, 4.0, utc_now()).state == "current"
