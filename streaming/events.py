"""An event: what one message of a pipeline's stream says, or why it cannot be believed. Pure, no I/O.

An event is a JSON object with the entity, the time of observation and the value:

    {"cell_id": 17, "observed_at": "2026-11-21T13:20:00Z", "t2m": 281.3}

or, for a pipeline without a source, with the columns of its pushed view, as `Stream.values` declares them,
or with a list of lines, as `Stream.lines` does (`streaming.values`); plain, or as the data of a CloudEvent
(binary mode: `ce_*` headers; structured mode: content-type `application/cloudevents+json`, or an object without the
entity that has `specversion`). Other fields are ignored, so that producers may add some. The message's key is the
entity; it may be absent or empty, unless events carry lines. What else producers send is named: `streaming.encodings`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import kafka as ce_kafka
from cloudevents.core.exceptions import BaseCloudEventException, CloudEventValidationError
from cloudevents.core.formats.json import JSONFormat

from almanac.clock import EPOCH, format_time, parse_time
from almanac.entity_keys import NotAKey, WrittenFloat, entity_key
from almanac.errors import EventError, UnknownEntity, UsageError
from almanac.partitioning import EntityKey
from almanac.pipeline import GridObservations, Pipeline, Stream
from streaming import encodings
from streaming.values import Line, lines_of, need, number, shown

EVENT_BYTES_MAX = 65_536
"""Size of a message's value, in bytes, above which it is not looked at."""
LINES_BYTES_MAX = 131_072
"""The same where events carry lines: less than what the topics take, for the features' records repeat the lines."""
HEADERS_MAX = 1_000
"""Headers of a message above which it is not looked at: each step on an event costs time by their number."""

OBSERVED_AT_MIN = EPOCH
"""Earliest believable observation; also what every store's timestamps can hold."""

OBSERVED_AT = "observed_at"

REASONS = (
    "not-json",
    "not-an-object",
    "duplicate-field",
    "bad-envelope",
    "missing-field",
    "wrong-type",
    "not-finite",
    "out-of-range",
    "unknown-entity",
    "bad-time",
    "future-time",
    "past-time",
    "too-large",
    "key-mismatch",
    "key-missing",
    "no-lines",
    "too-many-lines",
    "bad-item",
)
"""Every reason with which `parse` refuses: stable words, used in headers and metrics."""

Headers = Sequence[tuple[str, bytes | None]]
Identity = tuple[str | int, ...]
REPEATED_CHARS_MAX = 1_024
"""Characters of a CloudEvent's source, and of its id, that predictions repeat."""
"""By what an event is known, part by part: parts that are joined may be cut elsewhere."""
Observed = float | dict[str, float]
"""What was observed: the source's variable, or the pushed view's columns by name; True and False are numbers."""

_JSON_TYPE = re.compile(r"(application|text)/([a-z0-9.\-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_STRUCTURED_TYPE = re.compile(r"application/cloudevents\+json\s*(;.*)?", re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One believable observation.

    Args:
        entity: what was observed.
        observed_at: when, aware UTC.
        value: what was observed, finite; of a pipeline with a source, its variable in the source's unit. Empty
            where events carry lines.
        lines: these, where the declaration has them.
        claimed_at: when the event says that it was, if that is later than we could know: its sender's clock is fast.
        event_id: a CloudEvent's source, id and entity, by which a duplicate is known; None for a plain event.
        named: a CloudEvent's source and id; None for a plain event.
        trace: W3C traceparent, to be passed on; None when absent or malformed.
    """

    entity: EntityKey
    observed_at: datetime
    value: Observed
    lines: tuple[Line, ...] = ()
    claimed_at: datetime | None = None
    event_id: Identity | None = None
    named: tuple[str, str] | None = None
    trace: str | None = None

    @property
    def repeated(self) -> dict[str, str] | None:
        """Source and id as what is made of the event repeats them; None where there is none, or one is very long."""
        if self.named is None or max(map(len, self.named)) > REPEATED_CHARS_MAX:
            return None
        # JSON may name half a character, which no UTF-8 has.
        source, name = (part.encode("utf-8", "replace").decode() for part in self.named)
        return {"source": source, "id": name} if (source, name) == self.named else None

    @property
    def said(self) -> tuple[datetime, Observed | tuple[Line, ...]]:
        """When, and what: by which an event that comes again is known."""
        return self.claimed_at or self.observed_at, self.lines or self.value


def parse(value: bytes | None, key: bytes | None, headers: Headers | None, pipeline: Pipeline, now: datetime) -> Event:
    """Read one message of the pipeline's stream.

    Args:
        value, key, headers: the message as Kafka delivered it.
        pipeline: a pipeline with a stream.
        now: aware time, against which a future observation is judged.

    Raises:
        EventError: the event cannot be handled; `reason` is one of `REASONS`. Nothing else is raised for any message.
    """
    stream = declared(pipeline)
    if value is None:
        raise EventError("not-json", "the message has no value: send a JSON object")
    bytes_max = EVENT_BYTES_MAX if stream.lines is None else LINES_BYTES_MAX
    if len(value) > bytes_max:
        raise EventError("too-large", f"the event has {len(value)} bytes, at most {bytes_max} are read: send less")
    if len(headers or ()) > HEADERS_MAX:
        raise EventError(
            "too-large", f"the event has {len(headers or ()):,} headers, at most {HEADERS_MAX:,} are read: send fewer"
        )
    said = {name.lower(): content or b"" for name, content in headers or ()}
    fields, source_and_id = _fields(value, said, pipeline.entity)
    entity = _entity(need(fields, pipeline.entity), pipeline)
    if not key and stream.lines is not None:
        # What an entity's events amount to is kept by whoever reads its partition: all must come to the same.
        raise EventError("key-missing", f"the event has no key: send {pipeline.entity} as the message's key")
    if key and key != str(entity).encode():  # some clients send an empty key where others send none
        how = encodings.framed(key)
        raise EventError(
            "key-mismatch",
            f"key {shown(key)} {how}: send {pipeline.entity} {entity} as plain text"
            if how
            else f"key {shown(key)} is not the event's {pipeline.entity} {entity}: use it as key",
        )
    observed_at = _observed_at(need(fields, OBSERVED_AT), now, stream)
    observed = _observed(fields, pipeline)
    lines = lines_of(fields, stream.lines) if stream.lines is not None else ()
    if now - observed_at > pipeline.freshness.usable_for:
        # Its prediction would be expired when made, from features of another day.
        raise EventError(
            "past-time",
            f"{OBSERVED_AT} {format_time(observed_at)} is longer ago than "
            f"usable_for ({pipeline.freshness.usable_for}): send it to the offline source instead",
        )
    # Else it would hide what is observed from now on until its own time. A history takes it in later: see `folding`.
    fast = observed_at > now and stream.lines is None
    return Event(
        entity=entity,
        observed_at=now if fast else observed_at,
        claimed_at=observed_at if fast else None,
        value=observed,
        lines=lines,
        event_id=source_and_id and (*source_and_id, entity),
        named=source_and_id,
        trace=traceparent(headers),
    )


def declared(pipeline: Pipeline) -> Stream:
    """The pipeline's stream.

    Raises:
        UsageError: it declares none, so that no event of it could be read.
    """
    if pipeline.stream is None:
        raise UsageError(f"pipeline {pipeline.name} has no stream: declare stream=Stream(topic=…)")
    return pipeline.stream


def traceparent(headers: Headers | None) -> str | None:
    """The well-formed W3C traceparent of a message, if it has one; a CloudEvent may carry it as an extension."""
    found = {name.lower(): content for name, content in headers or () if content}
    for name in ("traceparent", "ce_traceparent"):
        text = found.get(name, b"").decode("ascii", "replace")
        if _TRACEPARENT.fullmatch(text):
            return text
    return None


def _fields(value: bytes, headers: dict[str, bytes], entity: str) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """The event's fields and its source and id, whichever way it came; `entity` is a field that each event has."""
    content_type = headers.get("content-type", b"").decode("latin-1").strip()
    if (why := encodings.of_content_type(content_type)) is not None:
        raise EventError("bad-envelope", why)
    if any(name.startswith(ce_kafka.CE_PREFIX) and name != "ce_traceparent" for name in headers):
        if content_type and not _JSON_TYPE.fullmatch(content_type):
            raise EventError("not-json", f"content-type is {shown(content_type)}: send application/json")
        attributes = {name: content for name, content in headers.items() if name.startswith(ce_kafka.CE_PREFIX)}
        if "ce_id" not in attributes:  # the library would invent one
            raise EventError(
                "bad-envelope", "the CloudEvent has no ce_id header: send id, source, type and specversion"
            )
        fields = _object(value)  # the library's own reader takes NaN and repeated names
        return fields, _identity(_cloud_event(ce_kafka.KafkaMessage(headers=attributes, key=None, value=value)))
    found = _object(value)
    if _STRUCTURED_TYPE.fullmatch(content_type) or ("specversion" in found and entity not in found):
        return _structured(value, found)
    return found, None


def _structured(value: bytes, envelope: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, str]]:
    """The fields, source and id of a CloudEvent that is one JSON object."""
    if "id" not in envelope:
        raise EventError("bad-envelope", "the CloudEvent has no id: send id, source, type and specversion")
    event = _cloud_event(ce_kafka.KafkaMessage(headers={}, key=None, value=value))
    data = envelope["data"] if "data" in envelope else event.get_data()  # numbers as they were written
    if isinstance(data, bytes):  # the envelope's data_base64
        data = _object(data)
    if not isinstance(data, dict):
        raise EventError("not-an-object", f"the CloudEvent's data is {shown(data)}: send a JSON object")
    return data, _identity(event)


def _cloud_event(message: ce_kafka.KafkaMessage) -> BaseCloudEvent:
    try:
        return ce_kafka.from_kafka(message, JSONFormat())
    except CloudEventValidationError as error:
        names = ", ".join(sorted(error.errors))
        raise EventError(
            "bad-envelope", f"the CloudEvent's attributes {shown(names)} are missing or malformed: correct them"
        ) from None
    except (BaseCloudEventException, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise EventError("bad-envelope", f"the CloudEvent cannot be read ({shown(str(error))}): correct it") from None


def _identity(event: BaseCloudEvent) -> tuple[str, str]:
    """Source and id apart: joined, two events whose parts are cut elsewhere would be one."""
    return str(event.get_source()), str(event.get_id())


def _object(value: bytes) -> dict[str, Any]:
    """Strict JSON (RFC 8259, with each name once): the object, or an EventError."""
    if (why := encodings.of_bytes(value)) is not None:
        raise EventError("not-json", why)
    try:
        text = value.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_once, parse_float=WrittenFloat, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        where = f"byte 0x{value[error.start]:02x} at {error.start:,}"
        raise EventError("not-json", f"the event is not UTF-8 ({where}): send a JSON object in UTF-8") from None
    except RecursionError:
        raise EventError("not-json", "the event is nested too deeply: send a flat JSON object") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise EventError(
                "not-json", f"more stands behind the event's JSON object ({shown(str(error))}): {encodings.ONE_EACH}"
            ) from None
        raise EventError("not-json", f"the event is not JSON ({shown(str(error))}): send a JSON object") from None
    except ValueError as error:  # a number of thousands of digits
        raise EventError("not-json", f"the event is not JSON ({shown(str(error))}): send a JSON object") from None
    if isinstance(found, list):
        raise EventError("not-an-object", encodings.of_list(found, shown(found)))
    if not isinstance(found, dict):
        raise EventError("not-an-object", f"the event is {shown(found)}: send a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise EventError("duplicate-field", f"field {shown(twice)} stands twice: send each once")
    return found


def _no_constant(text: str) -> NoReturn:
    raise EventError("not-finite", f"{text} is not a JSON number: send a finite value")


def _entity(found: Any, pipeline: Pipeline) -> EntityKey:
    try:
        return entity_key(pipeline.entity, pipeline.partitions, found)
    except UnknownEntity as error:
        reason = "wrong-type" if isinstance(error, NotAKey) else "unknown-entity"
        raise EventError(reason, str(error).encode("ascii", "backslashreplace").decode()) from None


def _observed_at(found: Any, now: datetime, stream: Stream) -> datetime:
    if not isinstance(found, str):
        raise EventError("wrong-type", f"{OBSERVED_AT} is {shown(found)}: send a string such as 2026-11-21T13:20:00Z")
    try:
        moment = parse_time(found)
    except ValueError as error:
        raise EventError(
            "bad-time", f"{OBSERVED_AT} {shown(found)} {error}: send RFC 3339, such as 2026-11-21T13:20:00Z"
        ) from None
    if moment < OBSERVED_AT_MIN:
        raise EventError(
            "bad-time", f"{OBSERVED_AT} {shown(found)} is before {format_time(OBSERVED_AT_MIN)}: correct it"
        )
    if moment > now + stream.future_tolerance:
        raise EventError(
            "future-time",
            f"{OBSERVED_AT} {format_time(moment)} is more than {stream.future_tolerance} after {format_time(now)}: "
            "set the sender's clock",
        )
    return moment


def _observed(fields: dict[str, Any], pipeline: Pipeline) -> Observed:
    if isinstance(pipeline.source, GridObservations):
        variable = pipeline.source.variable
        return number(variable, need(fields, variable), pipeline.source.valid_range, f" {pipeline.source.unit}")
    return {name: number(name, need(fields, name), allowed) for name, allowed in pipeline.event_values.items()}
