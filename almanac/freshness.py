"""The verdict: is a prediction fresh, stale, expired or missing? Pure functions of times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum

from almanac.pipeline import Freshness, Output

CLOCK_TOLERANCE = timedelta(seconds=5)
"""How far clocks differ without anything being wrong."""
AHEAD_MAX = timedelta(minutes=15)
"""How far an as_of may lie in the future and still be answered with, as of age 0 and with a remark: beyond it no age
can be told."""


class Verdict(StrEnum):
    """How far a prediction can be stood behind."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"
    MISSING = "missing"


def age_of(as_of: datetime, now: datetime) -> timedelta:
    """now minus as_of; never below zero, for a clock may run behind an event's."""
    return max(now - as_of, timedelta(0))


def too_far_ahead(as_of: datetime, now: datetime) -> bool:
    """Whether an as_of lies so far in the future that nobody can say how old it is."""
    return as_of - now > AHEAD_MAX


def valid_at(output: Output, as_of: datetime) -> datetime | None:
    """The moment a forecast speaks about, at most the last that there is; None for an output without a horizon."""
    if output.horizon is None:
        return None
    last = datetime.max.replace(tzinfo=UTC)
    return as_of + output.horizon if output.horizon <= last - as_of else last


def output_verdict(output: Output, as_of: datetime, freshness: Freshness, now: datetime) -> Verdict:
    """The verdict of one output: as its age, but expired once its `valid_at` has passed."""
    moment = valid_at(output, as_of)
    if moment is not None and moment <= now:
        return Verdict.EXPIRED
    return age_verdict(as_of, freshness, now)


def age_verdict(as_of: datetime, freshness: Freshness, now: datetime) -> Verdict:
    """Fresh up to and including `fresh_for`, stale up to and including `usable_for`, then expired."""
    age = age_of(as_of, now)
    if age <= freshness.fresh_for:
        return Verdict.FRESH
    if age <= freshness.usable_for:
        return Verdict.STALE
    return Verdict.EXPIRED


def verdict(outputs: tuple[Output, ...], as_of: datetime | None, freshness: Freshness, now: datetime) -> Verdict:
    """The verdict of a whole prediction: by age, and expired when every output is.

    A prediction without `as_of` is missing.
    """
    if as_of is None:
        return Verdict.MISSING
    if all(output_verdict(o, as_of, freshness, now) is Verdict.EXPIRED for o in outputs):
        return Verdict.EXPIRED
    return age_verdict(as_of, freshness, now)
