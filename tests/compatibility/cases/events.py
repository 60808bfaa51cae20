"""Kafka records that somebody sends to a pipeline's topic of events."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime

from almanac.partitioning import Grid
from almanac.pipeline import Freshness, GridObservations, Output, Pipeline, Stream, hours
from streaming.events import parse
from tests.compatibility.tables import Case, Converted, Table, Taken, cell

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
TINY = Pipeline(
    name="tiny",
    entity="cell_id",
    partitions=Grid(rows=4, cols=5, tile=2),
    outputs=(Output(name="t2m_1h", horizon=hours(1)),),
    features="weather_v1",
    model="tiny@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=hours(2)),
    source=GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0)),
    stream=Stream(topic="tiny.observations"),
)
GOOD = {"cell_id": 17, "observed_at": "2026-11-21T13:20:00Z", "t2m": 281.3}
PLAIN = json.dumps(GOOD).encode()
ENVELOPE = {"ce_specversion": b"1.0", "ce_id": b"e-1", "ce_source": b"/stations/4", "ce_type": b"observation"}
STRUCTURED = json.dumps({"specversion": "1.0", "id": "e-1", "source": "/s", "type": "o", "data": GOOD}).encode()


def case(what: str, value: bytes | None, key: bytes | None = None, headers: dict[str, bytes] | None = None) -> Case:
    """A record; the cell says the event's entity and value, and its identity where it has one."""

    def attempt() -> Taken | Converted:
        event = parse(value, key, list((headers or {}).items()), TINY, NOW)
        return Taken(cell(f"{event.entity}: {event.value}"))

    return Case(what, attempt)


TABLE = Table(
    given="record",
    cases=(
        case("a JSON object", PLAIN),
        case("the same, its key the entity", PLAIN, b"17"),
        case("the same, its key empty", PLAIN, b""),
        case("the same, its key another entity", PLAIN, b"18"),
        case("with fields that nobody declared", json.dumps({**GOOD, "station": [1, {"a": None}]}).encode()),
        case("a CloudEvent in binary mode", PLAIN, None, ENVELOPE),
        case(
            "a CloudEvent in structured mode",
            STRUCTURED,
            None,
            {"content-type": b"application/cloudevents+json"},
        ),
        case("the same without headers", STRUCTURED),
        case(
            "a batch of CloudEvents",
            b"[" + STRUCTURED + b"]",
            None,
            {"content-type": b"application/cloudevents-batch+json"},
        ),
        case("an Avro-encoded CloudEvent", b"\x0a\x03", None, {"content-type": b"application/cloudevents+avro"}),
        case("the same batch without headers", b"[" + STRUCTURED + b"]"),
        case(
            "a binary CloudEvent whose content-type is Avro",
            b"\x0a",
            None,
            {**ENVELOPE, "content-type": b"avro/binary"},
        ),
        case("Avro's single-object encoding", b"\xc3\x01" + bytes(8) + b"\x22"),
        case("a schema registry's five bytes, then Protobuf", b"\0\0\0\0\x07\x00\x08\x11\xff"),
        case("JSON whose key has a schema registry's five bytes", PLAIN, b"\0\0\0\0\x0717"),
        case("JSON with a schema's id in its headers", PLAIN, b"17", {"__value_schema_id": b"\x01" + bytes(16)}),
        case("a schema registry's five bytes, then JSON", b"\0\0\0\0\x07" + PLAIN),
        case("gzip of the JSON", gzip.compress(PLAIN, mtime=0)),
        case("JSON after a byte order mark", b"\xef\xbb\xbf" + PLAIN),
        case("JSON in UTF-16", json.dumps(GOOD).encode("utf-16")),
        case("two objects, a line each", PLAIN + b"\n" + PLAIN),
        case("a list of objects", b"[" + PLAIN + b"]"),
        case("no value (a tombstone)", None),
        case("an empty value", b""),
        case("a field twice", PLAIN[:-1] + b', "t2m": 1.0}'),
        case("a value as text", json.dumps({**GOOD, "t2m": "281.3"}).encode()),
        case("a value out of its range", json.dumps({**GOOD, "t2m": 8.15}).encode()),
        case("`NaN`", PLAIN.replace(b"281.3", b"NaN")),
        case("without its time", json.dumps({"cell_id": 17, "t2m": 281.3}).encode()),
    ),
)
