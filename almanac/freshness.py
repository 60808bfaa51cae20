"""The verdict: is a prediction fresh, stale, expired or missing? Pure functions of times."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from almanac.pipeline import Freshness, Output


class Verdict(StrEnum):
    """How far a prediction can be stood behind."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"
    MISSING = "missing"


def age_of(as_of: datetime, now: datetime) -> timedelta:
    """now minus as_of; never below zero, for a clock may run behind an event's."""
    return max(now - as_of, timedelta(0))


def valid_at(output: Output, as_of: datetime) -> datetime | None:
    """The moment a forecast speaks about; None for an output without a horizon."""
    return None if output.horizon is None else as_of + output.horizon


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
