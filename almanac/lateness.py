"""Is a generation late? A pure decision from schedule, freshness and what is current; Airflow is not asked.

Each tick of a schedule expects a generation whose cutoff is that tick or later.
It may take until what the tick before made turns stale: until that tick plus
`fresh_for`. So a late generation is noticed when readers begin to be told
"stale", not when somebody looks. Two limits keep the rule sensible whatever is
declared: a run always has a little time (`ALLOWANCE_MIN`, or half the
interval), and never more than one interval.

    tick before          tick                                  due
    |------ interval ----|------ fresh_for - interval ---------|
    |------------------------- fresh_for ----------------------|
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, pairwise

from almanac.clock import format_time
from almanac.schedule import ticks_back

ALLOWANCE_MIN = timedelta(minutes=10)
"""Time that a run is given in any case, unless half the interval between two ticks is less."""
TICKS_BACK_MAX = 400
"""Ticks that are looked at for the newest one that is due; an allowance never exceeds its interval, so few suffice."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One moment of a schedule.

    Args:
        at: the moment; a generation with this cutoff or a later one fulfils it.
        due_at: when that generation should be current.
    """

    at: datetime
    due_at: datetime


@dataclass(frozen=True, kw_only=True)
class Lateness:
    """The decision.

    Args:
        expected: the newest tick that is due; None if none is due yet.
        since: since when a generation has been late; None when none is.
        reason: empty, or which generation is missing and what is current instead.
    """

    expected: Tick | None
    since: datetime | None
    reason: str

    @property
    def late(self) -> bool:
        """Whether a generation is late."""
        return self.since is not None

    def late_for(self, now: datetime) -> timedelta:
        """How long it has been late; zero when none is."""
        return timedelta(0) if self.since is None else max(now - self.since, timedelta(0))


def allowance(interval: timedelta, fresh_for: timedelta) -> timedelta:
    """Time from a tick until its generation is due, `interval` after the tick before."""
    least = min(ALLOWANCE_MIN, interval / 2)
    return min(max(fresh_for - interval, least), interval)


def due_ticks(schedule: str, fresh_for: timedelta, now: datetime) -> Iterator[Tick]:
    """The ticks whose generations are due, newest first; at most `TICKS_BACK_MAX` are looked at.

    Raises:
        DeclarationError: the schedule is no cron expression.
    """
    for tick, before in pairwise(islice(ticks_back(schedule, now), TICKS_BACK_MAX)):
        due_at = tick + allowance(tick - before, fresh_for)
        if due_at <= now:
            yield Tick(at=tick, due_at=due_at)


def decide_lateness(
    schedule: str, fresh_for: timedelta, *, cutoff: datetime | None, expected_since: datetime, now: datetime
) -> Lateness:
    """Decide whether the generation that the schedule asks for is late.

    Args:
        schedule: cron expression in UTC.
        cutoff: of the current generation; None if nothing is published.
        expected_since: ticks before this moment are expected of nobody: the pipeline was not there yet.

    Raises:
        DeclarationError: the schedule is no cron expression.
    """
    missed: Tick | None = None
    expected: Tick | None = None
    for tick in due_ticks(schedule, fresh_for, now):
        if tick.at < expected_since:
            break
        expected = expected or tick
        if cutoff is not None and cutoff >= tick.at:
            break
        missed = tick
    if missed is None or expected is None:
        return Lateness(expected=expected, since=None, reason="")
    there = "nothing is published" if cutoff is None else f"the current one is for {format_time(cutoff)}"
    reason = f"the generation for {format_time(expected.at)} was due at {format_time(expected.due_at)}; {there}"
    return Lateness(expected=expected, since=missed.due_at, reason=reason)
