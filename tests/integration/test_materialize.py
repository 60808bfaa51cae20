"""Materialization on real Postgres, Redis and files: what is new alone, resumed after a kill, and refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest
import redis

from almanac.partitioning import Grid
from almanac.settings import Settings, load_settings
from features.ingest import refresh
from features.materialize import Materialization
from features.materialize_plan import Asked
from features.materialize_watermarks import read, token_key
from features.online import OnlineFeatures
from pipelines.weather import weather
from serving_cache.migrate import migrate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Feast's own imports

TINY = replace(weather, name="weather", partitions=Grid(rows=6, cols=7, tile=4))
CELLS = 42
AS_OF = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """A store whose features reach up to AS_OF, nothing of them online."""

    settings: Settings
    client: redis.Redis

    def run(self, until: datetime, **asked: object) -> int:
        with Materialization(TINY, self.settings) as run:
            return run.all(Asked(until=until, **asked)).rows  # type: ignore[arg-type]

    def online(self) -> pa.Table:
        return OnlineFeatures(TINY, self.settings).read(list(range(CELLS)))


@pytest.fixture
def world(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[World]:
    settings = load_settings(
        state_dir=tmp_path, redis_url=redis_url, postgres_url=postgres_url, weather_data=None, weather_seed=11
    )
    migrate(postgres_url, [TINY])
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS feast CASCADE")
        connection.execute("DELETE FROM feature_watermarks")
    refresh(TINY, settings, AS_OF, window=timedelta(hours=12))
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield World(settings, client)
        client.flushdb()


def test_only_what_is_new_is_read(world: World) -> None:
    assert world.run(AS_OF) == 4 * CELLS
    marks = read(world.settings.need("postgres_url"), TINY.name, "cell_history")
    assert sorted(marks) == list(range(TINY.partitions.count))
    assert {mark.through for mark in marks.values()} == {AS_OF}
    assert world.run(AS_OF) == 0
    before = world.online()
    refresh(TINY, world.settings, AS_OF + HOUR, window=HOUR)
    assert world.run(AS_OF + HOUR) == 3 * CELLS  # positions have not changed
    assert world.run(AS_OF) == 0
    assert world.online()["t2m"] != before["t2m"]
    assert world.run(AS_OF + HOUR, full=True) == 4 * CELLS
    assert world.run(AS_OF + HOUR, since=AS_OF - HOUR) == 3 * CELLS


def test_an_emptied_redis_is_filled_whole(world: World) -> None:
    world.run(AS_OF)
    before = world.online()
    world.client.flushdb()
    assert world.run(AS_OF) == 4 * CELLS
    assert world.online() == before
    world.client.hset(token_key(TINY.name), "cell_history:2", "of an older copy")
    assert world.run(AS_OF) == len(list(TINY.partitions.entities(2)))
    assert world.online() == before
