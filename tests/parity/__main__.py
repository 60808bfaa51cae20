"""`python -m tests.parity [--customers 10000] [--seed 1]`: what `make parity` runs; exit code 1 on any difference."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import Any

from tests.parity.cells import Cells
from tests.parity.shoppers import World


def main() -> int:
    """Compare all three ways, of lists and of numbers."""
    parser = argparse.ArgumentParser(prog="make parity", description=__doc__)
    parser.add_argument("--customers", type=int, default=10_000, help="customers, and cells, each at a moment")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    wrong = 0
    ways: tuple[tuple[str, Any], ...] = (("lists", World.of), ("numbers", Cells.of))
    for name, made in ways:
        began = time.monotonic()
        world = made(given.customers, given.seed)
        batch: dict[Any, Any] = dict(world.batch())
        stream: dict[Any, Any] = dict(world.stream())
        fresh: dict[Any, Any] = dict(world.fresh())
        for way, found in (("stream", stream), ("fresh computation", fresh)):
            unlike = [key for key in batch.keys() | found.keys() if batch.get(key) != found.get(key)]
            wrong += len(unlike)
            named = f"; the first: {unlike[0]}: {batch.get(unlike[0])} and {found.get(unlike[0])}" if unlike else ""
            print(f"{name}: {len(batch):,} of batch, {len(unlike):,} unlike in {way}{named}", flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s, seed {given.seed}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
