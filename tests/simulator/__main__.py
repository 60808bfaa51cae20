"""Live through many seeds: `make simulate SEEDS=100000`. Ends with 1 at the first seed at which something is wrong.

`--seed 42` replays one and prints its steps; `--bug NAME` plants a bug first.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext

from tests.simulator.bugs import BUGS, planted
from tests.simulator.readers import Violation
from tests.simulator.world import simulate

SEEDS = 1_000
SEEDS_PER_TASK = 100
WORKERS_MAX = 16


def live(first: int, count: int) -> tuple[int, int, int, str]:
    """Seeds lived through, moves of the pointer and kills in them, and the first violation."""
    logging.disable(logging.CRITICAL)
    moves = kills = 0
    for seed in range(first, first + count):
        try:
            world = simulate(seed)
        except Violation as violation:
            return seed - first, moves, kills, str(violation)
        moves, kills = moves + len(world.moves), kills + world.hub.kills
    return count, moves, kills, ""


def tasks(first: int, count: int) -> Iterator[tuple[int, int]]:
    """The seeds in pieces."""
    for start in range(first, first + count, SEEDS_PER_TASK):
        yield start, min(SEEDS_PER_TASK, first + count - start)


def many(first: int, count: int) -> int:
    """Live through seeds on every core."""
    began, done, moves, kills = time.monotonic(), 0, 0, 0
    pieces = list(tasks(first, count))
    with ProcessPoolExecutor(min(WORKERS_MAX, os.cpu_count() or 1)) as pool:
        for lived, moved, killed, wrong in pool.map(live, *zip(*pieces, strict=True)):
            done, moves, kills = done + lived, moves + moved, kills + killed
            if sys.stdout.isatty():
                print(f"\r{done:,} of {count:,} seeds", end="", flush=True)
            if wrong:
                pool.shutdown(cancel_futures=True)
                print(f"\n{wrong}", file=sys.stderr)
                return 1
    seconds = time.monotonic() - began
    print(f"\r{done:,} seeds, {moves:,} moves of the pointer, {kills:,} kills, nothing wrong, in {seconds:.0f} s")
    print(json.dumps({"seeds": done, "moves": moves, "kills": kills, "seconds": round(seconds, 1), "wrong": 0}))
    return 0


def one(seed: int, bug: str | None) -> int:
    """Replay a seed."""
    logging.disable(logging.CRITICAL)
    try:
        with planted(bug) if bug else nullcontext():
            world = simulate(seed)
    except Violation as violation:
        print(violation, file=sys.stderr)
        return 1
    print("\n".join(world.hub.trace))
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many to live through")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one and print its steps")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant a bug before replaying")
    asked = parser.parse_args()
    return many(asked.first, asked.seeds) if asked.seed is None else one(asked.seed, asked.bug)


if __name__ == "__main__":
    sys.exit(main())
