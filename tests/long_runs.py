"""What commands that last for minutes share: they say how far they are, and end in order when told to."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

LINE_EVERY_SECONDS = 60.0
SKIPPED = 77
"""Exit code of a command that lacks what it needs, as Automake's test driver has it."""


class Progress:
    """One line that changes on a terminal, one a minute elsewhere."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """So far."""
        shown = f"{text}, {self.seconds:.0f} s"
        if sys.stdout.isatty():
            print(f"\r{shown}", end="", flush=True)
        elif time.monotonic() - self._said >= LINE_EVERY_SECONDS:
            self._said = time.monotonic()
            print(shown, flush=True)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Have this called at the first Ctrl-C or SIGTERM; a second one ends the process at once."""

    def heard(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        stop()

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, heard)


def hear_nothing() -> None:
    """For child processes: a signal to all of the group is for the one that started them."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
