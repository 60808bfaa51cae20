"""Records: what the stream reads from Kafka and what it writes there. Pure, no I/O.

Every JSON value written has `source`: the topic, partition and offset of the
event that it was made from, by which a reader tells a replay from news.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from almanac.clock import format_time, parse_time
from almanac.errors import AlmanacError, DataError, EventError
from almanac.freshness import valid_at
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.ranked import Value
from serving_cache.records import OverlayRecord, incarnate
from streaming.event_places import (
    INCARNATION_MAX,
    PLACE_DIGITS_MAX,
    number_in,
    places,
    source_of,
    whole_number,
)
from streaming.events import Event, Observed, traceparent
from streaming.record_checks import (
    body_of,
    need_history,
    need_written_by_now,
    observed_of,
    tolerance_of,
    value_of,
)
from streaming.sizes import LETTER_BYTES_MAX, headers_bytes, record_bytes
from streaming.values import shown

if TYPE_CHECKING:
    from streaming.models import Model

# Names of KIP-1034. A stack trace is not added: the reason and the message say what happened.
HEADER_EXCEPTION = "__streams.errors.exception"
HEADER_MESSAGE = "__streams.errors.message"
HEADER_TOPIC = "__streams.errors.topic"
HEADER_PARTITION = "__streams.errors.partition"
HEADER_OFFSET = "__streams.errors.offset"
HEADER_REASON = "almanac.reason"
HEADER_ORIGIN = "almanac.origin"
"""Of a dead letter that was sent again: where it first stood, as `<topic>/<partition>/<offset>`."""
HEADER_FORWARDED = "almanac.forwarded"
"""Of an event that was written again to its entity's home partition: where it stood before, alike; once each time."""
HEADER_HOPS = "almanac.hops"
"""How often an event was forwarded, also by workers that prove nothing: a limit, and no claim of a place."""
HEADER_PROOF = "almanac.proof"
"""Of what a worker wrote: that the place it says is true of the event it is; see `streaming.proofs`."""
HEADER_INCARNATION = "almanac.incarnation"
"""Of a dead letter: the incarnation of the topic where its event first stood, as a number."""
ERROR_HEADERS = (
    HEADER_EXCEPTION,
    HEADER_MESSAGE,
    HEADER_TOPIC,
    HEADER_PARTITION,
    HEADER_OFFSET,
    HEADER_REASON,
    HEADER_ORIGIN,
    HEADER_FORWARDED,
    HEADER_INCARNATION,
)

HEADER_CUT = "almanac.cut"
"""Of a dead letter that is not all of its event: bytes of value, key and headers as they were, as `<n>/<n>/<n>`;
names and contents of headers with their lengths, and `?` of headers that could not be read."""
RESERVED_HEADERS = frozenset({*ERROR_HEADERS, HEADER_PROOF, HEADER_CUT, HEADER_HOPS})
"""Headers that are no event's own."""
PROOF_ROOM = (HEADER_PROOF, bytes(64))
"""As long as the header that a worker adds to what it signs."""
KEPT_VALUE_BYTES_MAX = 262_144
"""Bytes of a value that a dead letter keeps: as much as the events' topic takes, unless its limit was raised."""
KEPT_OTHER_BYTES_MAX = 65_536
"""Bytes of a key, and of all headers as `sizes.headers_bytes` counts them, that a dead letter keeps."""

_LENGTHS_BYTES = 16
"""How much longer the lengths of a record's parts may be than those of empty ones."""
MESSAGE_CHARS_MAX = 1_000
"""Length of the message in a dead letter's headers, in characters."""


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """A record as Kafka delivered it; a worker's holds no claim in its headers but proved ones (`streaming.proofs`).

    Args:
        standing: incarnation of the topic that it stands in; 0 if that is not known.
        unreadable: why its headers could not be read, so that it has none here; empty of all others.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    standing: int = 0
    unreadable: str = ""

    @property
    def bytes(self) -> int:
        """Its size, as a topic's limit counts it."""
        return record_bytes(self.key, self.value, self.headers)

    @property
    def incarnation(self) -> int:
        """Incarnation of the topic where the event first stood; the lowest of one that was sent again without it."""
        return number_in(self.headers, HEADER_INCARNATION) if places(self.headers, HEADER_ORIGIN) else self.standing

    @property
    def redriven(self) -> bool:
        """Whether it was a dead letter that was sent again."""
        origins = places(self.headers, HEADER_ORIGIN)
        return bool(origins) and origins[-1] != (self.topic, self.partition, self.offset)

    @property
    def origin(self) -> tuple[str, int, int]:
        """Topic, partition and offset by which the event is known: where it first stood."""
        if origins := places(self.headers, HEADER_ORIGIN):
            return origins[-1]
        forwarded = places(self.headers, HEADER_FORWARDED)
        return forwarded[0] if forwarded else (self.topic, self.partition, self.offset)

    @property
    def forwards(self) -> int:
        """How often it was written again to another partition."""
        return max(len(places(self.headers, HEADER_FORWARDED)), number_in(self.headers, HEADER_HOPS))

    @property
    def source(self) -> dict[str, str | int]:
        """The same, as records say it."""
        return dict(zip(("topic", "partition", "offset"), self.origin, strict=True))


@dataclass(frozen=True, kw_only=True)
class Produced:
    """A record to be written.

    Args:
        partition: where; None for the partition that the key gives.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int | None = None


@dataclass(frozen=True, kw_only=True)
class Folded:
    """An entity's history with an event folded in.

    Args:
        row: its columns.
        at: moment of the newest event in it, microseconds since 1970.
        created: when the event was folded in, alike; later for each next event of the entity, so that of two
            rows of one moment the one with more in it is the newer.
        lines: of that event what was folded in: item, quantity and price.
    """

    row: Mapping[str, Any]
    at: int
    created: int
    lines: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """An observation read back from the features topic: what the event said, where it stood, and its trace.

    Args:
        folded: where events carry lines: these, and the entity's history with them folded in.
    """

    entity: EntityKey
    observed_at: datetime
    value: Observed
    topic: str
    kafka_partition: int
    kafka_offset: int
    trace: str | None
    folded: Folded | None = None


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A dead letter as a person reads it."""

    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    raw: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def incarnation(self) -> int:
        """Of the topic where the event first stood; 0 if it does not say so."""
        return number_in(self.headers, HEADER_INCARNATION)

    @property
    def whole(self) -> bool:
        """Whether it is all of the event, and says where that stood, so that it can be sent again."""
        return self.partition >= 0 and self.offset >= 0 and all(name != HEADER_CUT for name, _ in self.headers)


def prediction_record(
    pipeline: Pipeline, origin: Consumed, event: Event, values: Mapping[str, Value], model: Model[Any],
    computed_at: datetime, *, as_of: datetime | None = None,
) -> Produced:  # fmt: skip
    """The record for the predictions topic (docs/predictions.md); as_of is the event's time unless given."""
    as_of = as_of or event.observed_at
    moments = {output.name: valid_at(output, as_of) for output in pipeline.outputs}
    body = {
        "pipeline": pipeline.name,
        "entity": event.entity,
        "as_of": format_time(as_of),
        "values": dict(values),
        "valid_at": {name: moment and format_time(moment) for name, moment in moments.items()},
        "model": model.id,
        "answers": model.answers,
        "generation": None,
        "source": origin.source,
        "incarnation": origin.incarnation,
        "event": event.repeated,
        "computed_at": format_time(computed_at),
    }
    return _produced(pipeline.predictions_topic, event, body)


def feature_record(pipeline: Pipeline, origin: Consumed, event: Event, folded: Folded | None = None) -> Produced:
    """The record for the features topic: the observation, on its way to the online store."""
    body: dict[str, Any] = {
        "pipeline": pipeline.name,
        "entity": event.entity,
        "observed_at": format_time(event.observed_at),
        "value": event.value,
        "source": origin.source,
    }
    if folded is not None:
        body["folded"] = folded
    return _produced(pipeline.features_topic, event, body)


def _produced(topic: str, event: Event, body: dict[str, Any]) -> Produced:
    headers = (("traceparent", event.trace.encode()),) if event.trace else ()
    return Produced(topic=topic, key=str(event.entity).encode(), value=msgspec.json.encode(body), headers=headers)


def forwarded_record(record: Consumed, partition: int) -> Produced:
    """An event as it stands, for its entity's home partition; a header says where it stood."""
    stood = f"{record.topic}/{record.partition}/{record.offset}".encode()
    before = tuple(header for header in record.headers if header[0] != HEADER_HOPS)
    headers = (*before, (HEADER_FORWARDED, stood), (HEADER_HOPS, str(record.forwards + 1).encode()))
    return Produced(topic=record.topic, key=record.key, value=record.value, headers=headers, partition=partition)


def dead_letter_record(
    pipeline: Pipeline, origin: Consumed, error: EventError, bytes_max: int = LETTER_BYTES_MAX
) -> Produced:
    """The record for the dead-letter topic: raw bytes, key and headers unchanged, then why and where.

    Of headers that stand twice (a dead letter sent again and refused again) the last one counts.
    What the topic could not take is cut, and `HEADER_CUT` says so.

    Args:
        bytes_max: size of a record that the topic takes, in bytes.
    """
    sizes: tuple[int | str, ...] = (len(origin.value or b""), len(origin.key or b""), headers_bytes(origin.headers))
    if origin.unreadable:
        sizes = (*sizes[:2], "?")
    added = {
        HEADER_EXCEPTION: type(error).__name__,
        HEADER_MESSAGE: str(error)[:MESSAGE_CHARS_MAX],
        HEADER_TOPIC: origin.origin[0],
        HEADER_PARTITION: str(origin.origin[1]),
        HEADER_OFFSET: str(origin.origin[2]),
        HEADER_REASON: error.reason,
        **({HEADER_INCARNATION: str(origin.incarnation)} if origin.incarnation else {}),
    }
    why = tuple((name, text.encode("utf-8", "backslashreplace")) for name, text in added.items())
    said = (HEADER_CUT, "/".join(map(str, sizes)).encode())
    # The place of the event is never cut; of the rest what fits, the value first.
    room = bytes_max - record_bytes(b"", b"", (*why, said, PROOF_ROOM)) - _LENGTHS_BYTES
    value = origin.value and origin.value[: min(KEPT_VALUE_BYTES_MAX, max(0, room))]
    room -= len(value or b"")
    key = origin.key and origin.key[: min(KEPT_OTHER_BYTES_MAX, max(0, room))]
    room -= len(key or b"")
    own = origin.headers if headers_bytes(origin.headers) <= min(KEPT_OTHER_BYTES_MAX, room) else ()
    cut = origin.unreadable or (value, key, own) != (origin.value, origin.key, origin.headers)
    headers = (*own, *why, *((said,) if cut else ()))
    return Produced(topic=pipeline.dead_letter_topic, key=key, value=value, headers=headers)


def read_dead_letter(record: Consumed) -> DeadLetter:
    """A dead letter for a person; a header that somebody else left out reads `unknown` or -1."""
    found = {name: (content or b"").decode("utf-8", "replace") for name, content in record.headers}

    def number(name: str) -> int:
        text = found.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= PLACE_DIGITS_MAX else -1

    return DeadLetter(
        reason=found.get(HEADER_REASON, "unknown"),
        message=found.get(HEADER_MESSAGE, record.unreadable or "unknown"),
        topic=found.get(HEADER_TOPIC, "unknown"),
        partition=number(HEADER_PARTITION),
        offset=number(HEADER_OFFSET),
        raw=record.value,
        key=record.key,
        headers=record.headers,
    )


def read_prediction(pipeline: Pipeline, record: Consumed, now: datetime | None = None) -> OverlayRecord:
    """Read a record of the predictions topic as the overlay that it becomes.

    Args:
        now: who applies it to a store gives the time, and no record from the future is read.

    Raises:
        DataError: it was not written by a stream worker of this pipeline.
    """
    try:
        body = body_of(pipeline, record.value, record.unreadable)
        topic, partition, offset = source_of(body)
        as_of, computed_at = parse_time(body["as_of"]), parse_time(body["computed_at"])
        if now is not None:
            need_written_by_now("as_of", as_of, now)
            need_written_by_now("computed_at", computed_at, now)
        return OverlayRecord(
            entity=str(pipeline.partitions.check(body["entity"])),
            as_of=as_of,
            values={name: value_of(pipeline, body["values"][name]) for name in pipeline.output_names},
            model=str(body["model"]),
            topic=incarnate(topic, whole_number(body.get("incarnation", 0), INCARNATION_MAX)),
            kafka_partition=partition,
            kafka_offset=offset,
            computed_at=computed_at,
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AlmanacError) as error:
        raise foreign_record(record, error) from None


def read_feature_row(pipeline: Pipeline, record: Consumed, now: datetime | None = None) -> FeatureRow:
    """Read a record of the features topic.

    Args:
        now: as `read_prediction`.

    Raises:
        DataError: it was not written by a stream worker of this pipeline.
    """
    try:
        body = body_of(pipeline, record.value, record.unreadable)
        topic, partition, offset = source_of(body)
        observed_at = parse_time(body["observed_at"])
        folded = msgspec.convert(body["folded"], Folded) if pipeline.lines is not None else None
        if now is not None:
            need_written_by_now("observed_at", observed_at, now, tolerance_of(pipeline))
            if folded is not None:
                need_history(folded.row, folded.at, folded.created, now)
        return FeatureRow(
            entity=pipeline.partitions.check(body["entity"]),
            observed_at=observed_at,
            value=observed_of(pipeline, body["value"]),
            topic=topic,
            kafka_partition=partition,
            kafka_offset=offset,
            trace=traceparent(record.headers),
            folded=folded,
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AlmanacError) as error:
        raise foreign_record(record, error) from None


def foreign_record(record: Consumed, error: Exception) -> DataError:
    """What is wrong with a record that no worker wrote, or that no store takes."""
    return DataError(
        f"{record.topic}/{record.partition} offset {record.offset} was not written by a stream worker "
        f"({type(error).__name__}: {shown(str(error))}): skipped; find who else writes to this topic"
    )
