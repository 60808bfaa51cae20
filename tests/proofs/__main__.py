"""Run every benchmark and drill in its shortest form: `make proofs [NAME="crash bench batch"]`; 1 if one fails.

The shortest form shows that a proof still runs. It measures nothing, and finds less than the whole. Each commit begins
at another proof, so that on a slow machine, where time runs out, it is not always the same ones that are not run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

from tests.proofs.orphans import Orphans
from tests.proofs.plan import commits, proofs, rotated
from tests.proofs.run import run_all

MINUTES_MAX = 20.0


def main() -> int:
    """The command line."""
    planned = proofs()
    names = [proof.name for proof in planned]
    parser = argparse.ArgumentParser(prog="make proofs", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which (default: all): {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=MINUTES_MAX, help="that all may take together")
    parser.add_argument("--list", action="store_true", help="name them and run nothing")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(names)):
        parser.error(f"there is no proof named {unknown[0]!r}: choose of {', '.join(names)}")
    if asked.list:
        print("\n".join(names))
        return 0
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the proof under way in order
    orphans = Orphans()
    chosen = [proof for proof in rotated(planned, commits()) if not asked.names or proof.name in asked.names]
    try:
        outcomes = run_all(chosen, asked.minutes * 60, lambda text: print(text, flush=True), orphans)
    finally:
        orphans.end()
    counts = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in ("passed", "failed")}
    failed, late = ([one.name for one in outcomes if one.verdict == verdict] for verdict in ("failed", "not run"))
    print(
        f"{time.monotonic() - began:.0f} s; failed: {', '.join(failed) or 'none'}; not run: {', '.join(late) or 'none'}"
    )
    others = len(outcomes) - sum(counts.values())
    print(f"proofs: {counts['passed']} passed, {counts['failed']} failed, {others} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
