"""`make chaos [KILLS=20] [SEED=…] [TARGET=lookup] [STATE=…]`: kill -9 at random moments under reads, on a real stack.

Exits 0 only if no reader saw a mixed, partial or backward generation, no event was
lost or doubled, every run succeeded, and all was well within 30 s of every kill.
SIGUSR1 ends it early, with its account of the kills so far.
"""

from __future__ import annotations

import argparse
import os
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
RUNS_BESIDE_MAX = 200
START_SECONDS_MAX = 120


class Chaos:
    """The suite: what was killed, and what it came to. Each target has its own thread and its own dice."""

    def __init__(self, stack: Stack, seed: int, kills: int) -> None:
        self.stack, self.seed, self.count = stack, seed, kills
        self.book = Book()
        self.kills: list[Kill] = []
        self.runs: list[str] = []
        self._done = threading.Event()

    def dice(self, target: str) -> random.Random:
        """The random numbers of a target; the same for the same seed, whatever other targets do."""
        return random.Random(f"{self.seed} {target}")

    def note(self, kill: Kill) -> None:
        """Keep and print a kill."""
        self.kills.append(kill)
        verdict = "" if kill.in_time else f"  TOO LATE, waited for: {kill.waited_for}"
        who = f"seed {self.seed}  {kill.target:<9} {self.killed(kill.target):>3}"
        print(f"{who}  {kill.seconds:6.1f} s  load {os.getloadavg()[0]:4.1f}  {kill.moment}{verdict}", flush=True)
        if not kill.in_time:
            self.book.breach(f"{kill.target} {self.killed(kill.target)}: not well within {WELL_SECONDS_MAX:.0f} s")

    def killed(self, target: str) -> int:
        """How often a target was killed so far."""
        return sum(kill.target == target for kill in self.kills)

    def run(self, wanted: Mapping[str, int], chance: random.Random) -> None:
        """One batch run with so many kills of each wanted target, at most; by a model with predictions of its own."""
        register_model(self.stack.settings, declared("weather"), (len(self.runs) + 1) % BIASES * BIAS_STEP)
        key = floor_hour(utc_now()).strftime(PARTITION_KEY_FORMAT)
        run = Run(self.stack, chance, key, wanted, self.note)
        run.go()
        self.runs.append(run.state)
        if run.state != "success":
            self.book.breach(f"a run ended as {run.state}")

    def go(self, targets: list[str], events: Events) -> None:
        """Kill each target as often as wanted, all targets at once; runs go on until the last kill."""
        threads = [
            threading.Thread(target=self._kill_program, args=(target, events), name=target, daemon=True)
            for target in targets
            if target not in BATCH_TARGETS
        ]
        for thread in threads:
            thread.start()
        chance = self.dice("runs")
        while not self._done.is_set():
            left = {target: self.count - self.killed(target) for target in targets if target in BATCH_TARGETS}
            left = {target: min(count, RUN_KILLS_MAX[target]) for target, count in left.items() if count > 0}
            if not left and not any(thread.is_alive() for thread in threads):
                break
            if len(self.runs) > self.count * RUNS_PER_KILL_MAX + RUNS_BESIDE_MAX:
                self.book.breach(f"{left} could not be killed often enough")
                break
            self.run(left, chance)
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Kill no more once what is under way has ended."""
        self._done.set()

    def _kill_program(self, target: str, events: Events) -> None:
        chance = self.dice(target)
        while self.killed(target) < self.count and not self._done.is_set():
            self.note(
                kill_lookup(self.stack, chance) if target == "lookup" else kill_stream(self.stack, chance, events)
            )

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
    chaos.run({}, chaos.dice("first"))
    give_up_at = time.monotonic() + START_SECONDS_MAX
    while (why := healthy(chaos.stack)) is not None:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"chaos: not well before the first kill: {why}")
        time.sleep(1)


def main() -> int:
    """Run the suite."""
    words = argparse.ArgumentParser(prog="make chaos")
    words.add_argument("--kills", type=int, default=20)
    words.add_argument("--quick", action="store_true", help="one kill of each target: does it work?")
    words.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    words.add_argument("--target", choices=TARGETS, action="append")
    words.add_argument("--state", type=Path, help="a state directory to keep; default: a new one, removed afterwards")
    given = words.parse_args()
    if given.quick:
        given.kills = 1
    targets = given.target or list(TARGETS)
    state = given.state or Path(tempfile.mkdtemp(prefix="almanac-chaos-"))
    print(f"seed {given.seed}, {given.kills} kills each of {', '.join(targets)}", flush=True)
    stack = Stack(state)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way nothing is left running
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stack.up()
        chaos = Chaos(stack, given.seed, given.kills)
        signal.signal(signal.SIGUSR1, lambda *_: chaos.stop())
        first_generation(chaos)
        with Readers(stack, chaos.book, given.seed), Events(stack, given.seed) as events:
            chaos.go(targets, events)
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
