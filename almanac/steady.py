"""A clock that notices its own steps: the wall clock checked against the boot clock.

Pure: both readings are arguments of `Clock.at`; only `system_moment` reads the
machine's clocks. Ages are counted from the time that `Clock` gives.

The wall clock drifts slowly when it is disciplined (a few parts in 10,000);
that is followed. A difference of more than `STEP_TOLERANCE` since the last
reading is a step: from then on the time is counted by the boot clock, and
every answer says so. A step that stays was a correction (by an operator or
NTP): after `STEP_HOLD` without another one the wall clock is believed again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from almanac.clock import utc_now

STEP_TOLERANCE = timedelta(seconds=2)
STEP_HOLD = timedelta(minutes=10)


@dataclass(frozen=True)
class Moment:
    """The time to count ages to, and what must be said about it (None when nothing)."""

    now: datetime
    note: str | None = None


class Clock:
    """Follows the wall clock, but not its steps.

    Args:
        wall: the wall clock's time, aware.
        steady: a monotonic reading in seconds, taken at the same moment.
    """

    def __init__(self, wall: datetime, steady: float) -> None:
        self._trusted = wall  # the time we answer for at `_steady`
        self._seen = wall  # what the wall clock said at `_steady`
        self._steady = steady
        self._stepped_at: float | None = None

    def at(self, wall: datetime, steady: float) -> Moment:
        """Take one pair of readings and return the time to use."""
        passed = timedelta(seconds=max(steady - self._steady, 0.0))
        surprise = wall - (self._seen + passed)
        self._trusted += passed
        if abs(surprise) > STEP_TOLERANCE:
            self._stepped_at = steady
        elif self._stepped_at is None:
            self._trusted = wall
        self._seen, self._steady = wall, max(steady, self._steady)
        if self._stepped_at is None:
            return Moment(self._trusted)
        if steady - self._stepped_at >= STEP_HOLD.total_seconds():
            self._stepped_at = None
            self._trusted = wall
            return Moment(wall)
        off = (wall - self._trusted).total_seconds()
        if abs(off) <= STEP_TOLERANCE.total_seconds():  # it stepped back to where it should be
            self._stepped_at = None
            self._trusted = wall
            return Moment(wall)
        return Moment(
            self._trusted,
            f"this process's wall clock stepped and is {off:+.1f} s off; time is counted by the monotonic clock",
        )


def steady_seconds() -> float:
    """Seconds since boot, suspension included where the system can tell."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class SystemClock:
    """The machine's clocks behind `Clock`."""

    def __init__(self) -> None:
        self._clock = Clock(utc_now(), steady_seconds())

    def now(self) -> Moment:
        """The time to count ages to, now."""
        return self._clock.at(utc_now(), steady_seconds())
