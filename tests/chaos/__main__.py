"""`make chaos [KILLS=20] [SEED=…] [TARGET=lookup] [STATE=…]`: kill -9 at random moments under reads, on a real stack.

Exits 0 only if no reader saw a mixed, partial or backward generation, no event was
lost or doubled, every run succeeded, and all was well within 30 s of every kill.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from almanac.clock import PARTITION_KEY_FORMAT, floor_hour, utc_now
from almanac.declarations import pipeline as declared
from tests.chaos.book import Book
from tests.chaos.events import Events, settle
from tests.chaos.readers import Readers
from tests.chaos.stack import Stack
from tests.chaos.targets import (
    RUN_KILLS_MAX,
    TARGETS,
    WELL_SECONDS_MAX,
    Kill,
    Run,
    healthy,
    kill_lookup,
    kill_stream,
)
from tests.streams import register_model

BIAS_STEP = 0.125
BIASES = 200
BATCH_TARGETS = ("score", "publish", "scheduler")
RUNS_PER_KILL_MAX = 2
START_SECONDS_MAX = 120


class Chaos:
    """The suite: what was killed, and what it came to."""

    def __init__(self, stack: Stack, seed: int, kills: int) -> None:
        self.stack, self.chance, self.count = stack, random.Random(seed), kills
        self.seed = seed
        self.book = Book()
        self.kills: list[Kill] = []
        self.runs: list[str] = []
        self._started = 0
        self._turn = threading.Lock()

    def note(self, kill: Kill) -> None:
        """Keep and print a kill."""
        self.kills.append(kill)
        verdict = "" if kill.in_time else f"  TOO LATE, waited for: {kill.waited_for}"
        number = sum(found.target == kill.target for found in self.kills)
        print(
            f"seed {self.seed}  {kill.target:<9} {number:>3}  {kill.seconds:6.1f} s  {kill.moment}{verdict}", flush=True
        )
        if not kill.in_time:
            self.book.breach(f"{kill.target} {number}: not well within {WELL_SECONDS_MAX:.0f} s")

    def run(self, wanted: Mapping[str, int]) -> None:
        """One batch run with so many kills of each wanted target, at most."""
        with self._turn:  # runs of one DAG come one after another anyway
            self._started += 1
            register_model(self.stack.settings, declared("weather"), self._started % BIASES * BIAS_STEP)
            key = floor_hour(utc_now()).strftime(PARTITION_KEY_FORMAT)
            run = Run(self.stack, self.chance, key, wanted)
            run.go()
        self.runs.append(run.state)
        for kill in run.kills:
            self.note(kill)
        if run.state != "success":
            self.book.breach(f"a run ended as {run.state}")

    def batch(self, targets: set[str]) -> None:
        """Runs until each target was killed as often as wanted."""
        for _ in range(self.count * RUNS_PER_KILL_MAX):
            if not (left := self._left(targets)):
                return
            self.run({target: min(count, RUN_KILLS_MAX[target]) for target, count in left.items()})
        if left := self._left(targets):
            self.book.breach(f"{left} could not be killed often enough")

    def _left(self, targets: set[str]) -> dict[str, int]:
        left = {target: self.count - sum(kill.target == target for kill in self.kills) for target in targets}
        return {target: count for target, count in left.items() if count > 0}

    def programs(self, targets: list[str], events: Events) -> None:
        """Kill programs while runs go on beside."""
        done = threading.Event()
        beside = threading.Thread(target=self._runs_beside, args=(done,), name="runs")
        beside.start()
        try:
            for _ in range(self.count):
                for target in targets:
                    self.note(
                        kill_lookup(self.stack, self.chance)
                        if target == "lookup"
                        else kill_stream(self.stack, self.chance, events)
                    )
        finally:
            done.set()
            beside.join()

    def _runs_beside(self, done: threading.Event) -> None:
        while not done.is_set():
            self.run({})

    def report(self) -> int:
        """Print the summary; the exit code."""
        print(f"\nseed {self.seed}: seconds until all was well (promised: {WELL_SECONDS_MAX:.0f})")
        print(f"{'target':<10}{'kills':>6}{'median':>8}{'max':>8}")
        for target in TARGETS:
            seconds = [kill.seconds for kill in self.kills if kill.target == target]
            if seconds:
                print(f"{target:<10}{len(seconds):>6}{statistics.median(seconds):>8.1f}{max(seconds):>8.1f}")
        longest = ", ".join(f"{name} {gap:.1f} s" for name, gap in sorted(self.book.gaps.items()))
        print(f"runs: {len(self.runs)}, of them success {self.runs.count('success')}; epochs {len(self.book.as_of)}")
        print(f"answers checked: {self.book.answers}; longest time without one: {longest}")
        for breach in self.book.breaches:
            print(f"breach: {breach}")
        print("nothing was breached" if not self.book.breaches else f"{len(self.book.breaches)} breaches")
        return 1 if self.book.breaches else 0


def first_generation(chaos: Chaos) -> None:
    """A generation to read, and everything healthy, before the first kill."""
    chaos.run({})
    give_up_at = time.monotonic() + START_SECONDS_MAX
    while (why := healthy(chaos.stack)) is not None:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"chaos: not well before the first kill: {why}")
        time.sleep(1)


def main() -> int:
    """Run the suite."""
    words = argparse.ArgumentParser(prog="make chaos")
    words.add_argument("--kills", type=int, default=20)
    words.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    words.add_argument("--target", choices=TARGETS, action="append")
    words.add_argument("--state", type=Path, help="a state directory to keep; default: a new one, removed afterwards")
    given = words.parse_args()
    targets = given.target or list(TARGETS)
    state = given.state or Path(tempfile.mkdtemp(prefix="almanac-chaos-"))
    print(f"seed {given.seed}, {given.kills} kills each of {', '.join(targets)}", flush=True)
    stack = Stack(state)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way nothing is left running
    try:
        stack.up()
        chaos = Chaos(stack, given.seed, given.kills)
        first_generation(chaos)
        with Readers(stack, chaos.book, given.seed), Events(stack, given.seed) as events:
            if programs := [target for target in targets if target not in BATCH_TARGETS]:
                chaos.programs(programs, events)
            if batch := {target for target in targets if target in BATCH_TARGETS}:
                chaos.batch(batch)
            events.stop()
            counts = settle(stack, events, chaos.book)
        print(f"\n{chaos.book.compare()} answers of generations compared with their rows; {counts}")
        return chaos.report()
    finally:
        stack.down()
        if given.state is None:
            shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
