"""Kill at named moments, on servers of our own, under reads: `make crash PUBLISHES=10000`; 1 if anything is wrong."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

from almanac.stack.servers import running_postgres, running_redis
from tests.crash.harness import Found, Harness

PUBLISHES = 10_000


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--publishes", type=int, default=PUBLISHES, help="how many to make")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of every choice")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"SEED={asked.seed}", flush=True)
    began = time.monotonic()

    def told(found: Found) -> None:
        if sys.stdout.isatty():
            print(f"\r{found.publishes:,} publishes, {found.kills.total():,} kills", end="", flush=True)

    with tempfile.TemporaryDirectory(prefix="almanac-crash-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres has a user of its own
        (folder / "redis").mkdir()
        with running_postgres(folder / "postgres") as postgres_url, running_redis(folder / "redis") as redis_url:
            found = Harness((postgres_url, redis_url), folder, asked.seed).run(asked.publishes, told)
    print()
    for failpoint, count in sorted(found.kills.items()):
        print(f"{failpoint:28} {count:6,} kills")
    for line in found.wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    summary = {
        "publishes": found.publishes, "kills": found.kills.total(), "failpoints": len(found.kills),
        "paused": found.paused, "at_once": found.at_once, "rollbacks": found.rollbacks, "reads": found.reads,
        "epochs_read": found.epochs_read, "wrong": len(found.wrong), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    print(json.dumps(summary))
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
