"""Publish: send events to a pipeline's topic, and know that they arrived."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from almanac.clock import format_time
from almanac.entity_keys import WrittenFloat, entity_key, shown
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
REFUSED_NAMED_MAX = 3


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """An event about to be sent: its value, and its entity as key where it has one.

    Args:
        name: what a person knows it by, such as `line 2`.
    """

    value: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    name: str = field(default="", compare=False)

    @property
    def size(self) -> int:
        """Bytes of value and key."""
        return len(self.value or b"") + len(self.key or b"")


@dataclass(frozen=True)
class Oversized:
    """What is no event by its size alone, and was not kept in memory."""

    name: str
    size: int
    """In bytes."""


def from_lines(lines: IO[bytes], pipeline: Pipeline) -> Iterator[Outgoing | Oversized]:
    """One event a line, as it stands; empty lines are skipped, one of more than `LINE_BYTES_MAX` is passed over."""
    number = 0
    while line := lines.readline(LINE_BYTES_MAX + 1):
        number += 1
        size = len(line)
        while not line.endswith(b"\n") and size > LINE_BYTES_MAX and (line := lines.readline(LINE_BYTES_MAX)):
            size += len(line)
        if size > LINE_BYTES_MAX + 1:  # with its end
            yield Oversized(f"line {number}", size)
        elif value := line.strip():
            yield Outgoing(value=value, key=_key(value, pipeline), name=f"line {number}")


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


def check_all(events: Iterable[Outgoing | Oversized], pipeline: Pipeline, now: datetime) -> list[Outgoing]:
    """All events, after each was read as the worker would read it.

    Raises:
        UsageError: one of them is malformed, or there are too many to check; nothing was sent.
    """
    checked = []
    for number, event in enumerate(events, start=1):
        if number > CHECKED_LINES_MAX:
            raise UsageError(f"more than {CHECKED_LINES_MAX} events: send them in parts, or without --check")
        if isinstance(event, Oversized):
            raise UsageError(f"{event.name} has {event.size:,} bytes: send one event a line; nothing was sent")
        try:
            parse(event.value, event.key, None, pipeline, now)
        except EventError as error:
            raise UsageError(f"event {number} is malformed ({error.reason}: {error}); nothing was sent") from None
        checked.append(event)
    return checked


def replayable(pipeline: Pipeline) -> tuple[Grid, GridObservations]:
    """The grid and what is observed on it, of a pipeline whose source can be sent as events.

    Raises:
        UsageError: its observations lie in files of its own, or on no grid.
    """
    if not isinstance(pipeline.partitions, Grid) or not isinstance(pipeline.source, GridObservations):
        raise UsageError(f"pipeline {pipeline.name} has no source to replay: send events with --file")
    return pipeline.partitions, pipeline.source


def replayed(pipeline: Pipeline, source: Source, now: datetime, hours: int) -> Iterator[Outgoing]:
    """The source's observations of the last hours, hour by hour, cell by cell.

    Raises:
        UsageError: `hours` is out of range, or the pipeline has no grid.
        SourceError: the source cannot be read.
    """
    import numpy as np

    declared(pipeline)
    grid, observed = replayable(pipeline)
    if not 1 <= hours <= REPLAY_HOURS_MAX:
        raise UsageError(f"{hours} hours cannot be replayed: give 1 to {REPLAY_HOURS_MAX}")
    latest = source.latest(now)
    for back in reversed(range(hours)):
        hour = latest - timedelta(hours=back)
        field = np.asarray(source.window(hour, hour).values)
        if field.shape != (1, grid.rows, grid.cols):
            raise SourceError(f"the source has no observations of {format_time(hour)}: replay fewer hours")
        for cell, value in enumerate(field[0].ravel()):
            body = {pipeline.entity: cell, OBSERVED_AT: format_time(hour), observed.variable: float(value)}
            yield Outgoing(value=msgspec.json.encode(body), key=str(cell).encode())


class _Deliveries:
    """What became of the events that were handed to the producer."""

    def __init__(self) -> None:
        self.delivered = 0
        self.failed: KafkaException | None = None
        self.too_large = 0
        self._named: list[str] = []

    def note(self, event: Outgoing, error: Any, _message: Message | None) -> None:
        """Called by the producer once for each event."""
        if error is None:
            self.delivered += 1
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:  # its own fault: the others are sent
            self.refuse(event.name or f"the event of key {shown(event.key)}", event.size)
        elif self.failed is None:
            self.failed = KafkaException(error)

    def refuse(self, name: str, size: int) -> None:
        """One that no topic takes."""
        self.too_large += 1
        if len(self._named) < REFUSED_NAMED_MAX:
            self._named.append(f"{name} ({size:,} bytes)")

    def refused(self, topic: str) -> UsageError:
        """The error of a run that sent what it could."""
        more = f" and {self.too_large - len(self._named)} more" if self.too_large > len(self._named) else ""
        return UsageError(
            f"{counted(self.delivered, 'event')} delivered to {topic}; larger than the topic takes, and not sent: "
            f"{', '.join(self._named)}{more}: shorten what was not sent, and send that alone"
        )


def counted(number: int, noun: str) -> str:
    """`1 event was`, `2 events were`."""
    return f"{number} {noun} was" if number == 1 else f"{number} {noun}s were"


def publish(
    events: Iterable[Outgoing | Oversized],
    pipeline: Pipeline,
    settings: Settings,
    *,
    rate: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Send events and wait until the broker has confirmed each. Returns their number.

    One that is larger than the topic takes is left out, and named when the others are sent.

    Args:
        rate: events a second; None for as fast as they are taken.
        progress: told how many were sent so far.

    Raises:
        Unavailable: not all were confirmed; says how many were.
        UsageError: the broker refuses one; or some were too large, and all others are delivered.
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
            if isinstance(event, Oversized):
                deliveries.refuse(event.name, event.size)
                continue
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
    if deliveries.too_large:
        raise deliveries.refused(stream.topic)
    return deliveries.delivered


def _produce(producer: Producer, topic: str, event: Outgoing, deliveries: _Deliveries) -> None:
    give_up_at = time.monotonic() + QUEUE_FULL_SECONDS_MAX
    while True:
        try:
            producer.produce(
                topic,
                key=event.key,
                value=event.value,
                headers=list(event.headers),
                on_delivery=partial(deliveries.note, event),
            )
            producer.poll(0)
            return
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            deliveries.note(event, error.args[0], None)
            return
        except BufferError:  # the producer's queue is full: let it drain
            if time.monotonic() > give_up_at:
                raise Unavailable(
                    f"{deliveries.delivered} events were delivered, then the broker took no more: see `almanac status`"
                ) from None
            producer.poll(0.1)
