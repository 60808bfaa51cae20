"""All or nothing: publishing is killed at random moments while readers look on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest

from almanac.blocks import decode
from almanac.pipeline import Pipeline
from serving_cache.layout import view_name
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import grid_pipeline, migrated

ROOT = Path(__file__).resolve().parents[2]
ATTEMPTS = 24
READER_PAUSE_SECONDS = 0.02


class Readers:
    """Reads Postgres and Redis in a loop, and keeps what it should never see."""

    def __init__(self, pipeline: Pipeline, postgres_url: str, redis_url: str) -> None:
        self._pipeline = pipeline
        self._urls = postgres_url, redis_url
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(read,)) for read in (self._view, self._blocks)]
        self.wrong: list[str] = []
        self.seen: dict[str, set[int]] = {"postgres": set(), "redis": set()}

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)

    def _guarded(self, read) -> None:  # type: ignore[no-untyped-def]
        try:
            read()
        except BaseException as error:
            self.wrong.append(repr(error))
            raise

    def _note(self, place: str, epoch: int, values: set[float], count: int) -> None:
        if len(values) != 1 or count != 64:
            self.wrong.append(f"{place} epoch {epoch}: {count} rows of the runs {sorted(values)}")
        if self.seen[place] and epoch < max(self.seen[place]):
            self.wrong.append(f"{place} went back from epoch {max(self.seen[place])} to {epoch}")
        self.seen[place].add(epoch)

    def _view(self) -> None:
        statement = f"SELECT epoch, t2m_1h, count(*) FROM {view_name(self._pipeline.name)} GROUP BY 1, 2"
        with psycopg.connect(self._urls[0], autocommit=True) as connection:
            while not self._done.wait(READER_PAUSE_SECONDS):
                rows = connection.execute(statement).fetchall()
                if rows:
                    self._note("postgres", rows[0][0], {r[1] for r in rows}, sum(r[2] for r in rows))

    def _blocks(self) -> None:
        with RedisStore(self._urls[1]) as cache:
            while not self._done.wait(READER_PAUSE_SECONDS):
                pointer = cache.pointer(self._pipeline.name)
                if pointer is None:
                    continue
                manifest = cache.manifest(self._pipeline.name, pointer.generation.generation)
                found = cache.blocks(self._pipeline.name, {entry.block_hash for entry in manifest.values()})
                blocks = [decode(found[entry.block_hash]) for entry in manifest.values()]
                values = {float(value) for block in blocks for value in block.columns["t2m_1h"]}
                self._note("redis", pointer.epoch, values, sum(block.rows for block in blocks))


@pytest.mark.slow
def test_a_killed_publication_leaves_one_generation_or_the_next(postgres_url: str, redis_url: str) -> None:
    seed = int(os.environ.get("ALMANAC_TEST_SEED", random.randrange(2**32)))
    print(f"ALMANAC_TEST_SEED={seed}")
    chance = random.Random(seed)
    pipeline = migrated(postgres_url, grid_pipeline(coverage_min=1.0))
    environment = {**os.environ, "POSTGRES": postgres_url, "REDIS": redis_url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.integration.publisher"]
    killed = whole = value = 0
    with (
        subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as publisher,
        Readers(pipeline, postgres_url, redis_url) as readers,
        PostgresStore(postgres_url) as postgres,
        RedisStore(redis_url) as cache,
    ):
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        shortest_seconds = 60.0
        for number in range(ATTEMPTS):
            value += chance.random() < 0.7 or number == 0  # otherwise the run is tried again
            started = time.monotonic()
            publisher.stdin.write(f"{pipeline.name} {value}\n")
            publisher.stdin.flush()
            child = int(publisher.stdout.readline())
            if number:  # the first one runs through, and says how long that takes
                time.sleep(chance.uniform(0, shortest_seconds))
                os.kill(child, signal.SIGKILL)
            publisher.stdin.write("wait\n")
            publisher.stdin.flush()
            status = int(publisher.stdout.readline())
            if status == 0:
                shortest_seconds = min(shortest_seconds, time.monotonic() - started)
            killed, whole = killed + (status == signal.SIGKILL), whole + (status == 0)
            sync_redis(pipeline, postgres, cache)  # what the reconciler does
            assert cache.pointer(pipeline.name) == postgres.pointer(pipeline.name)
        publisher.stdin.close()
    assert readers.wrong == [], f"ALMANAC_TEST_SEED={seed}"
    assert killed > 0
    assert whole > 0
    assert readers.seen["postgres"]
    assert readers.seen["redis"]
    print(f"killed {killed}, whole {whole}, epochs seen { ({k: len(v) for k, v in readers.seen.items()}) }")
