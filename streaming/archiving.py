"""The archive sink's target: every observation that an event brought, once, in files that batch reads.

What it does with offsets is the sink's: they are committed after the files are
on disk, and what is on disk is not written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from almanac.clock import utc_now
from almanac.errors import Unavailable
from almanac.metrics import ARCHIVE_FILES, ARCHIVE_ROWS
from almanac.pipeline import Pipeline
from features.archive import Archived
from features.archive_lines import archived_lines
from features.layout import EVENT_TIMESTAMP
from streaming.handle import ObservationRow
from streaming.records import Consumed, FeatureRow, read_feature_row
from streaming.report import Report
from streaming.sink import Hold, read_all

HOLD = Hold(seconds=5.0, records=50_000, bytes=16 * 1024 * 1024)
"""Gathered before a file is written. A batch run sees events that are this much older than it."""
TIDY_SECONDS = 60.0


class Files(Protocol):
    """What the target needs of an archive: `features.archive.Archive` is one."""

    @property
    def files_finished(self) -> int:
        """Files written since it was opened."""
        ...

    def write(self, events: Sequence[Archived], now: datetime) -> int:
        """Make events durable; returns how many were not there yet."""
        ...

    def tidy(self, now: datetime) -> Mapping[str, int]:
        """Merge and remove files; returns what was done."""
        ...


class Archiving:
    """Feature rows to the archive.

    Args:
        files: opens the archive; called once, in the sink's thread.
        observation_row: the pushed view's row of an event.
        now: the clock.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        files: Callable[[], Files],
        observation_row: ObservationRow,
        report: Report,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._pipeline = pipeline
        self._open = files
        self._files: Files | None = None
        self._observation_row = observation_row
        self._report = report
        self._now = now
        self._tidy_at = time.monotonic() + TIDY_SECONDS

    def warm(self) -> None:
        """Read the view's definition."""
        self._opened()

    def apply(self, records: Sequence[Consumed]) -> Mapping[str, int]:
        """Write the observations that are not archived yet; when this returns, all of them are on disk."""
        found, foreign = read_all(
            records, lambda record: read_feature_row(self._pipeline, record, self._now()), self._report
        )
        files = self._opened()
        before = files.files_finished
        written = files.write([self._archived(row) for row in found], self._now()) if found else 0
        ARCHIVE_FILES.labels(self._pipeline.name).inc(files.files_finished - before)
        ARCHIVE_ROWS.labels(self._pipeline.name, "archived").inc(written)
        ARCHIVE_ROWS.labels(self._pipeline.name, "present").inc(len(found) - written)
        return {"archived": written, "archived_already": len(found) - written, "foreign": foreign}

    def idle(self) -> None:
        """Merge small files from time to time; what cannot be done now is done later."""
        if time.monotonic() < self._tidy_at:
            return
        try:
            self._report.add(**self._opened().tidy(self._now()))
        except Unavailable as error:
            self._report.warn(str(error))
        self._tidy_at = time.monotonic() + TIDY_SECONDS

    def _opened(self) -> Files:
        if self._files is None:
            self._files = self._open()
        return self._files

    def _archived(self, found: FeatureRow) -> Archived:
        if found.folded is None:
            row = self._observation_row(self._pipeline, found.entity, found.observed_at, found.value)
        else:
            of = {self._pipeline.entity: found.entity, EVENT_TIMESTAMP: found.observed_at}
            row = {**of, **archived_lines(found.folded.lines)}
        return Archived(
            row=row,
            topic=found.topic,
            partition=found.kafka_partition,
            offset=found.kafka_offset,
            trace=found.trace,
        )
