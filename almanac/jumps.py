"""The hook before a generation becomes current: does it differ so much from the one before that one should look?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from almanac.checking import need_a, need_number

if TYPE_CHECKING:
    from almanac.end_manifest import EndManifest, OutputSummary


@dataclass(frozen=True, kw_only=True)
class Jump:
    """How far a generation may differ from the one before. What differs more raises an alert, or is refused.

    Args:
        rows: change of the number of rows, as a share of what it was.
        mean: change of an output's mean, as a share of the range that its values had.
        spread: how many times as wide an output's range may become.
        nulls: growth of an output's share of nulls.
        refuse: reject the generation, rather than publish it with an alert.

    Raises:
        DeclarationError: a limit is no number, or below 0.
    """

    rows: float = 0.5
    mean: float = 0.5
    spread: float = 3.0
    nulls: float = 0.1
    refuse: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "mean", "spread", "nulls"):
            need_number(f"Jump.{name}", getattr(self, name), 0, math.inf)
        need_a("Jump.refuse", self.refuse, bool, "give True or False")


def unusual(manifest: EndManifest, before: EndManifest | None, limits: Jump) -> list[str]:
    """What somebody should look at, a sentence each; nothing without a generation before."""
    if before is None or not before.rows:
        return []
    found = []
    if abs(manifest.rows - before.rows) > limits.rows * before.rows:
        found.append(f"it has {manifest.rows:,} rows, generation {before.generation} has {before.rows:,}")
    for name, output in manifest.outputs.items():
        if name in before.outputs:
            found += _differences(name, output, before.outputs[name], limits)
    return found


def _differences(name: str, now: OutputSummary, before: OutputSummary, limits: Jump) -> Iterator[str]:
    if now.null_share - before.null_share > limits.nulls:
        yield f"{now.null_share:.0%} of {name} is null, it was {before.null_share:.0%}"
    width, was = _range(now), _range(before)
    if not was or width is None or now.mean is None or before.mean is None:
        return  # a constant, or nothing, has no range to measure by
    if abs(now.mean - before.mean) > limits.mean * was:
        yield f"the mean of {name} is {now.mean:.6g}, it was {before.mean:.6g}"
    if width > limits.spread * was:
        was_from = f"{before.minimum:.6g} to {before.maximum:.6g}"
        yield f"{name} is from {now.minimum:.6g} to {now.maximum:.6g}, it was from {was_from}"


def _range(summary: OutputSummary) -> float | None:
    if summary.minimum is None or summary.maximum is None:
        return None
    return summary.maximum - summary.minimum
