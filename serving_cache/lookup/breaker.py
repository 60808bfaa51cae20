"""A circuit breaker: a place that keeps failing is not asked for a moment. Pure; monotonic seconds are arguments."""

from __future__ import annotations

import math

FAILURES_BEFORE_OPEN = 3
OPEN_SECONDS = 1.0
CALM_SECONDS = 5.0  # without a failure, before a place that failed is said to answer again


class Breaker:
    """Closed (ask), open (do not ask), or on trial (one caller asks, the others do not).

    It opens after `FAILURES_BEFORE_OPEN` failures in a row, lets one caller
    try after `OPEN_SECONDS`, and closes when that caller succeeds. Calls that
    were under way together when the place failed are one failure, however many.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._failed_at = -math.inf
        self._open_until = 0.0
        self._said = False
        self.why = ""

    @property
    def closed(self) -> bool:
        """Whether everybody may ask."""
        return self._failures < FAILURES_BEFORE_OPEN

    def allows(self, now: float) -> bool:
        """May the place be asked? The caller that is let through on trial holds the others off."""
        if self.closed:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + OPEN_SECONDS
        return True

    def succeeded(self, now: float = math.inf) -> bool:
        """The place answered; returns whether to say so: it was said to fail, and has not failed for a while."""
        self._failures = 0
        self.why = ""
        say = self._said and now - self._failed_at >= CALM_SECONDS
        self._said = self._said and not say
        return say

    def failed(self, why: str, now: float, began: float | None = None) -> bool:
        """The place did not answer; `why` is kept for those who are not let through.

        Args:
            began: when the call began; None if no others can have been under way.

        Returns:
            Whether to say so: it was not said to fail already.
        """
        if began is None or began >= self._failed_at:
            self._failures += 1
            self._failed_at = now
        self.why = why
        self._open_until = now + OPEN_SECONDS
        say = not self._said
        self._said = True
        return say
