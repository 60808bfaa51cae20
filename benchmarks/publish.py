"""What publishing costs: blocks in Redis beside a key per row, staged rows in Postgres beside its own COPY.

`redis.ratio_peer`: blocks packed, hashed and written, in rows a second, over pipelined SETs of one key per row.
`redis.memory_ratio`: memory of the blocks over their raw bytes (keys and values). `postgres.ratio_floor`: a whole
`stage` (checks, hashes, claims, rows, commit) over the server's own binary COPY from a file into a table like ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import psycopg
import redis
from psycopg import sql

from almanac.blocks import Block, block_hash, encode
from almanac.clock import utc_now
from almanac.partitioning import Grid
from almanac.pipeline import Freshness, Pipeline, horizons, hours
from almanac.settings import Settings
from almanac.stack import postgres as server
from benchmarks.measuring import Cores, finish, in_turn, machine, median, on_core, options, profiled, ratio, run, say
from benchmarks.servers import running_servers
from serving_cache.layout import child_name, table_name
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.records import Attempt, GenerationStart, StagedPartition
from serving_cache.redis import RedisStore

ROWS = 1_000_000
ROWS_QUICK = 20_000
ROUNDS = 5
TILE = 32
KEYS_PER_TRIP = 1_000
SET_ROWS_MAX = 200_000
"""A key per row takes so long that a part of the rows says as much."""
SHARD_ROWS = 250_000
NAME = "bench"
OUTPUTS = ("t2m", (1, 6, 12, 24))


@dataclass(frozen=True)
class World:
    """The servers, and predictions of every cell."""

    settings: Settings
    pipeline: Pipeline
    parts: list[StagedPartition]

    @property
    def rows(self) -> int:
        """Number of predictions."""
        return sum(part.block.rows for part in self.parts)


def make_world(settings: Settings, rows: int) -> World:
    """A square grid of about so many cells, in tiles of about a thousand."""
    side = max(TILE, round(rows**0.5))
    grid = Grid(rows=side, cols=side, tile=TILE, north=50.0, west=-50.0, step=100 / side)
    pipeline = Pipeline(
        name=NAME,
        entity="cell_id",
        partitions=grid,
        outputs=horizons(OUTPUTS[0], hours=OUTPUTS[1]),
        features="bench_v1",
        model="bench@champion",
        schedule="0 * * * *",
        freshness=Freshness(fresh_for=hours(1), usable_for=hours(24)),
    )
    migrate(settings.need("postgres_url"), [pipeline])
    chance, now = np.random.default_rng(1), utc_now()
    parts = []
    for partition in range(grid.count):
        keys = np.array(list(grid.entities(partition)), dtype=np.int64)
        columns = {name: chance.normal(280, 10, len(keys)).astype(np.float32) for name in pipeline.output_names}
        parts.append(StagedPartition(partition=partition, block=Block(keys, columns), as_of=now, computed_at=now))
    return World(settings, pipeline, parts)


class Redis:
    """Blocks, and a key per row."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._url = world.settings.need("redis_url")
        self._plain = redis.Redis.from_url(self._url)
        self._values = [
            (str(key), row.tobytes())
            for part in world.parts[: max(1, SET_ROWS_MAX // TILE**2)]
            for key, row in zip(
                part.block.keys.tolist(), np.stack(list(part.block.columns.values()), axis=1), strict=True
            )
        ]

    def blocks(self) -> Mapping[str, Any]:
        """Pack, hash and write every block; read them back after the clock stops."""
        before = self._memory()
        with RedisStore(self._url) as cache:
            began = time.perf_counter()
            packed = [encode(part.block) for part in self._world.parts if isinstance(part.block, Block)]
            blocks = {block_hash(data): data for data in packed}
            cache.put_blocks(NAME, blocks)
            seconds = time.perf_counter() - began
            used = self._used() - before
            found = cache.blocks(NAME, blocks)
        if found != blocks:
            raise AssertionError("Redis does not hold the blocks that were written")
        blocks_of = [part.block for part in self._world.parts]
        raw = sum(block.keys.nbytes + sum(c.nbytes for c in block.columns.values()) for block in blocks_of)
        return {"rate": self._world.rows / seconds, "memory_ratio": used / raw}

    def sets(self) -> Mapping[str, Any]:
        """A key per row, pipelined."""
        self._plain.flushall()
        began = time.perf_counter()
        for start in range(0, len(self._values), KEYS_PER_TRIP):
            with self._plain.pipeline(transaction=False) as trip:
                for key, value in self._values[start : start + KEYS_PER_TRIP]:
                    trip.set(f"{NAME}:{key}", value)
                trip.execute()
        return {"rate": len(self._values) / (time.perf_counter() - began)}

    def _memory(self) -> int:
        """Of an empty Redis."""
        self._plain.flushall()
        return self._used()

    def _used(self) -> int:
        info: Any = self._plain.info("memory")
        return int(info["used_memory"])


class Postgres:
    """Staged rows, and the server's own COPY of the same rows."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._url = world.settings.need("postgres_url")
        self._runs = count()
        self._file = ""

    def stage(self) -> Mapping[str, Any]:
        """One generation, staged a shard at a time."""
        size = max(1, SHARD_ROWS // TILE**2)
        with PostgresStore(self._url) as store:
            attempt = self._open(store)
            began = time.perf_counter()
            for start in range(0, len(self._world.parts), size):
                store.stage(attempt, self._world.parts[start : start + size])
            seconds = time.perf_counter() - began
            if not self._file:
                self._write_file(attempt)
            store.reject(attempt, "a benchmark")
        return {"rate": self._world.rows / seconds}

    def copy(self) -> Mapping[str, Any]:
        """The same rows, by the server from its own disk, into a table without an index."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS bench_copy")
            connection.execute(sql.SQL("CREATE TABLE bench_copy (LIKE {})").format(sql.Identifier(table_name(NAME))))
            began = time.perf_counter()
            connection.execute(sql.SQL("COPY bench_copy FROM {} (FORMAT binary)").format(sql.Literal(self._file)))
            seconds = time.perf_counter() - began
            row = connection.execute("SELECT count(*) FROM bench_copy").fetchone()
        if row is None or row[0] != self._world.rows:
            raise AssertionError(f"COPY brought {row} rows, {self._world.rows} were staged")
        return {"rate": self._world.rows / seconds}

    def _open(self, store: PostgresStore) -> Attempt:
        now = utc_now()
        start = GenerationStart(
            run_key=f"run {next(self._runs)}",
            cutoff=now,
            as_of=now,
            model="bench-v1",
            model_hash="0" * 64,
            clock_shift=timedelta(0),
            partitions=tuple(range(self._world.pipeline.partitions.count)),
        )
        return store.begin_generation(self._world.pipeline, start, now=now)

    def _write_file(self, attempt: Attempt) -> None:
        """The first generation's rows, as the server writes them."""
        port = int(psycopg.conninfo.conninfo_to_dict(self._url)["port"] or 0)
        admin = server._admin(self._world.settings.state_dir, port)
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("GRANT pg_read_server_files TO almanac")
        with psycopg.connect(admin, dbname="almanac", autocommit=True) as connection:
            ((folder,),) = connection.execute("SHOW data_directory").fetchall()
            file = f"{folder}/bench.copy"
            child = sql.Identifier(child_name(NAME, attempt.generation))
            connection.execute(sql.SQL("COPY {} TO {} (FORMAT binary)").format(child, sql.Literal(file)))
        self._file = file


def main() -> None:
    """Measure, or profile ours."""
    cores = Cores.choose()
    with ExitStack() as stack:
        stack.enter_context(on_core(cores.measured))
        asked = options(__doc__, rounds=ROUNDS)
        settings = stack.enter_context(running_servers(cores))
        world = make_world(settings, asked.size(ROWS, ROWS_QUICK))
        say(f"{world.rows:,} rows in {len(world.parts):,} partitions")
        cache, record = Redis(world), Postgres(world)
        record.stage()  # the first time imports the driver, and writes the floor's file
        if asked.profile:
            with profiled("blocks to Redis"):
                cache.blocks()
            with profiled("stage"):
                record.stage()
            return
        contenders = {"redis blocks": cache.blocks, "stage": record.stage, "copy": record.copy}
        if asked.peers:
            contenders["redis sets"] = cache.sets
        found = in_turn(contenders, asked.rounds)
        rates = {name: median(results, "rate") for name, results in found.items()}
        finish(
            {
                "name": "publish",
                "unit": "rows/s",
                "rows": world.rows,
                "redis": {
                    "ours": rates["redis blocks"],
                    "peer": rates.get("redis sets"),
                    "ratio_peer": ratio(rates["redis blocks"], rates.get("redis sets")),
                    "memory_ratio": median(found["redis blocks"], "memory_ratio"),
                },
                "postgres": {
                    "ours": rates["stage"],
                    "floor": rates["copy"],
                    "ratio_floor": ratio(rates["stage"], rates["copy"]),
                },
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
