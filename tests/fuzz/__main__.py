"""Throw mutated inputs at each door: `make fuzz [DOOR=events]`; 1 if anything is wrong.

Each door has a process of its own, so that one that is ended by an input is noticed, and its round can be replayed.
"""

from __future__ import annotations

import argparse
import logging
import os
import pkgutil
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from tests.fuzz import doors
from tests.fuzz.runner import Door, fuzz

INPUTS = 100_000
SECONDS = 900.0
QUICK_SECONDS = 30.0
QUICK_AT_ONCE = 2
"""How many doors a short run opens at once: it measures no rate."""
OPENING_SECONDS_MAX = 300.0
"""How much longer a door's process may take than it sends inputs."""
ENDING_SECONDS_MAX = 60.0
"""From SIGTERM, at which a door ends its servers, to SIGKILL."""
POLL_SECONDS = 0.1


def main() -> int:
    """The command line."""
    names = sorted(module.name for module in pkgutil.iter_modules(doors.__path__))
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--door", action="append", choices=names, help="which (default: all)")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="how many for each door at most")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long for each door at most")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:.0f} s for each door: does it work?")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of every choice")
    parser.add_argument("--at-once", type=int, help=f"how many doors (default: 1, and {QUICK_AT_ONCE} with --quick)")
    parser.add_argument("--round", type=int, help="replay one round of a door")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # this is the process of one door
    asked = parser.parse_args()
    if asked.quick:
        asked.seconds = QUICK_SECONDS
    asked.at_once = max(1, asked.at_once or (QUICK_AT_ONCE if asked.quick else 1))
    if asked.here is not None:
        return _one(asked)
    print(f"SEED={asked.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # doors are ended in order
    wrong = _wrong(asked.door or names, asked)
    print(f"fuzz: {len(asked.door or names)} doors, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


class _Run:
    """One door in a process of its own, and the number of the round that it is in."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        self.name, self._seed, self._limit = name, asked.seed, asked.seconds + OPENING_SECONDS_MAX
        self._folder = tempfile.TemporaryDirectory(prefix="almanac-fuzz-round-")
        self._note = Path(self._folder.name) / "round"
        self._note.write_text("0")
        words = ["--door", name, "--here", str(self._note), "--seed", str(asked.seed), "--inputs", str(asked.inputs)]
        words += ["--seconds", str(asked.seconds), *(["--quick"] if asked.quick else [])]
        words += ["--round", str(asked.round)] if asked.round is not None else []
        self._began = time.monotonic()
        self._process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "tests.fuzz", *words])

    def right(self) -> bool | None:
        """Whether nothing was wrong; None while it runs."""
        code, ended = self._process.poll(), ""
        if code is None:
            if time.monotonic() - self._began < self._limit:
                return None
            ended = f"it did not end within {self._limit:.0f} s"
        elif code < 0:
            ended = f"its process was ended by {signal.Signals(-code).name}"
        if ended:
            print(f"{self.name}: WRONG: {ended}", flush=True)
        if ended or code:
            again = f"python -m tests.fuzz --door {self.name} --seed {self._seed} --round {self._note.read_text()}"
            print(f"  again: {again}", flush=True)
        return not ended and code == 0

    def end(self) -> None:
        """End the process if it still runs; its servers end with it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(ENDING_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.cleanup()


def _wrong(names: list[str], asked: argparse.Namespace) -> list[str]:
    """Run these doors, so many at once; the names of those where something was wrong."""
    waiting, running, wrong = list(names), list[_Run](), list[str]()
    try:
        while waiting or running:
            while waiting and len(running) < asked.at_once:
                running.append(_Run(waiting.pop(0), asked))
            for run in list(running):
                right = run.right()
                if right is None:
                    continue
                running.remove(run)
                run.end()
                wrong += [] if right else [run.name]
            time.sleep(POLL_SECONDS)
    finally:
        for run in running:
            run.end()
    return wrong


def _one(asked: argparse.Namespace) -> int:
    (name,) = asked.door
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers are ended in order
    door: Door = import_module(f"{doors.__name__}.{name}").DOOR
    descriptor = os.open(asked.here, os.O_WRONLY)
    report = fuzz(  # what an input raises ends this process with its traceback
        door,
        seed=asked.seed,
        inputs=asked.inputs,
        seconds=asked.seconds,
        begin=lambda number: _note(descriptor, number),
        only_round=asked.round,
    )
    lines = [f"{name}: {report.summary}"]
    lines += [f"  {count:9,}  {reason}" for reason, count in report.by_reason.most_common()]
    if report.unreached:
        lines.append(f"  not reached: {', '.join(report.unreached)}")
    whole = not asked.quick and asked.round is None
    wrong = [*report.wrong, *(["reasons were not reached"] if whole and report.unreached else [])]
    lines += [f"{name}: WRONG: {line}" for line in wrong]
    print("\n".join(lines), flush=True)  # at once, for another door may write at the same moment
    return 1 if wrong else 0


def _note(descriptor: int, number: int) -> None:
    text = str(number).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


if __name__ == "__main__":
    sys.exit(main())
