"""What of a pipeline's features is checked, how often, and from where on somebody is told: part of its declaration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from almanac.checking import need_duration, need_number
from almanac.errors import DeclarationError
from almanac.schedule import check_schedule

SAMPLE_MAX = 100_000


@dataclass(frozen=True, kw_only=True)
class Integrity:
    """How a pipeline's features are checked.

    Args:
        schedule: cron expression in UTC; None for checks by hand alone.
        sample: entities whose online features are compared with the offline ones at each check.
        skew_max: share of unequal values of a feature above which somebody is told, 0 to 1.
        recent: what counts as now where features are compared with the training window: the time up to the newest
            row. It should hold whole days where features follow the time of day.
        drift_max: population stability index that is always allowed; more is, where the training window had more.
    """

    schedule: str | None = "25 * * * *"
    sample: int = 1_000
    skew_max: float = 0.01
    recent: timedelta = timedelta(days=1)
    drift_max: float = 0.25

    def __post_init__(self) -> None:
        if self.schedule is not None:
            check_schedule("Integrity.schedule", self.schedule)
        need_number("Integrity.sample", self.sample, 1, SAMPLE_MAX, whole=True)
        need_number("Integrity.skew_max", self.skew_max, 0, 1)
        need_number("Integrity.drift_max", self.drift_max, 0, 1_000)
        need_duration("Integrity.recent", self.recent)
        if self.recent <= timedelta(0):
            raise DeclarationError(f"Integrity.recent is {self.recent}: give a duration above 0")
