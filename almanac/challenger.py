"""When a newly trained model may take the place of the one that serves: declared gates, and a pure decision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from almanac.checking import need_number
from almanac.schedule import check_schedule

if TYPE_CHECKING:
    from almanac.manifest import Measure

ALIAS = "challenger"
"""Names the version that was trained last."""
FACTOR_LEAST, FACTOR_MOST = 0.01, 100.0

Measures = Mapping[str, "Measure"]


@dataclass(frozen=True, kw_only=True)
class Challenger:
    """A new version is a challenger, and is promoted to the pipeline's alias only past these gates.

    Errors are compared by quotient, so that below 1 is better; what should be great, such as a list's NDCG, by the
    quotient turned round. Where there are several outputs, their geometric mean counts.

    Args:
        schedule: cron expression in UTC of the DAG that trains one; None to start it by hand alone.
        champion_max: the challenger over the champion, both on the challenger's held-out window: promoted below it.
        baseline_max: the challenger over the better baseline: promoted up to it.
        rows_min: rows, or lists, that must have been measured.
    """

    schedule: str | None = None
    champion_max: float = 1.0
    baseline_max: float = 1.0
    rows_min: int = 100

    def __post_init__(self) -> None:
        if self.schedule is not None:
            check_schedule("Challenger.schedule", self.schedule)
        for name in ("champion_max", "baseline_max"):
            need_number(f"Challenger.{name}", getattr(self, name), FACTOR_LEAST, FACTOR_MOST)
        need_number("Challenger.rows_min", self.rows_min, 1, math.inf, whole=True)


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What the gates said of a challenger, kept in its manifest.

    Args:
        passed: whether it may be promoted.
        reasons: a sentence for each gate, those that were not passed first.
        champion: the model that served; empty if none did.
        against_champion, against_baseline: the quotients; None where there was nothing to compare with.
    """

    passed: bool
    reasons: tuple[str, ...]
    champion: str = ""
    against_champion: float | None = None
    against_baseline: float | None = None


def judge(gates: Challenger, challenger: Measures, champion: Measures | None, *, champion_id: str) -> Judged:
    """Hold a challenger to its gates; a champion that could not be measured is None, and only baselines count then.

    Args:
        challenger, champion: what was measured of each, on the same rows, by output or by way of asking.
        champion_id: `bikes-v3`; empty if nothing serves.
    """
    failed: list[str] = []
    passed: list[str] = []
    rows = min((measure.rows for measure in challenger.values()), default=0)
    if rows < gates.rows_min:
        failed.append(f"measured on {rows:,} held-out rows, {gates.rows_min:,} are needed")
    baseline = _mean([measure.ratio for measure in challenger.values()])
    if baseline is None:
        failed.append("nothing was measured")
    else:
        told = f"{baseline:.3f} of the better baseline's, at most {gates.baseline_max:g} is allowed"
        (passed if baseline <= gates.baseline_max else failed).append(told)
    against = None
    if champion is None:
        passed.append(f"{champion_id} could not be measured here" if champion_id else "nothing serves yet")
    else:
        against = _mean([measure.against(champion[name]) for name, measure in challenger.items() if name in champion])
        if against is None:
            failed.append(f"{champion_id} was measured on nothing that this one was")
        else:
            told = f"{against:.3f} of {champion_id}'s, below {gates.champion_max:g} is needed"
            (passed if against < gates.champion_max else failed).append(told)
    return Judged(
        passed=not failed,
        reasons=(*failed, *passed),
        champion=champion_id,
        against_champion=against,
        against_baseline=baseline,
    )


def _mean(quotients: list[float]) -> float | None:
    """Their geometric mean, None of nothing; one that is infinite or no number counts as infinite."""
    if not quotients:
        return None
    if not all(math.isfinite(one) and one >= 0 for one in quotients):
        return math.inf
    if 0 in quotients:
        return 0.0
    return math.exp(sum(math.log(one) for one in quotients) / len(quotients))
