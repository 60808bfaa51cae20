"""The lookup service: requests a second and their times, over a generation that the batch job published.

    make bench NAME=lookup

Three requests: one cell (GET), a hundred cells (POST), a point on the map (GET).
The floor is constant bytes of the same length from the same HTTP server with
the same settings. The peer is Feast's feature server on the same Redis, with
the same four numbers a cell as features, for one cell and for a hundred.
The services have the measured core for themselves, one worker each; Redis and
the load generator share the other. 16 connections, each with one request under
way; `one_connection` has the times of a single caller.

World: 10,000 cells (`--rows`) in tiles of 256.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from almanac.stack.server import free_port
from benchmarks.batch import Job
from benchmarks.inside import profile_requests
from benchmarks.load import Load, drive, get, post
from benchmarks.measuring import (
    Cores,
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
from benchmarks.reference import TREES_QUICK, World, make_world
from benchmarks.servers import running_servers
from benchmarks.services import running_constant, running_lookup, wait_for

CELLS, CELLS_QUICK = 10_000, 2_000
ROUNDS = 3
CONNECTIONS = 16
SECONDS, SECONDS_QUICK = 4.0, 0.3
REQUESTS = 1_000  # different ones, then round again
MANY = 100
KINDS = ("one", "hundred", "point")


def our_requests(url: str, world: World) -> dict[str, list[bytes]]:
    """Requests of each kind, cells and points drawn at random (always the same ones)."""
    draw = random.Random(1)  # noqa: S311  no secret
    grid, name = world.grid, world.pipeline.name
    cells = range(grid.cells)
    points = [grid.position(draw.choice(cells)) for _ in range(REQUESTS)]
    return {
        "one": [get(url, f"/v1/{name}/entities/{draw.choice(cells)}") for _ in range(REQUESTS)],
        "hundred": [
            post(url, f"/v1/{name}/entities:lookup", json.dumps({"entities": draw.sample(cells, MANY)}).encode())
            for _ in range(REQUESTS // 10)
        ],
        "point": [get(url, f"/v1/{name}/point?lat={lat:.4f}&lon={lon:.4f}") for lat, lon in points],
    }


def feast_requests(url: str, world: World) -> dict[str, list[bytes]]:
    """The same cells, asked of Feast's feature server."""
    draw = random.Random(1)  # noqa: S311  no secret
    cells = range(world.grid.cells)

    def asked(count: int) -> bytes:
        entities = {"cell_id": draw.sample(cells, count)}
        body = {"feature_service": "predictions", "entities": entities}
        return post(url, "/get-online-features", json.dumps(body).encode())

    return {"one": [asked(1) for _ in range(REQUESTS)], "hundred": [asked(MANY) for _ in range(REQUESTS // 10)]}


def contenders_of(
    stack: ExitStack, world: World, cores: Cores, asked: Options
) -> tuple[dict[str, Callable[[], Mapping[str, Any]]], dict[str, float]]:
    """Start every service; how to measure each, and the memory of each process."""
    seconds = SECONDS_QUICK if asked.quick else SECONDS
    core = cores.measured

    def measure(url: str, requests: list[bytes], connections: int = CONNECTIONS) -> Callable[[], Mapping[str, Any]]:
        return lambda: drive(url, requests, connections=connections, seconds=seconds).as_dict()

    ours = stack.enter_context(running_lookup(world, free_port(), core))
    requests = our_requests(ours.url, world)
    seen: dict[str, Load] = {kind: drive(ours.url, requests[kind], connections=1, seconds=0.1) for kind in KINDS}
    found = {f"ours {kind}": measure(ours.url, requests[kind]) for kind in KINDS}
    found["ours alone"] = measure(ours.url, requests["one"], 1)
    sizes = (seen["one"].body_bytes, seen["hundred"].body_bytes)
    floor = stack.enter_context(running_constant(world, free_port(), core, sizes))
    for kind in ("one", "hundred"):
        found[f"floor {kind}"] = measure(floor.url, our_requests(floor.url, world)[kind])
    if asked.peers:
        port = free_port()
        told = {**world.for_peers(), "port": port}
        stack.enter_context(running_peer("feast", "feast_server.py", told, core, world.settings.state_dir))
        url = f"http://127.0.0.1:{port}"
        wait_for(url, "/health", None, None)
        for kind, theirs in feast_requests(url, world).items():
            found[f"peer {kind}"] = measure(url, theirs)
        found["peer alone"] = measure(url, feast_requests(url, world)["one"], 1)
    return found, {"lookup": ours.memory_mb()}


def result_of(found: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    """Figures and ratios of each kind of request."""

    def of(name: str) -> dict[str, float] | None:
        if name not in found:
            return None
        return {key: median(found[name], key) for key in ("rate", "p50_ms", "p99_ms", "busy", "body_bytes")}

    nested: dict[str, Any] = {}
    for kind in KINDS:
        ours = of(f"ours {kind}")
        floor, peer = of(f"floor {'hundred' if kind == 'hundred' else 'one'}"), of(f"peer {kind}")
        assert ours is not None  # noqa: S101  measured above
        nested[kind] = {
            "ours": ours,
            "floor": floor,
            "peer": peer,
            "ratio_floor": ratio(ours["rate"], floor["rate"] if floor else None),
            "ratio_peer": ratio(ours["rate"], peer["rate"] if peer else None),
            "ratio_peer_p50": ratio(peer["p50_ms"] if peer else None, ours["p50_ms"]),
        }
    return {**nested, "one_connection": {"ours": of("ours alone"), "peer": of("peer alone")}}


def main() -> None:
    """Measure, or profile, and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores = Cores.choose()
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        say("making the world: features, model, a published generation")
        world = make_world(settings, asked.size(CELLS, CELLS_QUICK), trees=TREES_QUICK)
        Job(world).run()
        stack.enter_context(on_core(cores.servers))
        if asked.profile:
            profile(world, cores)
            return
        contenders, memory = contenders_of(stack, world, cores, asked)
        found = result_of(in_turn(contenders, asked.rounds))
        one = found["one"]
        finish(
            {
                "name": "lookup",
                "unit": "requests/s",
                "ours": one["ours"]["rate"],
                "peer": one["peer"] and one["peer"]["rate"],
                "floor": one["floor"]["rate"],
                "ratio_peer": one["ratio_peer"],
                "ratio_floor": one["ratio_floor"],
                **found,
                "connections": CONNECTIONS,
                "cells": world.grid.cells,
                "memory_mb": memory,
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


def profile(world: World, cores: Cores) -> None:
    """Say for each kind of request where the service's own time goes."""
    with on_core(cores.measured):
        for kind, requests in our_requests("http://inside", world).items():
            profile_requests(world, requests, f"lookup, {kind}")


if __name__ == "__main__":
    run(main)
