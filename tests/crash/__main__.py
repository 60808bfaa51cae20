"""Kill at named moments, on servers of our own, under reads: `make crash PUBLISHES=10000`; 1 if anything is wrong.

Ctrl-C or SIGTERM ends it early, with the verdict on what was done until then.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from pathlib import Path

from almanac.stack.servers import running_postgres, running_redis
from tests.crash.bugs import BUGS
from tests.crash.harness import Found
from tests.crash.lanes import crash
from tests.crash.shared import Shared
from tests.long_runs import Progress, stop_on_signals

PUBLISHES = 10_000
QUICK_PUBLISHES = 100
LANES_MAX = 4


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--publishes", type=int, default=PUBLISHES, help="how many to make")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PUBLISHES} publishes: does it work?")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of every choice")
    cores = min(LANES_MAX, len(os.sched_getaffinity(0)))
    parser.add_argument("--lanes", type=int, default=cores, help="pipelines at work at once (default: one a core)")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant a bug first")
    asked = parser.parse_args()
    if asked.quick:
        asked.publishes = QUICK_PUBLISHES
    if asked.bug is not None:
        BUGS[asked.bug]()
    logging.disable(logging.CRITICAL)
    shared = Shared(max(asked.lanes, 1))
    stop_on_signals(shared.stop)
    print(f"SEED={asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="almanac-crash-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres has a user of its own
        (folder / "redis").mkdir()
        with running_postgres(folder / "postgres") as postgres_url, running_redis(folder / "redis") as redis_url:
            progress = Progress()

            def told(publishes: int, kills: int) -> None:
                progress.say(f"{publishes:,} of {asked.publishes:,} publishes, {kills:,} kills")

            urls = (postgres_url, redis_url)
            found = crash(urls, folder, shared, seed=asked.seed, publishes=asked.publishes, told=told)
    print()
    report(found, progress.seconds, interrupted=shared.stopping())
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
