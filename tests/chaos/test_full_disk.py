"""A full disk during publishing: one line that says so, the current generation stays, and work goes on by itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from almanac.errors import Unavailable
from almanac.partitioning import Grid
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.chaos.servers import UNLIMITED, Harmed, harmed_postgres, harmed_redis
from tests.chaos.stack import ROOT
from tests.generations import NOON, grid_pipeline, migrated, staged_parts, start_of

WAL_FILE_BYTES = 16 * 1024 * 1024
"""A segment of its log must still fit: a Postgres that cannot log ends itself, and is killed in other tests."""
LATER = NOON + timedelta(hours=1)
WIDE = grid_pipeline("wide", partitions=Grid(rows=600, cols=600, tile=300, step=0.1))
SMALL = grid_pipeline("small")
TRIES_MAX = 50


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    with harmed_postgres(tmp_path_factory.mktemp("postgres")) as server:
        migrated(server.url, WIDE, SMALL)
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    with harmed_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.mark.slow
def test_postgres_without_room_stages_nothing_and_then_everything(postgres: Harmed) -> None:
    first = list(range(WIDE.partitions.count))
    with PostgresStore(postgres.url) as store:
        attempt = store.begin_generation(WIDE, start_of(WIDE, "first"), now=NOON)
    full = pytest.raises(Unavailable, match="File too large")
    with postgres.full_disk(WAL_FILE_BYTES), PostgresStore(postgres.url) as store, full:
        store.stage(attempt, staged_parts(WIDE, 281.0))
    with PostgresStore(postgres.url) as store:  # the server was started anew: the old connection is gone
        assert store.pending(attempt, first) == first
        assert store.pointer(WIDE.name) is None
        assert store.stage(attempt, staged_parts(WIDE, 281.0)) == first
        published = store.publish(attempt, WIDE, now=NOON)
        assert (published.coverage, published.rows) == (1.0, 360_000)


def test_redis_without_room_keeps_the_generation_it_has_and_follows_later(postgres: Harmed, redis: Harmed) -> None:
    with PostgresStore(postgres.url) as store, RedisStore(redis.url) as cache:

        def publish(value: float, run: str, at: object) -> None:
            attempt = store.begin_generation(SMALL, start_of(SMALL, run, at), now=at)  # type: ignore[arg-type]
            store.stage(attempt, staged_parts(SMALL, value, at))  # type: ignore[arg-type]
            store.publish(attempt, SMALL, now=at)  # type: ignore[arg-type]

        publish(281.0, "first", NOON)
        assert sync_redis(SMALL, store, cache)
        publish(282.0, "second", LATER)
        log = max(redis.server.directory.rglob("*.aof"), key=lambda path: path.stat().st_size)

        def write_until_refused() -> None:
            for _ in range(TRIES_MAX):  # with a log written once a second the first writes are still taken
                cache.mark("other")
                sync_redis(SMALL, store, cache)
                cache.clear("other")

        full = r"no room, in memory or on its disk .*File too large.* it goes on by itself"
        assert redis.process is not None
        process = psutil.Process(redis.process.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (log.stat().st_size, UNLIMITED))
        with pytest.raises(Unavailable, match=full):
            write_until_refused()
        process.rlimit(psutil.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        before = cache.pointer(SMALL.name)
        assert before is not None
        for _ in range(TRIES_MAX):
            try:
                sync_redis(SMALL, store, cache)
                break
            except Unavailable:  # it looks once a second whether there is room again
                time.sleep(0.2)
        assert cache.pointer(SMALL.name) == store.pointer(SMALL.name)


FEATURES = """
import resource, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from almanac.errors import AlmanacError
from almanac.settings import load_settings
from features.ingest import refresh
from tests.acceptance.tiny_weather import weather

found = load_settings(state_dir=Path(sys.argv[1]))
def fill(hour):
    return refresh(weather, found, datetime(2026, 3, 10, hour, tzinfo=UTC), window=timedelta(hours=3))
fill(12)
before = {path: path.read_bytes() for path in found.features_dir.rglob("*.parquet")}
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    fill(13)
except AlmanacError as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert {path: path.read_bytes() for path in before} == before
assert not list(found.features_dir.rglob("*.writing"))
print(fill(13).as_of)
"""


def test_a_step_without_room_for_features_is_tried_again_and_leaves_no_half_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEATURES, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Unavailable ")
    assert "the disk is full (File too large)" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == "2026-03-10 13:00:00+00:00"
