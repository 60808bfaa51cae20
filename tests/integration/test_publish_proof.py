"""What keeps a generation from becoming current: damaged rows, a jump, a hook, another partitioning, another model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import psycopg
import pytest

from almanac import failpoints
from almanac.blocks import Block
from almanac.clock import HOUR
from almanac.end_manifest import EndManifest
from almanac.errors import BlockError, GateError, Superseded, UsageError
from almanac.partitioning import Grid
from almanac.pipeline import Jump, Pipeline
from serving_cache.layout import child_name
from serving_cache.postgres import PostgresStore
from serving_cache.records import StagedPartition
from serving_cache.redis import RedisStore
from serving_cache.rollback import roll_back
from serving_cache.sync import sync_redis
from tests.generations import (
    NOON,
    grid_pipeline,
    migrated,
    overlay_of,
    published_generation,
    staged_generation,
    staged_parts,
    start_of,
)

COPIED = (
    "UPDATE generation_partitions a SET block_hash = b.block_hash FROM generation_partitions b "
    "WHERE a.pipeline = %s AND b.pipeline = a.pipeline AND a.generation = 1 AND b.generation = 1 "
)


def published(store: PostgresStore, postgres_url: str, **changes: Any) -> Pipeline:
    """A pipeline with one generation."""
    pipeline = migrated(postgres_url, grid_pipeline(**changes))
    published_generation(store, pipeline, 1.0)
    return pipeline


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("UPDATE {} SET t2m_6h = 2.0000002 WHERE cell_id = 9", "not those that were published"),
        ("DELETE FROM {} WHERE cell_id = 9", "63 rows, its run staged 64"),
        ("INSERT INTO {} SELECT generation, partition, 999, t2m_1h, t2m_6h FROM {} WHERE cell_id = 9", "65 rows"),
        ("UPDATE {} SET partition = (partition + 1) %% 16", "not those that were published"),
        ("UPDATE {} SET t2m_1h = t2m_6h, t2m_6h = t2m_1h + 1 WHERE partition = 3", "partition 3"),
    ],
)
def test_rows_that_are_not_what_was_staged_are_never_current(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str, damage: str, match: str
) -> None:
    pipeline = published(store, postgres_url)
    before = store.pointer(pipeline.name)
    attempt = staged_generation(store, pipeline, 2.0)
    name = child_name(pipeline.name, attempt.generation)
    people.execute(damage.replace("%%", "%").replace("{}", name))
    for _ in range(2):
        with pytest.raises(BlockError, match=match):
            store.publish(attempt, pipeline, now=NOON)
    assert store.pointer(pipeline.name) == before
    record = store.generation(pipeline.name, attempt.generation)
    assert record is not None
    assert record.state == "staged"


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM generation_partitions WHERE pipeline = %s AND generation = 1 AND partition = 3",
        "UPDATE generation_partitions SET block_hash = 'x' WHERE pipeline = %s AND generation = 1 AND partition = 3",
        "UPDATE generation_partitions SET partition = 99 WHERE pipeline = %s AND generation = 1 AND partition = 3",
        COPIED + "AND a.partition = 3 AND b.partition = 4",
        COPIED + "AND a.partition = 7 - b.partition",
    ],
)
def test_a_manifest_that_does_not_match_its_blocks_is_not_gone_back_to(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str, damage: str
) -> None:
    pipeline = published(store, postgres_url)
    published_generation(store, pipeline, 2.0)
    before = store.pointer(pipeline.name)
    people.execute(damage, (pipeline.name,))
    with pytest.raises(BlockError, match="do not match its end manifest of 16"):
        store.rollback(pipeline.name, now=NOON)
    assert store.pointer(pipeline.name) == before


def test_an_attempt_that_was_taken_over_hears_that_though_its_rows_are_gone(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = published(store, postgres_url)
    attempt = staged_generation(store, pipeline, 2.0)

    def outlived(name: str) -> None:
        if name == "publish.indexed":
            failpoints.arm(None)
            with PostgresStore(postgres_url) as other:
                other.reject(other.take_over(pipeline.name, attempt.generation), "its run was given up")

    failpoints.arm(outlived)
    try:
        with pytest.raises(Superseded, match="taken over"):
            store.publish(attempt, pipeline, now=NOON)
    finally:
        failpoints.arm(None)
    gone = people.execute("SELECT to_regclass(%s)", (child_name(pipeline.name, attempt.generation),)).fetchone()
    assert gone == (None,)


def test_the_end_manifest_sums_up_what_was_published(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = published(store, postgres_url)
    attempt = store.begin_generation(pipeline, start_of(pipeline, "second"), now=NOON)
    store.stage(attempt, staged_parts(pipeline, 3.0, partitions=range(12)))
    store.publish(attempt, pipeline, now=NOON)
    ((text,),) = people.execute(
        "SELECT manifest::text FROM generations WHERE pipeline = %s AND generation = 2", (pipeline.name,)
    ).fetchall()
    found = msgspec.json.decode(text, type=EndManifest)
    assert (found.partitions, found.rows, found.model, found.features) == (16, 64, "weather-v1", "weather_v1")
    assert (found.as_of, found.model_hash, len(found.blocks)) == (NOON, "0" * 64, 64)
    output = found.outputs["t2m_6h"]
    assert (output.minimum, output.maximum, output.mean, output.null_share) == (1.0, 3.0, 2.5, 0.0)


def spread_parts(pipeline: Pipeline, offset: float) -> list[StagedPartition]:
    """Partitions whose values range over ten degrees."""
    found = []
    for part in staged_parts(pipeline, 0.0):
        values = (offset + np.linspace(0, 10, part.block.rows)).astype(np.float32)
        found.append(replace(part, block=Block(part.block.keys, dict.fromkeys(part.block.columns, values))))
    return found


@pytest.mark.parametrize("refuse", [False, True])
def test_a_jump_is_an_alert_or_refused(store: PostgresStore, postgres_url: str, refuse: bool) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(jump=Jump(refuse=refuse)))
    for value, offset in enumerate((270.0, 271.0)):
        attempt = store.begin_generation(pipeline, start_of(pipeline, f"run {value}"), now=NOON)
        store.stage(attempt, spread_parts(pipeline, offset))
        assert store.publish(attempt, pipeline, now=NOON).alert == ""
    before = store.pointer(pipeline.name)
    attempt = store.begin_generation(pipeline, start_of(pipeline, "run 2"), now=NOON)
    store.stage(attempt, spread_parts(pipeline, 280.0))
    if refuse:
        with pytest.raises(GateError, match=r"differs too much.*the mean of t2m_1h is 285, it was 276"):
            store.publish(attempt, pipeline, now=NOON)
        assert store.pointer(pipeline.name) == before
        assert store.manifest(pipeline.name, 3) == {}
        past = store.begin_generation(pipeline, start_of(pipeline, "past", NOON - HOUR), now=NOON)
        store.stage(past, spread_parts(pipeline, 280.0))
        archived = store.publish(past, pipeline, now=NOON)  # what is not to be current may be as it likes
        assert (archived.state, archived.alert) == ("archived", "")
    else:
        assert "the mean of t2m_1h is 285, it was 276" in store.publish(attempt, pipeline, now=NOON).alert
        assert store.generation(pipeline.name, 3).alert  # type: ignore[union-attr]


def test_a_declared_hook_may_say_no(store: PostgresStore, postgres_url: str) -> None:
    def asked(manifest: EndManifest, before: EndManifest | None) -> str | None:
        return None if before is None else f"{manifest.rows} rows after {before.rows}, I do not like it"

    pipeline = published(store, postgres_url, may_publish=asked)
    before = store.pointer(pipeline.name)
    with pytest.raises(GateError, match="64 rows after 64, I do not like it"):
        published_generation(store, pipeline, 2.0)
    assert store.pointer(pipeline.name) == before


def test_a_partitioning_that_changed_between_plan_and_publish_is_refused(
    store: PostgresStore, postgres_url: str
) -> None:
    pipeline = published(store, postgres_url)
    attempt = staged_generation(store, pipeline, 2.0)
    changed = grid_pipeline(pipeline.name, partitions=Grid(rows=8, cols=8, tile=2, north=57.0))
    with pytest.raises(UsageError, match=r"planned for Grid.*start a new run"):
        store.publish(attempt, changed, now=NOON)
    store.need_same_partitioning(pipeline)
    for refused in (lambda: published_generation(store, changed, 3.0), lambda: store.need_same_partitioning(changed)):
        with pytest.raises(UsageError, match="put the declaration back"):
            refused()


def test_redis_heals_a_damaged_block_before_its_pointer_moves(
    store: PostgresStore, postgres_url: str, redis_url: str
) -> None:
    pipeline = published(store, postgres_url)
    with RedisStore(redis_url) as cache:
        sync_redis(pipeline, store, cache)
        published_generation(store, pipeline, 2.0)
        manifest = store.manifest(pipeline.name, 2)
        whole = store.blocks(pipeline, 2, range(16))
        flipped = {digest: data[:-1] + bytes([data[-1] ^ 1]) for digest, data in whole.items()}
        cache.put_blocks(pipeline.name, flipped)  # as a scorer's write that the server damaged
        assert sync_redis(pipeline, store, cache)
        assert cache.blocks(pipeline.name, [e.block_hash for e in manifest.values()]) == whole


def test_redis_keeps_its_pointer_when_it_does_not_give_back_what_was_written(
    store: PostgresStore, postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = published(store, postgres_url)
    with RedisStore(redis_url) as cache:
        sync_redis(pipeline, store, cache)
        before = cache.pointer(pipeline.name)
        published_generation(store, pipeline, 2.0)
        write = RedisStore.put_blocks
        monkeypatch.setattr(RedisStore, "put_blocks", lambda self, name, blocks: write(
            self, name, {digest: data[:-1] + bytes([data[-1] ^ 1]) for digest, data in blocks.items()}
        ))  # fmt: skip
        with pytest.raises(BlockError, match=f"almanac rebuild {pipeline.name}"):
            sync_redis(pipeline, store, cache)
        assert cache.pointer(pipeline.name) == before


def test_rolling_back_is_in_redis_at_once_and_takes_the_overlays_of_its_model_along(
    store: PostgresStore, postgres_url: str, redis_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    with RedisStore(redis_url) as cache:
        for value in range(3):
            published_generation(store, pipeline, float(value), NOON + value * HOUR)
            sync_redis(pipeline, store, cache)
        store.put_overlays(pipeline.name, [overlay_of("1", NOON, 1)])
        before = store.blocks(pipeline, 1, range(16))
        outcome, trouble = roll_back(pipeline, store, cache, 1)
        pointer = cache.pointer(pipeline.name)
        assert (outcome.generation, outcome.epoch, trouble) == (1, 4, "")
        assert pointer is not None
        assert pointer == store.pointer(pipeline.name)
        assert pointer.previous is None
        assert store.blocks(pipeline, 1, range(16)) == before
        assert len(cache.blocks(pipeline.name, [e.block_hash for e in store.manifest(pipeline.name, 1).values()])) == 16
        outcome, _ = roll_back(pipeline, store, cache, 3)  # and forward again
        assert (outcome.generation, outcome.epoch) == (3, 5)
        assert store.held(pipeline.name) is None


def test_a_rollback_works_while_redis_is_away(store: PostgresStore, postgres_url: str) -> None:
    pipeline = published(store, postgres_url)
    published_generation(store, pipeline, 2.0)
    with RedisStore("redis://127.0.0.1:1/0") as cache:
        outcome, trouble = roll_back(pipeline, store, cache)
    assert outcome.generation == 1
    assert "did not answer" in trouble


@pytest.mark.parametrize(("to", "match"), [(9, "no generation 9"), (2, "current already"), (3, "is staged")])
def test_an_impossible_rollback_changes_nothing(
    store: PostgresStore, postgres_url: str, redis_url: str, to: int, match: str
) -> None:
    pipeline = published(store, postgres_url)
    published_generation(store, pipeline, 2.0)
    staged_generation(store, pipeline, 3.0)
    before = store.pointer(pipeline.name)
    with RedisStore(redis_url) as cache, pytest.raises(UsageError, match=match):
        roll_back(pipeline, store, cache, to)
    assert store.pointer(pipeline.name) == before


def test_a_retired_generation_is_not_gone_back_to(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(generations_kept=1))
    for value in range(3):
        published_generation(store, pipeline, float(value))
    assert store.retire(pipeline, now=NOON + HOUR) == [1]
    with pytest.raises(UsageError, match=r"generation 1 of .* is retired"):
        store.rollback(pipeline.name, 1, now=NOON)


def test_every_move_is_told_to_whoever_listens_and_kept(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    people.execute("LISTEN almanac_pointer")
    pipeline = published(store, postgres_url)
    published_generation(store, pipeline, 2.0)
    store.rollback(pipeline.name, now=NOON)
    told = [notice.payload for notice in people.notifies(timeout=30, stop_after=3)]
    assert told == [pipeline.name] * 3
    moves = people.execute(
        "SELECT epoch, kind, generation, previous FROM pointer_moves WHERE pipeline = %s ORDER BY epoch",
        (pipeline.name,),
    ).fetchall()
    assert moves == [(1, "publish", 1, None), (2, "publish", 2, 1), (3, "rollback", 1, None)]
