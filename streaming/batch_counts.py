"""Counts of a batch that is committed: for the report's lines and for the metrics."""

from __future__ import annotations

from almanac import metrics
from streaming.handle import Handled, Sorted
from streaming.report import Report


def count_batch(report: Report, pipeline: str, records: int, batch: Sorted, written: Handled) -> None:
    """Count a batch that is committed.

    Args:
        records: how many were consumed.
    """
    forwarded = len(batch.forwards)
    events = records - forwarded
    report.add(
        events=events,
        predictions=len(written.predictions),
        dead_letters=len(written.dead_letters),
        duplicates=batch.duplicates + written.duplicates,
        late=written.late,
        **({"unmatched_returns": written.unmatched} if written.unmatched else {}),
        **({"forwarded": forwarded} if forwarded else {}),
    )
    metrics.STREAM_FORWARDED.labels(pipeline).inc(forwarded)
    metrics.STREAM_EVENTS.labels(pipeline).inc(events)
    metrics.STREAM_PREDICTIONS.labels(pipeline).inc(len(written.predictions))
    metrics.STREAM_DUPLICATES.labels(pipeline).inc(batch.duplicates + written.duplicates)
    metrics.STREAM_LATE.labels(pipeline).inc(written.late)
    metrics.STREAM_UNSCORED.labels(pipeline).inc(written.unscored)
    for reason, count in written.reasons.items():
        metrics.STREAM_DEAD_LETTERS.labels(pipeline, reason).inc(count)
