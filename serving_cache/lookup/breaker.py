"""A circuit breaker: a place that keeps failing is not asked for a moment. Pure; monotonic seconds are arguments."""

from __future__ import annotations

FAILURES_BEFORE_OPEN = 3
OPEN_SECONDS = 1.0


class Breaker:
    """Closed (ask), open (do not ask), or on trial (one caller asks, the others do not).

    It opens after `FAILURES_BEFORE_OPEN` failures in a row, lets one caller
    try after `OPEN_SECONDS`, and closes when that caller succeeds.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0
        self.why = ""

    def allows(self, now: float) -> bool:
        """May the place be asked? The caller that is let through on trial holds the others off."""
        if self._failures < FAILURES_BEFORE_OPEN:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + OPEN_SECONDS
        return True

    def succeeded(self) -> bool:
        """The place answered; returns whether it had failed before."""
        before = self._failures
        self._failures = 0
        self.why = ""
        return before > 0

    def failed(self, why: str, now: float) -> None:
        """The place did not answer; `why` is kept for those who are not let through."""
        self._failures += 1
        self.why = why
        self._open_until = now + OPEN_SECONDS
