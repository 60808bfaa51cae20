"""Kill at named moments, on servers of our own, under reads: `make crash PUBLISHES=10000`; 1 if anything is wrong.

Ctrl-C or SIGTERM ends it early, with the verdict on what was done until then.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from almanac.stack.servers import running_postgres, running_redis
from tests.crash.harness import Found
from tests.crash.lanes import crash
from tests.crash.shared import Shared

PUBLISHES = 10_000
LANES_MAX = 4
LINE_EVERY_SECONDS = 60.0


class Progress:
    """One line that changes on a terminal, one a minute elsewhere."""

    def __init__(self, publishes: int) -> None:
        self._publishes = publishes
        self._began = self._said = time.monotonic()

    def __call__(self, publishes: int, kills: int) -> None:
        """So far."""
        now = time.monotonic()
        shown = f"{publishes:,} of {self._publishes:,} publishes, {kills:,} kills, {now - self._began:.0f} s"
        if sys.stdout.isatty():
            print(f"\r{shown}", end="", flush=True)
        elif now - self._said >= LINE_EVERY_SECONDS:
            self._said = now
            print(shown, flush=True)


def stop_on_signals(shared: Shared) -> None:
    """The first signal ends the run in order, a second one at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        shared.stop()

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--publishes", type=int, default=PUBLISHES, help="how many to make")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of every choice")
    cores = min(LANES_MAX, len(os.sched_getaffinity(0)))
    parser.add_argument("--lanes", type=int, default=cores, help="pipelines at work at once (default: one a core)")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    shared = Shared(max(asked.lanes, 1))
    stop_on_signals(shared)
    print(f"SEED={asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="almanac-crash-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres has a user of its own
        (folder / "redis").mkdir()
        with running_postgres(folder / "postgres") as postgres_url, running_redis(folder / "redis") as redis_url:
            began = time.monotonic()
            told = Progress(asked.publishes)
            urls = (postgres_url, redis_url)
            found = crash(urls, folder, shared, seed=asked.seed, publishes=asked.publishes, told=told)
    print()
    report(found, time.monotonic() - began, interrupted=shared.stopping)
    return 1 if found.wrong else 0


def report(found: Found, seconds: float, *, interrupted: bool) -> None:
    """Print the verdict: a line a failpoint, what was wrong, and the summary as JSON."""
    for failpoint, count in sorted(found.kills.items()):
        print(f"{failpoint:28} {count:6,} kills")
    for line in found.wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    summary = {
        "publishes": found.publishes, "kills": sum(found.kills.values()), "failpoints": len(found.kills),
        "paused": found.paused, "superseded": found.superseded, "at_once": found.at_once,
        "rollbacks": found.rollbacks, "reads": found.reads, "unanswered": found.unanswered,
        "epochs_read": found.epochs_read, "wrong": len(found.wrong), "seconds": round(seconds),
        "publishes_per_second": round(found.publishes / seconds, 2), "interrupted": interrupted,
    }  # fmt: skip
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
