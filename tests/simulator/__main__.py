"""Live through many seeds: `make simulate SEEDS=100000`. Ends with 1 at the first seed at which something is wrong.
Ctrl-C or SIGTERM ends it early, with the verdict on what was done until then.

`--seed 42` replays one and prints its steps; `--bug NAME` plants a bug first.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field

from tests.long_runs import Progress, hear_nothing, stop_on_signals
from tests.simulator.bugs import BUGS, planted
from tests.simulator.readers import Violation
from tests.simulator.world import simulate

SEEDS = 1_000
QUICK_SEEDS = 200
SEEDS_PER_TASK = 25
WORKERS_MAX = 16
POLL_SECONDS = 1.0


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


@dataclass
class Lived:
    """What became of all seeds so far."""

    seeds: int = 0
    moves: int = 0
    kills: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, seeds: int, moves: int, kills: int, wrong: str) -> None:
        """One piece."""
        self.seeds, self.moves, self.kills = self.seeds + seeds, self.moves + moves, self.kills + kills
        self.wrong += [wrong] if wrong else []


def many(first: int, count: int) -> int:
    """Live through seeds on every core, until all are done, one is wrong, or a signal comes."""
    told = threading.Event()
    stop_on_signals(told.set)
    progress, lived = Progress(), Lived()
    with ProcessPoolExecutor(min(WORKERS_MAX, len(os.sched_getaffinity(0))), initializer=hear_nothing) as pool:
        waiting = {pool.submit(live, *piece) for piece in tasks(first, count)}
        while waiting and not told.is_set() and not lived.wrong:
            done, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for piece in done:
                lived.add(*piece.result())
            progress.say(f"{lived.seeds:,} of {count:,} seeds")
        for piece in [piece for piece in waiting if not piece.cancel()]:  # those that are being lived through
            lived.add(*piece.result())
    for wrong in lived.wrong:
        print(f"\n{wrong}", file=sys.stderr)
    print(f"\r{lived.seeds:,} seeds, {lived.moves:,} moves of the pointer, {lived.kills:,} kills, "
          f"{'something' if lived.wrong else 'nothing'} wrong, in {progress.seconds:.0f} s")  # fmt: skip
    summary = {
        "seeds": lived.seeds, "moves": lived.moves, "kills": lived.kills, "seconds": round(progress.seconds, 1),
        "seeds_per_second": round(lived.seeds / progress.seconds, 1), "interrupted": told.is_set(),
        "wrong": len(lived.wrong),
    }  # fmt: skip
    print(json.dumps(summary))
    return 1 if lived.wrong else 0


def one(seed: int, bug: str | None) -> int:
    """Replay a seed."""
    logging.disable(logging.CRITICAL)
    try:
        with planted(bug) if bug else nullcontext():
            world = simulate(seed)
    except Violation as violation:
        print(violation, file=sys.stderr)
        return 1
    print("\n".join(world.hub.told()))
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many to live through")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds: does it work?")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one and print its steps")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant a bug before replaying")
    asked = parser.parse_args()
    seeds = QUICK_SEEDS if asked.quick else asked.seeds
    return many(asked.first, seeds) if asked.seed is None else one(asked.seed, asked.bug)


if __name__ == "__main__":
    sys.exit(main())
