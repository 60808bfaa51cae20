"""Readers that give up at any moment lose no connection and get nobody else's answer."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import warnings
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psycopg
import pytest
import redis

from almanac.blocks import Block
from almanac.clock import utc_now
from almanac.pipeline import Pipeline
from serving_cache.lookup.places import Place
from serving_cache.lookup.postgres_connections import CONNECTIONS_MAX
from serving_cache.lookup.postgres_place import PostgresPlace
from serving_cache.lookup.redis_link import RedisLink
from serving_cache.lookup.redis_place import RedisPlace
from serving_cache.postgres import PostgresStore
from serving_cache.records import StagedPartition
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import grid_pipeline, migrated, start_of
from tests.streams import eventually

READS = 10_000
READERS = 100
CELLS = 64
LIMIT_SECONDS = 30.0  # a busy machine is not what is tested here


@dataclass(frozen=True)
class Book:
    """A generation in both stores in which each cell's prediction is its number."""

    grid: Pipeline
    postgres_url: str
    redis_url: str

    def place(self, name: str) -> Place:
        if name == "redis":
            return RedisPlace(self.redis_url, limit_seconds=LIMIT_SECONDS)
        return PostgresPlace(self.postgres_url, limit_seconds=LIMIT_SECONDS)

    def connections(self, name: str) -> int:
        """How many connections of lookups the server has."""
        if name == "redis":
            with redis.Redis.from_url(self.redis_url) as client:
                return sum(each["name"] == "almanac-lookup" for each in client.client_list())
        with psycopg.connect(self.postgres_url) as admin:
            row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'almanac lookup'")
            return int(row.fetchone()[0])  # type: ignore[index]


@pytest.fixture(scope="module")
def book(postgres_url: str, redis_url: str) -> Book:
    grid = migrated(postgres_url, grid_pipeline())
    now = utc_now()
    with PostgresStore(postgres_url) as store, RedisStore(redis_url) as cache:
        attempt = store.begin_generation(grid, start_of(grid, "numbered", now), now=now)
        parts = []
        for partition in range(grid.partitions.count):
            keys = np.array(list(grid.partitions.entities(partition)), dtype=np.int64)  # type: ignore[union-attr]
            block = Block(keys=keys, columns={name: keys.astype(np.float32) for name in grid.output_names})
            parts.append(StagedPartition(partition=partition, block=block, as_of=now, computed_at=now))
        store.stage(attempt, parts)
        store.publish(attempt, grid, now=now)
        sync_redis(grid, store, cache)
    return Book(grid, postgres_url, redis_url)


async def read_right(place: Place, grid: Pipeline, draw: random.Random) -> None:
    """Read some cells, and see that each answer is that cell's own."""
    cells = draw.sample(range(CELLS), draw.choice((1, 1, 3)))
    reading = await place.read(grid, cells)
    assert list(reading.entities) == cells
    for cell in cells:
        current = reading.entities[cell].candidates.current
        assert current is not None
        assert dict(current.values) == {name: float(cell) for name in grid.output_names}


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_reads_cancelled_at_random_moments_lose_no_connection(book: Book, name: str) -> None:
    seed = int(os.environ.get("ALMANAC_TEST_SEED", random.randrange(2**32)))
    print(f"ALMANAC_TEST_SEED={seed}")

    async def run() -> tuple[int, int, int]:
        draw = random.Random(seed)
        place = book.place(name)
        whole = cancelled = 0
        patience = 0.01

        async def reader() -> None:
            nonlocal whole, cancelled, patience
            while whole + cancelled < READS:
                ask: Awaitable[None] = place.check() if draw.random() < 0.5 else read_right(place, book.grid, draw)
                task = asyncio.ensure_future(ask)
                await asyncio.wait({task}, timeout=draw.uniform(0, patience))
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task  # raises what was wrong with an answer
                if task.cancelled():
                    cancelled, patience = cancelled + 1, patience * 1.01  # so that about half of them are, at any speed
                else:
                    whole, patience = whole + 1, patience / 1.01

        await asyncio.gather(*(reader() for _ in range(READERS)))
        await asyncio.gather(*(read_right(place, book.grid, draw) for _ in range(CELLS)))
        at_the_server = book.connections(name)
        await place.close()
        return whole, cancelled, at_the_server

    whole, cancelled, at_the_server = asyncio.run(run())
    assert min(whole, cancelled) > READS / 20, "the moments were not random enough to prove anything"
    assert 1 <= at_the_server <= (1 if name == "redis" else CONNECTIONS_MAX)
    eventually(lambda: book.connections(name) == 0)  # a server needs a moment to see that a connection has ended


@pytest.mark.parametrize("moment", range(8), ids=lambda moment: f"after {moment} rounds of the loop")
def test_a_loop_that_ends_while_a_connection_is_being_closed_leaves_none_open(redis_url: str, moment: int) -> None:
    async def cancel_twice() -> None:
        link = RedisLink(redis_url, limit_seconds=LIMIT_SECONDS)
        await link.ask(("PING",))
        life = link._life
        assert life is not None
        life.cancel()
        for _round in range(moment):
            await asyncio.sleep(0)
        life.cancel()
        await asyncio.wait({life})

    asyncio.run(cancel_twice())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gc.collect()
    assert [str(each.message) for each in said if "redis" in str(each.message)] == []
