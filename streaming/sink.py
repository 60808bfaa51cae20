"""Sinks: what the worker committed to Kafka reaches the stores, at least once and without harm twice.

Each pipeline has three, each with a consumer group and so a pace of its own, for
a store that is down must not hold up the others:

    overlays   predictions topic -> overlay in Postgres, then in Redis
    features   features topic    -> latest observation in the online store
    archive    features topic    -> every observation in the archive   (streaming.archiving)

A sink consumes, applies, and only then commits its offsets. A kill in between
repeats a batch; the stores' put-if-newer makes that a nothing. A store that is
down pauses its sink, with one exception: Postgres is the record and Redis its
copy, so overlays go on to Postgres without Redis; what Redis is owed is kept,
newest per entity, and written once Redis answers again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, TopicPartition

from almanac import metrics
from almanac.clock import at_micros, utc_now
from almanac.decisions import is_newer, newest
from almanac.errors import DataError, FeatureError, Unavailable
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from serving_cache.records import OverlayRecord
from streaming.connection import almanac_error, consumed, next_offsets, open_consumer
from streaming.guarding import guarded
from streaming.handle import ObservationRow
from streaming.lag import Lag
from streaming.pause import Pause, Stopped
from streaming.records import Consumed, FeatureRow, foreign_record, read_feature_row, read_prediction
from streaming.report import PAUSED, RUNNING, STOPPED, Report
from streaming.subscription import Subscription

BATCH_RECORDS_MAX = 1_000
CONSUME_SECONDS_MAX = 0.1
OWED_MAX = 200_000
"""Overlays kept for a Redis that is down; beyond it the oldest are left to the reconciler."""
OWED_RETRY_SECONDS = 1.0
"""Time between two tries while Redis is down: each may take seconds, and Postgres must not wait for them."""

TRANSIENT = (Unavailable, FeatureError)
OUTCOMES = {
    "overlays_newer": "newer",
    "pushed": "newer",
    "archived": "newer",
    "not_newer": "not_newer",
    "archived_already": "not_newer",
    "foreign": "foreign",
}
"""Outcome, in the metric, of what targets count."""
BEHIND = "running, Redis behind"


@dataclass(frozen=True, kw_only=True)
class Hold:
    """How long a sink gathers records before it applies them at once: until the first limit is reached.

    Args:
        seconds: age of the first one.
        records: their number.
        bytes: size of their values.
    """

    seconds: float = 0.0
    records: int = 1
    bytes: int = 1


class Target(Protocol):
    """Where a sink brings records."""

    def apply(self, records: Sequence[Consumed]) -> Mapping[str, int]:
        """Write them; returns counts for the report.

        Raises:
            Unavailable, FeatureError: the store is not there; the same records are given again.
        """
        ...

    def warm(self) -> None:
        """Open what takes long to open; called once, before the first batch.

        Raises:
            Unavailable, FeatureError: as `apply`.
        """
        ...

    def idle(self) -> None:
        """Called between batches."""
        ...


class OverlayStore(Protocol):
    """What a sink needs of a store: both the Postgres and the Redis one are such."""

    def put_overlays(self, pipeline: str, overlays: Sequence[OverlayRecord]) -> int:
        """Put each if it is newer, atomically; returns how many were."""
        ...


class OnlineRows(Protocol):
    """What a sink needs of the online store."""

    def push(self, rows: pa.Table) -> None:
        """Write the latest observations, each only over an older one."""
        ...


class Overlays:
    """Predictions to the overlay, in Postgres and then in Redis; none from the future."""

    def __init__(
        self,
        pipeline: Pipeline,
        record: OverlayStore,
        copy: OverlayStore,
        report: Report,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._pipeline = pipeline
        self._now = now
        self._record = record
        self._copy = copy
        self._report = report
        self._owed: OrderedDict[tuple[str, str], OverlayRecord] = OrderedDict()
        self._wait_until = 0.0

    def apply(self, records: Sequence[Consumed]) -> Mapping[str, int]:
        """Put the newest overlay of each entity and model."""
        found, foreign = read_all(
            records, lambda record: read_prediction(self._pipeline, record, self._now()), self._report
        )
        newest_found = newest(found)
        put = self._record.put_overlays(self._pipeline.name, newest_found) if newest_found else 0
        for overlay in newest_found:
            self._owe(overlay)
        self._pay_when_due()
        return {"predictions": len(found), "overlays_newer": put, "not_newer": len(found) - put, "foreign": foreign}

    def warm(self) -> None:
        """Nothing takes long."""

    def idle(self) -> None:
        """Try again to write what Redis is owed."""
        self._pay_when_due()

    def _owe(self, overlay: OverlayRecord) -> None:
        at = (overlay.entity, overlay.model)
        if at not in self._owed or is_newer(overlay.sequence, self._owed[at].sequence):
            self._owed[at] = overlay
            self._owed.move_to_end(at)
        if len(self._owed) > OWED_MAX:
            self._owed.popitem(last=False)

    def _pay_when_due(self) -> None:
        if not self._owed or time.monotonic() < self._wait_until:
            return
        try:
            self._copy.put_overlays(self._pipeline.name, list(self._owed.values()))
        except Unavailable as error:
            self._wait_until = time.monotonic() + OWED_RETRY_SECONDS
            self._report.say(
                "running, Redis behind", f"{len(self._owed)} overlays owed: {error}", level=logging.WARNING
            )
            return
        self._owed.clear()
        if self._report.state == BEHIND:
            self._report.say(RUNNING)


class Features:
    """Feature rows to the online store; none from the future."""

    def __init__(
        self,
        pipeline: Pipeline,
        online: Callable[[], OnlineRows],
        observation_row: ObservationRow,
        report: Report,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._pipeline = pipeline
        self._now = now
        self._open = online
        self._online: OnlineRows | None = None
        self._observation_row = observation_row
        self._report = report

    def warm(self) -> None:
        """Open the online store."""
        self._opened()

    def _opened(self) -> OnlineRows:
        if self._online is None:
            self._online = self._open()
        return self._online

    def apply(self, records: Sequence[Consumed]) -> Mapping[str, int]:
        """Push the latest observation of each entity."""
        found, foreign = read_all(
            records, lambda record: read_feature_row(self._pipeline, record, self._now()), self._report
        )
        latest: dict[Any, FeatureRow] = {}
        for row in found:  # in offset order, so that of two with one time the later wins
            if row.entity not in latest or row.folded or latest[row.entity].observed_at <= row.observed_at:
                latest[row.entity] = row
        if latest:
            rows = [pushed_row(self._pipeline, row, self._observation_row) for row in latest.values()]
            self._opened().push(pa.Table.from_pylist([dict(row) for row in rows]))
        return {"feature_rows": len(found), "pushed": len(latest), "foreign": foreign}

    def idle(self) -> None:
        """Nothing to do between batches."""


def pushed_row(pipeline: Pipeline, found: FeatureRow, observation_row: ObservationRow) -> Mapping[str, Any]:
    """The pushed view's row of one event: where events carry lines, the history with the event folded in."""
    if found.folded is None:
        return observation_row(pipeline, found.entity, found.observed_at, found.value)
    return {
        pipeline.entity: found.entity,
        EVENT_TIMESTAMP: at_micros(found.folded.at),
        CREATED_TIMESTAMP: at_micros(found.folded.created),
        **found.folded.row,
    }


def read_all(records: Sequence[Consumed], reader: Callable[[Consumed], Any], report: Report) -> tuple[list[Any], int]:
    """Read the records that a worker wrote; count those that somebody else did, and name the first."""
    found, foreign = [], 0
    for record in records:
        try:
            found.append(reader(record))
        except Exception as error:  # noqa: BLE001 - whatever a record does to the reader, the others go on
            if not foreign:
                report.warn(str(error if isinstance(error, DataError) else foreign_record(record, error)))
            foreign += 1
    return found, foreign


class Sink:
    """Brings one topic to one target.

    Args:
        hold: how much is gathered before it is applied; by default nothing waits.
    """

    def __init__(
        self,
        topic: str,
        group: str,
        settings: Settings,
        report: Report,
        instance: str = "0",
        hold: Hold = Hold(),
    ) -> None:
        self.topic = topic
        self.group = group
        self.report = report
        self._settings = settings
        self._instance = instance
        self._hold = hold
        self._lag = Lag(report.pipeline, group)
        self._subscription = Subscription(topic, settings, report, self._lag)
        self._held: list[Consumed] = []
        self._held_bytes = 0
        self._held_since = 0.0
        self._reassigned = False

    def run(self, target: Target, stop: threading.Event) -> None:
        """Apply what is committed until `stop` is set."""
        pause = Pause(stop)
        try:
            target.warm()
        except TRANSIENT as error:
            self.report.say(PAUSED, str(error), level=logging.WARNING)
        while not stop.is_set():
            try:
                self._session(target, stop, pause)
            except Stopped:
                break
            except (KafkaException, *TRANSIENT) as error:
                if isinstance(error, KafkaException):
                    error = almanac_error(error, f"{self.topic} cannot be read", self._settings)
                self.report.say(PAUSED, str(error), level=logging.WARNING)
                pause.wait()
        self.report.say(STOPPED)

    def _session(self, target: Target, stop: threading.Event, pause: Pause) -> None:
        """One consumer, from what was committed until `stop` or the first error."""
        self._let_go()
        self._lag.opened()
        self._subscription.opened()
        consumer = open_consumer(self._settings, self.group, self._instance)
        try:
            consumer.subscribe(
                [self.topic], on_assign=self._subscription.assigned, on_revoke=self._revoked, on_lost=self._revoked
            )
            pause.opened(self.report)
            while not stop.is_set():
                pause.worked(self.report, handled=self._batch(consumer, target, stop))
                self._subscription.check(consumer, time.monotonic())
                self.report.summarise(time.monotonic())
            if self._held:  # an orderly end need not be repeated; if this fails, the successor reads it again
                self._apply(target)
                self._commit(consumer)
        finally:
            consumer.close()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._reassigned = True

    def _batch(self, consumer: Consumer, target: Target, stop: threading.Event) -> bool:
        """Consume; once enough is held, apply and commit it. Whether there was anything to apply."""
        records = consumed(self._subscription.consume(consumer, BATCH_RECORDS_MAX, CONSUME_SECONDS_MAX))
        target.idle()
        now = time.monotonic()
        self._lag.note(consumer, now)
        if records and not self._held:
            self._held_since = now
        self._held += records
        self._held_bytes += sum(len(record.value or b"") for record in records)
        if not self._held or not self._due(now):
            return False
        for attempt in Pause.attempts(TRANSIENT):
            with attempt:
                if stop.is_set():
                    raise Stopped
                try:
                    self._apply(target)
                except TRANSIENT as error:
                    self.report.say(PAUSED, str(error), level=logging.WARNING)
                    self._lag.note(consumer, time.monotonic())
                    raise
        self._commit(consumer)
        return True

    def _apply(self, target: Target) -> None:
        with metrics.SINK_SECONDS.labels(self.report.pipeline, self.report.part).time():
            guarded(self._held, lambda some: self._count(target.apply(some)), self._skip)

    def _skip(self, record: Consumed, error: Exception) -> None:
        """Leave out a record that no store takes, or with which the code fails."""
        self.report.warn(str(foreign_record(record, error)))
        self._count({"foreign": 1})

    def _count(self, counts: Mapping[str, int]) -> None:
        self.report.add(**counts)
        for name in OUTCOMES.keys() & counts.keys():
            outcome = metrics.SINK_ROWS.labels(self.report.pipeline, self.report.part, OUTCOMES[name])
            outcome.inc(counts[name])

    def _due(self, now_seconds: float) -> bool:
        return (
            self._reassigned
            or now_seconds - self._held_since >= self._hold.seconds
            or len(self._held) >= self._hold.records
            or self._held_bytes >= self._hold.bytes
        )

    def _commit(self, consumer: Consumer) -> None:
        """Commit what was applied; a partition that was taken away is read again by its new owner, harmlessly."""
        ours = {(found.topic, found.partition) for found in consumer.assignment()}
        offsets = [
            found
            for found in next_offsets(self._held, self._subscription.mark)
            if (found.topic, found.partition) in ours
        ]
        if offsets:
            consumer.commit(offsets=offsets, asynchronous=False)
            self._lag.committed(offsets)
        self._let_go()

    def _let_go(self) -> None:
        self._held, self._held_bytes, self._reassigned = [], 0, False
