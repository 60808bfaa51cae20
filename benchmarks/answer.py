"""A freshly computed answer: requests a second and their times where nothing made beforehand will do.

    make bench NAME=answer

Every request is for another cell and refuses the published generation
(`max_stale`), so that the lookup service reads online features, scores, answers
and writes back: nothing is coalesced, nothing was computed before, and the
answers' own count of fresh computations is compared with the requests. Before
each round what was written back is removed and the service started anew. The
floor is the same in this process without HTTP: read and decode online features,
score, one entity at a time. The peer is a FastAPI service that reads the same
30 features with Feast's online store and calls LightGBM through pandas; it
neither looks at ages nor writes anything back.
16 connections; `one_connection` has the times of a single caller. The service
has the measured core for itself; Postgres, Redis and the load generator share
the other.

World: 20,000 cells (`--rows`), their online features as of the last hour, and
a generation of three hours before.
"""

from __future__ import annotations

import random
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

from almanac.clock import utc_now
from almanac.errors import StackError
from almanac.scoring import Scorer
from almanac.stack.server import free_port
from benchmarks.batch import Job
from benchmarks.inside import profile_requests
from benchmarks.load import drive, get
from benchmarks.measuring import (
    Cores,
    Measure,
    Options,
    finish,
    in_turn,
    machine,
    median,
    on_core,
    options,
    ratio,
    run,
    say,
)
from benchmarks.peer import running_peer
from benchmarks.reference import FEATURE_HOURS, World, make_world, trees_of
from benchmarks.servers import running_servers
from benchmarks.services import Service, running_lookup, wait_for

CELLS, CELLS_QUICK = 20_000, 600
ROUNDS = 3
CONNECTIONS = 16
SECONDS, SECONDS_QUICK = 4.0, 0.3
PROFILED = 2_000
COMPUTED = 'almanac_fresh_computations_total{outcome="answered",pipeline="reference"}'


class Ours:
    """The lookup service, started anew for each round on stores that hold no fresh prediction."""

    def __init__(self, world: World, cores: Cores, seconds: float) -> None:
        self._world, self._core, self._seconds = world, cores.measured, seconds
        self.memory_mb = 0.0

    def run(self, connections: int = CONNECTIONS) -> Mapping[str, Any]:
        """One round; every request is a fresh computation, or there is no result."""
        forget(self._world)
        with running_lookup(self._world, free_port(), self._core) as service:
            wait_warm(service, self._world)
            before = computed(service)
            load = drive(service.url, requests(service.url, self._world), connections=connections,
                         seconds=self._seconds, once=True)  # fmt: skip
            made = computed(service) - before
            self.memory_mb = service.memory_mb()
        if made < load.answered:
            raise StackError(f"{load.answered} answers came of {made} fresh computations: see the service's reasons")
        return {**load.as_dict(), "computed": made}

    def alone(self) -> Mapping[str, Any]:
        """The same with a single caller."""
        return self.run(1)


def requests(url: str, world: World) -> list[bytes]:
    """One request for each cell but the first, in a random order that is always the same."""
    cells = list(range(1, world.grid.cells))
    random.Random(1).shuffle(cells)  # noqa: S311  no secret
    return [get(url, path_of(world, cell)) for cell in cells]


def path_of(world: World, cell: int) -> str:
    """A lookup that the generation of three hours before cannot answer."""
    return f"/v1/{world.pipeline.name}/entities/{cell}?max_stale=2h"


def wait_warm(service: Service, world: World) -> None:
    """Ask for cell 0, which nothing counts, until model and connections are there."""
    wait_for(service.url, path_of(world, 0), service.process, None)


def computed(service: Service) -> int:
    """Fresh computations that the service has answered with, by its own count."""
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=10) as answer:  # noqa: S310  our own address
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(COMPUTED)))


def forget(world: World) -> None:
    """Remove what earlier rounds wrote back, from both stores."""
    import psycopg
    import redis

    with psycopg.connect(world.settings.need("postgres_url")) as connection:
        connection.execute("DELETE FROM overlay WHERE pipeline = %s", (world.pipeline.name,))
    client: Any = redis.Redis.from_url(world.settings.need("redis_url"))
    try:
        keys = list(client.scan_iter(match=f"almanac:{{{world.pipeline.name}}}:overlay:*", count=1000))
        for start in range(0, len(keys), 1000):
            client.delete(*keys[start : start + 1000])
    finally:
        client.close()


class Floor:
    """Online read and scoring in this process, one entity at a time."""

    def __init__(self, world: World, seconds: float) -> None:
        import redis

        from features.online_reading import Reader, decode_plan, plan_key

        self._world, self._seconds = world, seconds
        self._redis: Any = redis.Redis.from_url(world.settings.need("redis_url"))
        plan: Any = self._redis.get(plan_key(world.pipeline.features))
        self._reader = Reader(decode_plan(plan))
        self._scorer = Scorer.load(world.version, world.pipeline)

    def run(self) -> Mapping[str, Any]:
        """Answers a second, and the times of one."""
        draw, cells, taken = random.Random(1), self._world.grid.cells, []  # noqa: S311  no secret
        began = now = time.perf_counter()
        while now - began < self._seconds:
            self.answer(draw.randrange(cells))
            done = time.perf_counter()
            taken.append(done - now)
            now = done
        taken.sort()
        return {
            "rate": len(taken) / (now - began),
            "p50_ms": taken[len(taken) // 2] * 1000,
            "p99_ms": taken[len(taken) * 99 // 100] * 1000,
        }

    def answer(self, cell: int) -> dict[str, Any]:
        """One cell's predictions."""
        decoded = self._reader.decode(self._redis.mget(self._reader.keys([cell])), now=utc_now())
        return dict(self._scorer.score(decoded.columns))


def contenders_of(stack: ExitStack, world: World, cores: Cores, asked: Options) -> tuple[dict[str, Measure], Ours]:
    """How to measure each, and ours."""
    seconds = SECONDS_QUICK if asked.quick else SECONDS
    ours, floor = Ours(world, cores, seconds), Floor(world, seconds)

    def floor_on_its_core() -> Mapping[str, Any]:
        with on_core(cores.measured):
            return floor.run()

    found: dict[str, Measure] = {"ours": ours.run, "ours alone": ours.alone, "floor": floor_on_its_core}
    if asked.peers:
        port = free_port()
        told = {**world.for_peers(), "port": port}
        stack.enter_context(running_peer("feast", "fastapi_answer.py", told, cores.measured, world.settings.state_dir))
        url = f"http://127.0.0.1:{port}"
        wait_for(url, "/predictions/0", None, None)
        theirs = [get(url, f"/predictions/{cell}") for cell in range(1, world.grid.cells)]
        random.Random(1).shuffle(theirs)  # noqa: S311  no secret
        found["peer"] = lambda: drive(url, theirs, connections=CONNECTIONS, seconds=seconds).as_dict()
        found["peer alone"] = lambda: drive(url, theirs, connections=1, seconds=seconds).as_dict()
    return found, ours


def old_hour(world: World) -> datetime:
    """The oldest hour that has features."""
    return world.as_of - timedelta(hours=FEATURE_HOURS - 1)


def prepare(world: World) -> None:
    """Publish a generation of the oldest hour there is, and bring the newest features online."""
    from features.materialize.run import materialize

    Job(world).run(old_hour(world))
    materialize(world.pipeline, world.settings, world.as_of)


def profile(world: World, cores: Cores) -> None:
    """Say where the service's own time goes; scoring and writing back are in other threads."""
    forget(world)
    with on_core(cores.measured):
        profile_requests(world, requests("http://inside", world)[:PROFILED], "answer")


def main() -> None:
    """Measure, or profile, and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores, trees = Cores.choose(), trees_of(asked.quick)
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        say("making the world: features offline and online, model, an old generation")
        world = make_world(settings, asked.size(CELLS, CELLS_QUICK), trees=trees)
        prepare(world)
        stack.enter_context(on_core(cores.servers))
        if asked.profile:
            profile(world, cores)
            return
        contenders, ours = contenders_of(stack, world, cores, asked)
        found = in_turn(contenders, asked.rounds)

        def of(name: str) -> dict[str, float] | None:
            keys = ("rate", "p50_ms", "p99_ms")
            return {key: median(found[name], key) for key in keys} if name in found else None

        mine, floor, peer = of("ours") or {}, of("floor") or {}, of("peer")
        finish(
            {
                "name": "answer",
                "unit": "requests/s",
                "ours": mine["rate"],
                "peer": peer["rate"] if peer else None,
                "floor": floor["rate"],
                "ratio_peer": ratio(mine["rate"], peer["rate"] if peer else None),
                "ratio_floor": ratio(mine["rate"], floor["rate"]),
                "ratio_peer_p50": ratio(peer["p50_ms"] if peer else None, mine["p50_ms"]),
                "ratio_peer_p99": ratio(peer["p99_ms"] if peer else None, mine["p99_ms"]),
                "times": {"ours": mine, "peer": peer, "floor": floor},
                "one_connection": {"ours": of("ours alone"), "peer": of("peer alone")},
                "connections": CONNECTIONS,
                "cells": world.grid.cells,
                "trees": trees,
                "memory_mb": {"lookup": ours.memory_mb},
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
