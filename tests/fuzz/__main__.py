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
from importlib import import_module
from pathlib import Path

from tests.fuzz import doors
from tests.fuzz.runner import Door, fuzz

INPUTS = 100_000
SECONDS = 900.0
QUICK_SECONDS = 30.0
OPENING_SECONDS_MAX = 300.0
"""How much longer a door's process may take than it sends inputs."""


def main() -> int:
    """The command line."""
    names = sorted(module.name for module in pkgutil.iter_modules(doors.__path__))
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--door", action="append", choices=names, help="which (default: all)")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="how many for each door at most")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long for each door at most")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:.0f} s for each door: does it work?")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of every choice")
    parser.add_argument("--round", type=int, help="replay one round of a door")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # this is the process of one door
    asked = parser.parse_args()
    if asked.quick:
        asked.seconds = QUICK_SECONDS
    if asked.here is not None:
        return _one(asked)
    print(f"SEED={asked.seed}", flush=True)
    wrong = [name for name in asked.door or names if not _in_a_process(name, asked)]
    print(f"fuzz: {len(asked.door or names)} doors, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def _in_a_process(name: str, asked: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory(prefix="almanac-fuzz-round-") as folder:
        note = Path(folder) / "round"
        note.write_text("0")
        words = ["--door", name, "--here", str(note), "--seed", str(asked.seed), "--inputs", str(asked.inputs)]
        words += ["--seconds", str(asked.seconds), *(["--quick"] if asked.quick else [])]
        words += ["--round", str(asked.round)] if asked.round is not None else []
        limit = asked.seconds + OPENING_SECONDS_MAX
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "tests.fuzz", *words])
        try:
            code = process.wait(limit)
            ended = f"its process was ended by {signal.Signals(-code).name}" if code < 0 else ""
        except subprocess.TimeoutExpired:
            ended = f"it did not end within {limit:.0f} s"
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(OPENING_SECONDS_MAX)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if ended:
            print(f"{name}: WRONG: {ended}", flush=True)
        if ended or code:
            print(
                f"  again: python -m tests.fuzz --door {name} --seed {asked.seed} --round {note.read_text()}",
                flush=True,
            )
        return not ended and code == 0


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
    print(f"{name}: {report.summary}")
    for reason, count in report.by_reason.most_common():
        print(f"  {count:9,}  {reason}")
    if report.unreached:
        print(f"  not reached: {', '.join(report.unreached)}")
    whole = not asked.quick and asked.round is None
    wrong = [*report.wrong, *(["reasons were not reached"] if whole and report.unreached else [])]
    for line in wrong:
        print(f"{name}: WRONG: {line}")
    return 1 if wrong else 0


def _note(descriptor: int, number: int) -> None:
    text = str(number).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


if __name__ == "__main__":
    sys.exit(main())
