"""The lookup goes on answering while its places are stopped, frozen, emptied or damaged, and says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import psycopg
import pytest
import redis
from psycopg import sql

from almanac.clock import utc_now
from almanac.pipeline import Pipeline
from almanac.stack.servers import running_redis
from serving_cache import layout
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import grid_pipeline, migrated, new_name, overlay_of, published_generation
from tests.lookups import declared, environment, eventually, running_lookup, unused_port

CELL = 17


@dataclass(frozen=True)
class Drill:
    """A service whose Redis is its own, to be harmed."""

    client: httpx.Client
    grid: Pipeline
    postgres: PostgresStore
    redis_url: str

    @property
    def path(self) -> str:
        return f"/v1/{self.grid.name}/entities/{CELL}"

    def raw(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url)

    def sync(self) -> None:
        with RedisStore(self.redis_url) as store:
            sync_redis(self.grid, self.postgres, store)


@pytest.fixture
def drill(postgres_url: str, tmp_path: Path) -> Iterator[Drill]:
    """Two generations in Postgres and Redis."""
    (tmp_path / "redis").mkdir()
    with drilled(postgres_url, tmp_path) as found:
        yield found


@contextmanager
def drilled(postgres_url: str, folder: Path, **variables: str) -> Iterator[Drill]:
    grid = migrated(postgres_url, grid_pipeline(new_name()))
    with ExitStack() as stack:
        redis_url = stack.enter_context(running_redis(folder / "redis"))
        postgres = stack.enter_context(PostgresStore(postgres_url))
        cache = stack.enter_context(RedisStore(redis_url))
        for value, age in ((280.0, 80), (281.5, 20)):
            published_generation(postgres, grid, value, utc_now() - timedelta(minutes=age))
        sync_redis(grid, postgres, cache)
        file = declared(folder, f'grid = grid_pipeline("{grid.name}")')
        settings = environment(folder, file, **{"postgres": postgres_url, "redis": redis_url, **variables})
        client = stack.enter_context(running_lookup(settings, folder / "lookup.log"))
        yield Drill(client, grid, postgres, redis_url)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does not run for a while, as under a hung disk."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_frozen_redis_costs_few_requests_their_time(drill: Drill) -> None:
    eventually(drill.client, drill.path, "redis")
    with drill.raw() as raw:
        pid = raw.info("server")["process_id"]
    with frozen(pid):
        answers = [drill.client.get(drill.path).json() for _ in range(10)]
        assert {answer["place"] for answer in answers} == {"postgres"}
        assert {answer["reason"] for answer in answers} <= {
            "redis did not answer within 100 ms",
            "redis cannot be reached",
        }
        assert answers[0]["outputs"]["t2m_6h"]["value"] == 281.5
        ready = drill.client.get("/readyz")
        assert (ready.status_code, ready.json()["places"]["postgres"]) == (200, "ok")
        assert ready.json()["places"]["redis"] != "ok"
    back = eventually(drill.client, drill.path, "redis")
    assert back["reason"] is None


def test_a_stopped_redis_is_answered_for_by_postgres(postgres_url: str, tmp_path: Path) -> None:
    with drilled(postgres_url, tmp_path, redis=f"redis://127.0.0.1:{unused_port()}") as drill:
        found = drill.client.get(drill.path).json()
        assert (found["place"], found["reason"]) == ("postgres", "redis cannot be reached")
        assert found["outputs"]["t2m_6h"]["value"] == 281.5


def test_a_stopped_postgres_is_not_missed_while_redis_is_whole(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir(exist_ok=True)
    dead = f"postgresql://almanac:none@127.0.0.1:{unused_port()}/almanac"
    with drilled(postgres_url, tmp_path, postgres=dead) as drill:
        found = eventually(drill.client, drill.path, "redis")
        assert (found["reason"], found["verdict"]) == (None, "fresh")
        refused = drill.client.get(f"{drill.path}?max_stale=60")
        assert refused.status_code == 503
        assert "older than max_stale" in refused.json()["detail"]
        with drill.raw() as raw:
            generation = drill.postgres.pointer(drill.grid.name)
            assert generation is not None
            raw.delete(layout.manifest_key(drill.grid.name, generation.generation.generation))
        old = drill.client.get(drill.path).json()
        assert (old["rung"], old["place"], old["outputs"]["t2m_6h"]["value"]) == (3, "redis", 280.0)
        assert "redis has no manifest of generation 2" in old["reason"]
        assert "postgres" in old["reason"]


def test_a_good_answer_says_nothing_of_a_place_that_it_did_not_need(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir(exist_ok=True)
    dead = f"postgresql://almanac:none@127.0.0.1:{unused_port()}/almanac"
    with drilled(postgres_url, tmp_path, postgres=dead) as drill:
        eventually(drill.client, drill.path, "redis")
        name = drill.grid.name
        with drill.raw() as raw:  # the blocks of one tile go
            for generation in (1, 2):
                entry = raw.hget(layout.manifest_key(name, generation), "4")
                raw.delete(layout.block_key(name, layout.decode_manifest_entry(entry).block_hash))
        body = {"entities": list(range(64))}
        found = drill.client.post(f"/v1/{name}/entities:lookup", json=body).json()
        lost = set(drill.grid.partitions.entities(4))  # type: ignore[union-attr]
        assert {each["entity"] for each in found["refusals"]} == lost
        for refusal in found["refusals"]:
            assert "redis misses a block of generation 2" in refusal["detail"]
            assert "postgres cannot be reached" in refusal["detail"]
        assert len(found["answers"]) == 64 - len(lost)
        assert {each["reason"] for each in found["answers"]} == {None}


def test_with_both_stopped_there_is_a_503_that_says_so(postgres_url: str, tmp_path: Path) -> None:
    dead = f"postgresql://almanac:none@127.0.0.1:{unused_port()}/almanac"
    gone = f"redis://127.0.0.1:{unused_port()}"
    with drilled(postgres_url, tmp_path, postgres=dead, redis=gone) as drill:
        for _ in range(6):  # the circuit breaker opens on the way
            refused = drill.client.get(drill.path)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "redis cannot be reached" in refused.json()["detail"]
            assert "postgres" in refused.json()["detail"]
        assert drill.client.get("/livez").status_code == 200
        ready = drill.client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        described = drill.client.get(f"/v1/pipelines/{drill.grid.name}").json()
        assert (described["current"], described["name"]) == (None, drill.grid.name)


def test_a_damaged_redis_is_not_believed(drill: Drill) -> None:
    name = drill.grid.name
    eventually(drill.client, drill.path, "redis")
    with drill.raw() as raw:
        pointer = layout.decode_pointer(raw.get(layout.pointer_key(name)))
        entry = raw.hget(layout.manifest_key(name, pointer.generation.generation), "4")
        cell_of_tile_4 = next(iter(drill.grid.partitions.entities(4)))  # type: ignore[union-attr]
        path = f"/v1/{name}/entities/{cell_of_tile_4}"
        block = layout.block_key(name, layout.decode_manifest_entry(entry).block_hash)
        whole = raw.get(block)
        for damage, reason in (
            (lambda: raw.delete(block), "redis misses a block of generation 2"),
            (lambda: raw.set(block, whole[:-9] + b"\0" + whole[-8:]), "redis holds something unreadable"),
            (lambda: raw.set(block, b""), "redis holds something unreadable"),
            (lambda: (raw.delete(block), raw.lpush(block, "x")), "redis misses a block of generation 2"),
            (lambda: raw.set(layout.pointer_key(name), b"{}"), "redis holds something unreadable"),
            (
                lambda: (raw.delete(layout.pointer_key(name)), raw.lpush(layout.pointer_key(name), "x")),
                "redis answered",
            ),
            (lambda: raw.flushall(), f"redis holds nothing of {name}"),
        ):
            damage()
            found = drill.client.get(path).json()
            assert found["place"] == "postgres"
            assert reason in found["reason"]
            assert found["outputs"]["t2m_6h"]["value"] == 281.5
    drill.sync()
    assert eventually(drill.client, path, "redis")["reason"] is None


def test_a_redis_that_fell_behind_is_not_believed(drill: Drill) -> None:
    name = drill.grid.name
    with drill.raw() as raw:
        old = raw.get(layout.pointer_key(name))
        published_generation(drill.postgres, drill.grid, 282.5, utc_now())
        drill.sync()
        assert eventually(drill.client, drill.path, "redis")["epoch"] == 3
        raw.set(layout.pointer_key(name), old)
    found = drill.client.get(drill.path).json()
    assert (found["place"], found["epoch"], found["outputs"]["t2m_6h"]["value"]) == ("postgres", 3, 282.5)
    assert found["reason"] == "redis is behind: it has epoch 2, epoch 3 was seen"


def test_a_rollback_takes_its_predictions_back(drill: Drill) -> None:
    drill.postgres.rollback(drill.grid.name, now=utc_now())
    drill.sync()
    found = eventually(drill.client, drill.path, "redis")
    assert (found["epoch"], found["generation"], found["outputs"]["t2m_6h"]["value"]) == (3, 1, 280.0)  # type: ignore[index]


def test_rows_dropped_under_a_reader_are_read_again_or_refused_plainly(drill: Drill, postgres_url: str) -> None:
    with drill.raw() as raw:
        raw.flushall()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE predictions_{drill.grid.name}_g2")
    refused = drill.client.get(drill.path)
    assert refused.status_code == 503
    assert "postgres lacks a table" in refused.json()["detail"]


def test_readers_see_one_generation_while_publishing_goes_on(drill: Drill) -> None:
    body = {"entities": list(range(64))}
    for value in (283.0, 284.0, 285.0):
        published_generation(drill.postgres, drill.grid, value, utc_now())
        if value != 284.0:  # that one is in Postgres alone
            drill.sync()
        for _ in range(5):
            found = drill.client.post(f"/v1/{drill.grid.name}/entities:lookup", json=body).json()
            assert len(found["answers"]) == 64
            assert len({(a["epoch"], a["generation"], a["outputs"]["t2m_6h"]["value"]) for a in found["answers"]}) == 1


def test_a_lowered_fresh_for_makes_answers_stale_with_their_true_age(postgres_url: str, tmp_path: Path) -> None:
    with drilled(postgres_url, tmp_path, ALMANAC_FRESH_FOR_SECONDS="60") as drill:
        found = drill.client.get(drill.path).json()
        assert found["verdict"] == "stale"
        assert 1200 <= found["age_seconds"] < 1300
        assert "the current generation (2) is 20 min old, fresh for 60 s, and nothing newer is known" in found["reason"]
        with RedisStore(drill.redis_url) as store:
            store.put_overlays(drill.grid.name, [overlay_of(str(CELL), utc_now(), 1)])
        assert eventually(drill.client, drill.path, "redis")["verdict"] == "fresh"


def backends(admin: psycopg.Connection[tuple[int]]) -> list[int]:
    """Postgres's processes that serve lookups."""
    return [
        pid for (pid,) in admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'almanac lookup'")
    ]


def test_a_postgres_that_went_and_came_back_is_read_again(drill: Drill, postgres_url: str) -> None:
    with drill.raw() as raw:
        raw.flushall()
    eventually(drill.client, drill.path, "postgres")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        database = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 0").format(database))
        try:
            for pid in backends(admin):
                admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
            refused = drill.client.get(drill.path)
            assert refused.status_code == 503
            assert "postgres cannot be reached" in refused.json()["detail"]
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(database))
    assert eventually(drill.client, drill.path, "postgres")["epoch"] == 2


def test_a_frozen_postgres_holds_nobody_up_for_ever(drill: Drill, postgres_url: str) -> None:
    with drill.raw() as raw:
        raw.flushall()
    eventually(drill.client, drill.path, "postgres")
    with psycopg.connect(postgres_url, autocommit=True) as admin, ExitStack() as stack:
        for pid in backends(admin):
            stack.enter_context(frozen(pid))
        refused = drill.client.get(drill.path)
        if refused.status_code != 200:  # another connection was opened meanwhile
            assert refused.status_code == 503
            assert "postgres did not answer within 1000 ms" in refused.json()["detail"]
        assert drill.client.get("/livez").status_code == 200
    assert eventually(drill.client, drill.path, "postgres")["epoch"] == 2
