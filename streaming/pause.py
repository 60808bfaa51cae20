"""A pause: waiting, with growing waits and named limits, for something that is down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import stamina
import stamina.instrumentation

from streaming.report import PAUSED, RUNNING, STARTING, Report

WAIT_SECONDS_MIN = 0.2
WAIT_SECONDS_MAX = 2.0
"""Longest wait between two attempts; also what stopping may have to wait for."""
PAUSE_SECONDS_MAX = 60.0
"""Time after which the attempts with the same records end, so that the consumer polls again;
far below `POLL_INTERVAL_MS_MAX`. They are read again after it: a pause has no end but success."""


QUIET_BATCHES = 20
"""Empty batches after which a pause counts as over."""


class Stopped(Exception):
    """The thread was asked to stop while it waited."""


class Pause:
    """Waits that double from `WAIT_SECONDS_MIN` to `WAIT_SECONDS_MAX`, cut short by `stop`."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._seconds = WAIT_SECONDS_MIN
        self._quiet = 0

    def wait(self) -> None:
        """Wait once, longer than the last time."""
        self._stop.wait(self._seconds)
        self._seconds = min(self._seconds * 2, WAIT_SECONDS_MAX)

    def opened(self, report: Report) -> None:
        """Connections were opened; after a failure that is no proof yet that they work."""
        self._quiet = 0
        if report.state == STARTING:
            report.say(RUNNING)

    def worked(self, report: Report, *, handled: bool) -> None:
        """A batch was handled, or there was none: the state is running, and waits begin short again.

        After a pause an empty batch proves little, so that some are needed: else the
        state would change to and fro with each attempt at records that cannot be written.
        """
        self._quiet = 0 if handled else self._quiet + 1
        if handled or self._quiet >= QUIET_BATCHES:
            self._seconds = WAIT_SECONDS_MIN
            if report.state == PAUSED:
                report.say(RUNNING)

    @staticmethod
    def attempts(
        on: tuple[type[Exception], ...], seconds_max: float = PAUSE_SECONDS_MAX
    ) -> Iterator[AbstractContextManager[Any]]:
        """Attempts at one thing until it succeeds; after `seconds_max` the last error is raised."""
        return iter(
            stamina.retry_context(
                on=on,
                attempts=None,
                timeout=seconds_max,
                wait_initial=WAIT_SECONDS_MIN,
                wait_max=WAIT_SECONDS_MAX,
                wait_jitter=WAIT_SECONDS_MIN,
            )
        )


# The report says once that a thread pauses; a line for each attempt would drown it.
stamina.instrumentation.set_on_retry_hooks([])
