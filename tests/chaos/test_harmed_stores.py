"""Stores that are full, read-only, crowded or hold nonsense: lookups stay honest, writers say what to do and go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import psycopg
import pytest
from psycopg import sql

from almanac.clock import utc_now
from almanac.errors import Unavailable
from almanac.pipeline import Pipeline
from serving_cache import layout
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import rebuild_redis, sync_redis
from tests.generations import NOON, grid_pipeline, migrated, overlay_of, published_generation, staged_generation
from tests.integration.test_lookup_failures import CELL, Drill, drilled
from tests.lookups import cells_of, eventually

BALLAST_BYTES = 1_000_000


@pytest.fixture
def drill(postgres_url: str, tmp_path: Path) -> Iterator[Drill]:
    (tmp_path / "redis").mkdir()
    with drilled(postgres_url, tmp_path) as found:
        yield found


def test_nonsense_under_any_key_of_redis_is_answered_for_by_postgres_and_rebuilt(drill: Drill) -> None:
    name = drill.grid.name
    overlay = layout.overlay_key(name, str(CELL))
    manifest = layout.manifest_key(name, 2)
    with drill.raw() as raw, RedisStore(drill.redis_url) as cache:
        for damage in (
            lambda: raw.hset(manifest, mapping=dict.fromkeys(raw.hkeys(manifest), b"\x00\xff")),
            lambda: (raw.delete(manifest), raw.set(manifest, "no hash")),
            lambda: raw.hset(overlay, "weather-v1", b"\xff not json"),
            lambda: (raw.delete(overlay), raw.set(overlay, "no hash")),
            lambda: raw.set(layout.pointer_key(name), b"\xff\xfe"),
        ):
            assert eventually(drill.client, drill.path, "redis")["reason"] is None
            damage()
            found = drill.client.get(drill.path).json()
            assert (found["place"], found["outputs"]["t2m_6h"]["value"]) == ("postgres", 281.5)
            assert "redis" in found["reason"]
            assert "Traceback" not in found["reason"]
            rebuild_redis(drill.grid, drill.postgres, cache)


class Failing(PostgresStore):
    """Goes away once it has given some blocks."""

    left = 1

    def blocks(self, pipeline: Pipeline, generation: int, partitions: Sequence[int]) -> dict[str, bytes]:
        self.left -= 1
        if self.left < 0:
            raise Unavailable("Postgres went away")
        return super().blocks(pipeline, generation, partitions)


def test_readers_do_not_notice_a_rebuild_and_lose_nothing_by_one_that_is_cut_short(
    drill: Drill, postgres_url: str
) -> None:
    path, everything = f"/v1/{drill.grid.name}/entities:lookup", {"entities": cells_of(drill.grid)}
    eventually(drill.client, drill.path, "redis")
    told, found = Event(), []

    def read() -> None:
        while not told.is_set():
            one = drill.client.get(drill.path).json()
            many = drill.client.post(path, json=everything).json()
            found.append([answer["outputs"]["t2m_6h"]["value"] for answer in (one, *many["answers"])])

    with ThreadPoolExecutor(1) as pool, RedisStore(drill.redis_url) as cache:
        reading = pool.submit(read)
        for _ in range(10):
            assert rebuild_redis(drill.grid, drill.postgres, cache)
        told.set()
        reading.result()
        assert found
        assert all(values == [281.5] * 65 for values in found)
        eventually(drill.client, drill.path, "redis")
        with Failing(postgres_url) as gone, pytest.raises(Unavailable, match="went away"):
            rebuild_redis(drill.grid, gone, cache)
        after = drill.client.get(drill.path).json()
        assert (after["place"], after["reason"]) == ("redis", None)


def test_a_full_redis_is_read_as_before_and_follows_when_there_is_room(drill: Drill) -> None:
    name = drill.grid.name
    eventually(drill.client, drill.path, "redis")
    with drill.raw() as raw, RedisStore(drill.redis_url) as cache:
        raw.set("ballast", b"x" * BALLAST_BYTES)
        raw.config_set("maxmemory", BALLAST_BYTES)  # less than it holds already: it refuses to grow
        published_generation(drill.postgres, drill.grid, 283.0, utc_now())
        with pytest.raises(Unavailable, match="maxmemory"):
            sync_redis(drill.grid, drill.postgres, cache)
        with pytest.raises(Unavailable, match="maxmemory"):
            cache.put_overlays(name, [overlay_of(str(CELL), utc_now(), 1)])
        old = drill.client.get(drill.path).json()
        assert (old["place"], old["epoch"], old["outputs"]["t2m_6h"]["value"]) == ("redis", 2, 281.5)
        raw.delete("ballast")
        raw.config_set("maxmemory", 0)
        sync_redis(drill.grid, drill.postgres, cache)
        assert drill.client.get(drill.path).json()["epoch"] == 3


def test_a_read_only_postgres_publishes_nothing_and_is_tried_again(postgres_url: str) -> None:
    grid = migrated(postgres_url, grid_pipeline())
    with PostgresStore(postgres_url) as store, psycopg.connect(postgres_url, autocommit=True) as admin:
        attempt = staged_generation(store, grid, 281.0)
        database = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(database))
        try:
            with PostgresStore(postgres_url) as other:
                with pytest.raises(Unavailable, match="read-only transaction"):
                    other.publish(attempt, grid, now=NOON)
                assert other.pointer(grid.name) is None
        finally:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(database))
        assert store.publish(attempt, grid, now=NOON).epoch == 1


def test_a_crowded_postgres_is_waited_for(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin, PostgresStore(postgres_url) as late:
        limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
        database = sql.Identifier(admin.info.dbname)
        admin.execute(limit.format(database, sql.Literal(1)))
        try:
            with pytest.raises(Unavailable, match="too many connections"):
                late.pointer("weather")
        finally:
            admin.execute(limit.format(database, sql.Literal(-1)))
        late.pointer("weather")
