"""A report: what one thread of the stream is doing, as log lines and counters.

One line for each change of state, and a summary in between; never one a record.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from almanac.clock import utc_now
from almanac.metrics import STREAM_HINDERED, STREAM_PAUSED, STREAM_PAUSES

SUMMARY_SECONDS = 60.0
TOPIC_LOST, RECORDS_LOST = "AlmanacTopicLost", "AlmanacStreamRecordsLost"
"""Alerts that a thread raises."""
STARTING, RUNNING, PAUSED, STOPPED = "starting", "running", "paused", "stopped"

log = logging.getLogger("streaming")


@dataclass(frozen=True, kw_only=True)
class Incident:
    """What an alert is raised about: it happened at one moment, and a person is to know of it."""

    name: str
    reason: str
    at: datetime


class Report:
    """State and counters of one worker or sink; only its own thread writes it.

    Args:
        name: what the lines begin with, such as `bikes worker`.
        pipeline, part: labels of the metrics; without them there are none.
    """

    def __init__(self, name: str, *, pipeline: str = "", part: str = "") -> None:
        self.name = name
        self.pipeline = pipeline
        self.part = part
        self.detail = ""
        self._labels = (pipeline, part) if pipeline else None
        self.counts: Counter[str] = Counter()
        self.state = STARTING
        self.lack = ""
        self.incidents: dict[str, Incident] = {}
        self._notes: dict[str, str] = {}
        self._summed: Counter[str] = Counter()
        self._summed_at: float | None = None

    def say(self, state: str, detail: str = "", *, level: int = logging.INFO) -> None:
        """Note the state; a line is written only if it changed."""
        if state == self.state:
            return
        self.state, self.detail = state, _line(detail)
        if self._labels is not None:
            STREAM_PAUSED.labels(*self._labels).set(state == PAUSED)
            STREAM_PAUSES.labels(*self._labels).inc(state == PAUSED)
        self._log(level, f"{state}: {self.detail}" if detail else state)

    def why_not_ready(self) -> str | None:
        """Why the thread does not do its work now, in one line; None when it does."""
        if self.state not in (STARTING, PAUSED, STOPPED):
            what = next(iter(list(self._notes.values())), self.lack)
            return f"{self.name}: {what}" if what else None
        return f"{self.name}: {self.state}" + (f": {self.detail}" if self.detail else "")

    def lacks(self, detail: str) -> None:
        """Note what the thread cannot do though it runs; empty for nothing."""
        self.lack = _line(detail)

    def note(self, about: str, detail: str) -> None:
        """Something that lasts while the thread goes on, and makes it not ready; a line is written when it changes.

        Args:
            about: what it is about.
            detail: what is the matter; empty once nothing is.
        """
        if _line(detail) == self._notes.get(about, ""):
            return
        if detail:
            self._notes[about] = _line(detail)
            self._log(logging.WARNING, _line(detail))
        else:
            del self._notes[about]
            self._log(logging.INFO, f"{about}: well again")
        if self._labels is not None:
            STREAM_HINDERED.labels(*self._labels).set(len(self._notes))

    def raise_alert(self, name: str, reason: str) -> None:
        """Have an alert raised about something that happened, beside a line in the log.

        Args:
            name: the alert's name.
        """
        self.incidents = {**self.incidents, name: Incident(name=name, reason=_line(reason), at=utc_now())}
        self._log(logging.ERROR, _line(reason))

    def warn(self, detail: str) -> None:
        """A line about something that does not change the state."""
        self._log(logging.WARNING, _line(detail))

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
            self._log(logging.INFO, f"{words} in {now_seconds - self._summed_at:.0f} s")
        self._summed, self._summed_at = self.counts.copy(), now_seconds

    def _log(self, level: int, text: str) -> None:
        log.log(level, "%s: %s", self.name, text, extra={"pipeline": self.pipeline or None})


def _line(text: str) -> str:
    return " ".join(text.split())
