"""Publish: send events to a pipeline's topic, and know that they arrived."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import IO, TYPE_CHECKING, Any

import msgspec
from confluent_kafka import KafkaException, Message, Producer

from almanac.clock import format_time
from almanac.entity_keys import WrittenFloat, entity_key
from almanac.errors import EventError, SourceError, Unavailable, UnknownEntity, UsageError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations, Pipeline
from almanac.settings import Settings
from streaming.connection import almanac_error, open_producer
from streaming.events import OBSERVED_AT, declared, parse
from streaming.topics import ensure_topics

if TYPE_CHECKING:
    from features.sources import Source

DELIVERY_MS_MAX = 15_000
FLUSH_SECONDS_MAX = 20.0
LINE_BYTES_MAX = 1_048_576
CHECKED_LINES_MAX = 1_000_000
QUEUE_FULL_SECONDS_MAX = 30.0
REPLAY_HOURS_MAX = 24 * 31


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """An event about to be sent: its value, and its entity as key where it has one."""

    value: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


def from_lines(lines: IO[bytes], pipeline: Pipeline) -> Iterator[Outgoing]:
    """One event a line, as it stands; empty lines are skipped.

    Raises:
        UsageError: a line is longer than `LINE_BYTES_MAX`: surely no event.
    """
    number = 0
    while line := lines.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise UsageError(f"line {number} has more than {LINE_BYTES_MAX} bytes: send one event a line")
        if value := line.strip():
            yield Outgoing(value=value, key=_key(value, pipeline))


def _key(value: bytes, pipeline: Pipeline) -> bytes | None:
    """The entity, if one can be made out; a malformed event is sent without a key."""
    try:
        found = json.loads(value, parse_float=WrittenFloat)[pipeline.entity]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    try:
        return str(entity_key(pipeline.entity, pipeline.partitions, found)).encode()
    except UnknownEntity:  # the worker says so; what was meant as a key is still worth having in the dead letter
        return str(found).encode(errors="replace") if isinstance(found, str) or type(found) is int else None


def check_all(events: Iterable[Outgoing], pipeline: Pipeline, now: datetime) -> list[Outgoing]:
    """All events, after each was read as the worker would read it.

    Raises:
        UsageError: one of them is malformed, or there are too many to check; nothing was sent.
    """
    checked = []
    for number, event in enumerate(events, start=1):
        if number > CHECKED_LINES_MAX:
            raise UsageError(f"more than {CHECKED_LINES_MAX} events: send them in parts, or without --check")
        try:
            parse(event.value, event.key, None, pipeline, now)
        except EventError as error:
            raise UsageError(f"event {number} is malformed ({error.reason}: {error}); nothing was sent") from None
        checked.append(event)
    return checked


def replayed(pipeline: Pipeline, source: Source, now: datetime, hours: int) -> Iterator[Outgoing]:
    """The source's observations of the last hours, hour by hour, cell by cell.

    Raises:
        UsageError: `hours` is out of range, or the pipeline has no grid.
        SourceError: the source cannot be read.
    """
    import numpy as np

    declared(pipeline)
    if not isinstance(pipeline.partitions, Grid) or not isinstance(pipeline.source, GridObservations):
        raise UsageError(f"pipeline {pipeline.name} has no source to replay: send events with --file")
    if not 1 <= hours <= REPLAY_HOURS_MAX:
        raise UsageError(f"{hours} hours cannot be replayed: give 1 to {REPLAY_HOURS_MAX}")
    latest = source.latest(now)
    for back in reversed(range(hours)):
        hour = latest - timedelta(hours=back)
        field = np.asarray(source.window(hour, hour).values)
        if field.shape != (1, pipeline.partitions.rows, pipeline.partitions.cols):
            raise SourceError(f"the source has no observations of {format_time(hour)}: replay fewer hours")
        for cell, value in enumerate(field[0].ravel()):
            body = {pipeline.entity: cell, OBSERVED_AT: format_time(hour), pipeline.source.variable: float(value)}
            yield Outgoing(value=msgspec.json.encode(body), key=str(cell).encode())


class _Deliveries:
    """What became of the events that were handed to the producer."""

    def __init__(self) -> None:
        self.delivered = 0
        self.failed: KafkaException | None = None

    def note(self, error: Any, message: Message) -> None:
        """Called by the producer once for each event."""
        if error is None:
            self.delivered += 1
        elif self.failed is None:
            self.failed = KafkaException(error)


def publish(
    events: Iterable[Outgoing],
    pipeline: Pipeline,
    settings: Settings,
    *,
    rate: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Send events and wait until the broker has confirmed each. Returns their number.

    Args:
        rate: events a second; None for as fast as they are taken.
        progress: told how many were sent so far.

    Raises:
        Unavailable: not all were confirmed; says how many were.
        UsageError: the broker refuses one, such as one above the topic's limit.
    """
    stream = declared(pipeline)
    ensure_topics(pipeline, settings)
    producer = open_producer(settings, **{"message.timeout.ms": DELIVERY_MS_MAX})
    deliveries, sent, started = _Deliveries(), 0, time.monotonic()
    try:
        for event in events:
            if deliveries.failed is not None:
                break
            if rate is not None:
                producer.poll(max(0.0, started + sent / rate - time.monotonic()))
                time.sleep(max(0.0, started + sent / rate - time.monotonic()))
            _produce(producer, stream.topic, event, deliveries)
            sent += 1
            if progress is not None:
                progress(sent)
    except KafkaException as error:  # refused before it left
        deliveries.failed = error
    finally:
        left = producer.flush(FLUSH_SECONDS_MAX)
    if deliveries.failed is not None:
        told = f"{deliveries.delivered} events were delivered, the next was not"
        raise almanac_error(deliveries.failed, told, settings)
    if left:
        raise Unavailable(f"{deliveries.delivered} of {sent} events were confirmed in time: look at `almanac status`")
    return deliveries.delivered


def _produce(producer: Producer, topic: str, event: Outgoing, deliveries: _Deliveries) -> None:
    give_up_at = time.monotonic() + QUEUE_FULL_SECONDS_MAX
    while True:
        try:
            producer.produce(
                topic, key=event.key, value=event.value, headers=list(event.headers), on_delivery=deliveries.note
            )
            producer.poll(0)
            return
        except BufferError:  # the producer's queue is full: let it drain
            if time.monotonic() > give_up_at:
                raise Unavailable(
                    f"{deliveries.delivered} events were delivered, then the broker took no more: see `almanac status`"
                ) from None
            producer.poll(0.1)
