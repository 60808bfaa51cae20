"""`python -m tests.parity [--customers 10000] [--seed 1] [--form servers]`: what `make parity` runs.

Two forms: by the functions that batch, stream and lookup call, in seconds; and through real servers, in minutes.
Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import warnings
from importlib import import_module
from typing import Any

FORMS = ("functions", "servers")
LEAST, MOST = 2, 10_000
QUICK = 100


def main() -> int:
    """Compare all three ways, of lists and of numbers."""
    parser = argparse.ArgumentParser(prog="make parity", description=__doc__)
    parser.add_argument("--customers", type=int, default=MOST, help="customers, and cells, each at a moment")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} customers: does it work?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--form", choices=FORMS, help="one form alone (default: both)")
    parser.add_argument("--pipeline", choices=("shop", "weather"), help="through servers one alone (default: both)")
    given = parser.parse_args()
    if given.quick:
        given.customers = QUICK
    if not LEAST <= given.customers <= MOST:
        parser.error(f"--customers {given.customers}: give {LEAST} to {MOST:,}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers are ended in order
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    wrong = 0
    if given.form != "servers":
        wrong += by_functions(given.customers, given.seed)
    if given.form != "functions":
        for pipeline in [given.pipeline] if given.pipeline else ["shop", "weather"]:
            wrong += through_servers(pipeline, given.customers, given.seed)
    return 1 if wrong else 0


def by_functions(customers: int, seed: int) -> int:
    """The first form; how many are unlike."""
    from tests.parity.cells import Cells
    from tests.parity.shoppers import World

    wrong = 0
    ways: tuple[tuple[str, Any], ...] = (("lists", World.of), ("numbers", Cells.of))
    for name, made in ways:
        began = time.monotonic()
        world = made(customers, seed)
        batch: dict[Any, Any] = dict(world.batch())
        stream: dict[Any, Any] = dict(world.stream())
        fresh: dict[Any, Any] = dict(world.fresh())
        for way, found in (("stream", stream), ("fresh computation", fresh)):
            unlike = [key for key in batch.keys() | found.keys() if batch.get(key) != found.get(key)]
            wrong += len(unlike)
            named = f"; the first: {unlike[0]}: {batch.get(unlike[0])} and {found.get(unlike[0])}" if unlike else ""
            print(f"{name}: {len(batch):,} of batch, {len(unlike):,} unlike in {way}{named}", flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s, seed {seed}", flush=True)
    return wrong


def through_servers(name: str, customers: int, seed: int) -> int:
    """The second form, of one pipeline; how many are unlike."""
    from almanac.clock import utc_now
    from almanac.declarations import pipeline
    from tests.parity.served import agree, served

    began = time.monotonic()

    def told(text: str) -> None:
        print(f"{name} through servers: {text}, {time.monotonic() - began:.0f} s", flush=True)

    now = utc_now()
    of: Any = import_module(f"tests.parity.rounds_{name}")
    with served(pipeline(name), of, customers, now) as found:
        told("trained and serving")
        unlike = agree(found, of.rounds(found.places(), customers, seed, now), told)
    told(f"{customers:,} compared item by item and bit by bit, {len(unlike):,} unlike, seed {seed}")
    return len(unlike)


if __name__ == "__main__":
    sys.exit(main())
