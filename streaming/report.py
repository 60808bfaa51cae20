"""A report: what one thread of the stream is doing, as log lines and counters.

One line for each change of state, and a summary in between; never one a record.
"""

from __future__ import annotations

import logging
from collections import Counter

SUMMARY_SECONDS = 60.0
STARTING, RUNNING, PAUSED, STOPPED = "starting", "running", "paused", "stopped"

log = logging.getLogger("streaming")


class Report:
    """State and counters of one worker or sink; only its own thread writes it.

    Args:
        name: what the lines begin with, such as `weather worker`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.state = STARTING
        self._summed: Counter[str] = Counter()
        self._summed_at: float | None = None

    def say(self, state: str, detail: str = "", *, level: int = logging.INFO) -> None:
        """Note the state; a line is written only if it changed."""
        if state == self.state:
            return
        self.state = state
        log.log(level, "%s: %s%s", self.name, state, f": {_line(detail)}" if detail else "")

    def warn(self, detail: str) -> None:
        """A line about something that does not change the state."""
        log.warning("%s: %s", self.name, _line(detail))

    def add(self, **counts: int) -> None:
        """Add to the counters."""
        self.counts.update(counts)

    def summarise(self, now_seconds: float) -> None:
        """Write what was done since the last summary, at most once in `SUMMARY_SECONDS`, and only if something was.

        Args:
            now_seconds: monotonic time.
        """
        if self._summed_at is None:
            self._summed_at = now_seconds
        if now_seconds - self._summed_at < SUMMARY_SECONDS:
            return
        done = self.counts - self._summed
        if done:
            words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(done.items()))
            log.info("%s: %s in %.0f s", self.name, words, now_seconds - self._summed_at)
        self._summed, self._summed_at = self.counts.copy(), now_seconds


def _line(text: str) -> str:
    return " ".join(text.split())
