"""How soon a lookup answers from the generation that was gone back to: from just before the commit until it answers so.

Two generations, by two models; the entity that is asked for, again and again without a pause, has an overlay by the
second one's. `almanac rollback`'s own code goes back and forth between them. An answer counts as soon as generation,
model, source and value are those of the one gone back to. `redis`: with both stores. `postgres`: with Redis away, from
the record alone. Floor: what one answer takes. Peer: without generations the predictions of before have to be written
again, here as pipelined SETs of a key per row (`ratio_peer`).
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from almanac import failpoints
from almanac.blocks import Block
from almanac.clock import utc_now
from almanac.settings import Settings
from almanac.stack.server import free_port
from benchmarks.measuring import Cores, finish, in_turn, machine, on_core, options, profiled, ratio, run
from benchmarks.publish import NAME, Redis, World, make_world
from benchmarks.servers import running_servers
from benchmarks.services import running_service
from serving_cache.postgres import PostgresStore
from serving_cache.records import GenerationStart, OverlayRecord, StagedPartition
from serving_cache.redis import RedisStore
from serving_cache.rollback import roll_back
from serving_cache.sync import sync_redis

ROWS = 200_000
ROWS_QUICK = 5_000
ROUNDS = 5
ROLLBACKS = 60
ROLLBACKS_QUICK = 4
ENTITY = 0
OUTPUT = "t2m_1h"
DECLARATION = """
from almanac.pipeline import Freshness, Pipeline, horizons, hours
from almanac.partitioning import Grid

bench = Pipeline(
    name="bench", entity="cell_id", partitions={partitions}, outputs=horizons("t2m", hours=(1, 6, 12, 24)),
    features="bench_v1", model="bench@champion", schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=hours(24)),
)
"""
VISIBLE_SECONDS_MAX = 30.0
ASK_SECONDS_MAX = 10.0
OVERLAY_VALUE = -5.0
VALUES = {1: 1.0, 2: OVERLAY_VALUE}
"""What the entity's answer is while a generation is current: the second one's comes from the overlay."""

Shown = tuple[int, str, str, float]
"""(generation, model, source, value) of an answer."""
SHOWN: Mapping[int, Shown] = {1: (1, "bench-v1", "batch", VALUES[1]), 2: (2, "bench-v2", "stream", VALUES[2])}


def publish_two(world: World) -> None:
    """Two generations that predict other values, and an overlay by the second one's model."""
    with PostgresStore(world.settings.need("postgres_url")) as store, _cache(world.settings) as cache:
        now = utc_now() - timedelta(minutes=1)
        for number in (1, 2):
            as_of = now + timedelta(seconds=number)
            start = GenerationStart(
                run_key=f"run {number}", cutoff=as_of, as_of=as_of, model=f"bench-v{number}", model_hash="0" * 64,
                clock_shift=timedelta(0), partitions=tuple(range(world.pipeline.partitions.count)),
            )  # fmt: skip
            attempt = store.begin_generation(world.pipeline, start, now=as_of)
            store.stage(attempt, [_predicting(part, float(number)) for part in world.parts])
            store.publish(attempt, world.pipeline, now=as_of)
        overlay = OverlayRecord(
            entity=str(ENTITY), model="bench-v2", as_of=utc_now(), topic="bench", kafka_partition=0, kafka_offset=1,
            values=dict.fromkeys(world.pipeline.output_names, OVERLAY_VALUE), computed_at=utc_now(),
        )  # fmt: skip
        store.put_overlays(NAME, [overlay])
        cache.put_overlays(NAME, [overlay])


def _predicting(part: StagedPartition, value: float) -> StagedPartition:
    columns = {name: 0 * column + value for name, column in part.block.columns.items()}
    return replace(part, block=Block(part.block.keys, columns))


def _cache(settings: Settings) -> RedisStore:
    return RedisStore(settings.need("redis_url"))


def ask_for_ever(url: str, tell: Connection) -> None:
    """Ask, and tell of each change: what is shown now, when that came, what an answer takes (seconds, median)."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ASK_SECONDS_MAX)
    before: Shown | None = None
    taken: list[float] = []
    while True:
        asked_at = time.monotonic()
        connection.request("GET", f"/v1/{NAME}/entities/{ENTITY}")
        body = json.loads(connection.getresponse().read())
        came_at = time.monotonic()
        taken.append(came_at - asked_at)
        output = body.get("outputs", {}).get(OUTPUT, {})
        shown = (body.get("generation"), body.get("model"), body.get("source"), output.get("value"))
        if shown != before:
            tell.send((shown, came_at, statistics.median(taken)))
            before, taken = shown, []


@contextmanager
def asking(url: str, core: int) -> Iterator[Connection]:
    """A process that asks without a pause; yields what it tells."""
    fork = multiprocessing.get_context("fork")
    hear, tell = fork.Pipe(duplex=False)
    with on_core(core):
        process = fork.Process(target=ask_for_ever, args=(url, tell), daemon=True)
        process.start()
    try:
        yield hear
    finally:
        process.terminate()
        process.join()


@dataclass(frozen=True)
class Declared:
    """Where the lookup finds the pipeline and its stores.

    Args:
        redis_url: a Redis, or an address at which nothing listens.
    """

    world: World
    redis_url: str

    @property
    def settings(self) -> Settings:
        """Those of this process."""
        return self.world.settings

    def environment(self) -> dict[str, str]:
        """The variables of the lookup."""
        file = self.settings.state_dir / "declared.py"
        file.write_text(DECLARATION.format(partitions=repr(self.world.pipeline.partitions)))
        return {
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "ALMANAC_STATE_DIR": str(self.settings.state_dir),
            "ALMANAC_PIPELINES": str(file),
            "ALMANAC_POSTGRES_URL": self.settings.need("postgres_url"),
            "ALMANAC_REDIS_URL": self.redis_url,
        }


@dataclass
class Rollbacks:
    """Goes back and forth.

    Args:
        cores: the lookup's is the measured one.
    """

    declared: Declared
    cores: Cores
    count: int

    def measure(self) -> Mapping[str, Any]:
        """Many rollbacks; milliseconds until each was visible."""
        port = free_port()
        words = ["-m", "serving_cache.lookup"]
        lookup = running_service(
            words, self.declared, port, self.cores.measured, ready="/readyz", ALMANAC_LOOKUP_PORT=str(port)
        )
        with (
            lookup as service,
            asking(service.url, self.cores.servers) as hear,
            PostgresStore(self.declared.settings.need("postgres_url")) as store,
            RedisStore(self.declared.redis_url) as cache,
        ):
            return self._measure(hear, store, cache)

    def _measure(self, hear: Connection, store: PostgresStore, cache: RedisStore) -> Mapping[str, Any]:
        pipeline, began_at, visible, answers = self.declared.world.pipeline, 0.0, [], []

        def note(name: str) -> None:
            nonlocal began_at
            if name == "rollback.pointer-moved":  # the commit comes next
                began_at = time.monotonic()

        current = _generation(store)
        _heard(hear, SHOWN[current])
        failpoints.arm(note)
        try:
            for _ in range(self.count):
                current = 3 - current
                roll_back(pipeline, store, cache, to=current)
                came_at, taken = _heard(hear, SHOWN[current])
                visible.append(1000 * (came_at - began_at))
                answers.append(1000 * taken)
        finally:
            failpoints.arm(None)
        return {"median_ms": statistics.median(visible), "answer_ms": statistics.median(answers), "visible_ms": visible}


def _generation(store: PostgresStore) -> int:
    pointer = store.pointer(NAME)
    assert pointer is not None  # noqa: S101  it was published
    return pointer.generation.generation


def _heard(hear: Connection, wanted: Shown) -> tuple[float, float]:
    """When an answer first showed this, and what an answer took before.

    Raises:
        AssertionError: it did not in time.
    """
    last: object = None
    while hear.poll(VISIBLE_SECONDS_MAX):
        shown, came_at, taken = hear.recv()
        if shown == wanted:
            return came_at, taken
        last = shown
    raise AssertionError(f"the lookup never showed {wanted}, but {last}")


def summed_up(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median, p99 and maximum over all rounds, in milliseconds, and what one answer takes."""
    every = sorted(value for result in results for value in result["visible_ms"])
    return {
        "median_ms": statistics.median(every),
        "p99_ms": every[min(len(every) - 1, round(0.99 * len(every)))],
        "max_ms": every[-1],
        "floor_ms": statistics.median(result["answer_ms"] for result in results),
        "rollbacks": len(every),
    }


def main() -> None:
    """Measure, or profile ours."""
    cores = Cores.choose()
    with ExitStack() as stack:
        stack.enter_context(on_core(cores.measured))
        asked = options(__doc__, rounds=ROUNDS)
        settings = stack.enter_context(running_servers(cores))
        world = make_world(settings, asked.size(ROWS, ROWS_QUICK))
        publish_two(world)
        many = ROLLBACKS_QUICK if asked.quick else ROLLBACKS
        alone = Rollbacks(Declared(world, f"redis://127.0.0.1:{free_port()}/0"), cores, many)
        plain = Redis(world)

        def both() -> Mapping[str, Any]:
            with PostgresStore(settings.need("postgres_url")) as store, _cache(settings) as cache:
                sync_redis(world.pipeline, store, cache)  # after the peer, which empties Redis
            return Rollbacks(Declared(world, settings.need("redis_url")), cores, many).measure()

        if asked.profile:
            with profiled("rollbacks"):
                both()
            return
        contenders = {"redis": both, "postgres": alone.measure}
        if asked.peers:
            contenders["peer"] = lambda: {"written_ms": 1000 * world.rows / plain.sets()["rate"]}
        found = in_turn(contenders, asked.rounds)
        ours = {name: summed_up(found[name]) for name in ("redis", "postgres")}
        peer = statistics.median(one["written_ms"] for one in found["peer"]) if asked.peers else None
        finish(
            {
                "name": "rollback",
                "unit": "ms",
                "rows": world.rows,
                "redis": {**ours["redis"], "ratio_peer": ratio(peer, ours["redis"]["median_ms"])},
                "postgres": ours["postgres"],
                "peer_ms": peer,
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
