"""What the scripts of peers share: JSON lines in and out, and a stopwatch of stages."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Request = dict[str, Any]


def answer(made: Callable[[Request], Callable[[Request], Any]], out: TextIO | None = None) -> None:
    """Answer requests until the input ends.

    Args:
        made: of the first line, the world, gives what answers each further one.
        out: where answers go; None for standard output.
    """
    run = made(json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=out, flush=True)


def lap(taken: dict[str, float], stage: str, began: float) -> float:
    """Note a stage's seconds; returns the time now."""
    now = time.perf_counter()
    taken[stage] = now - began
    return now
