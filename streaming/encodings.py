"""Encodings: what bytes that are no JSON object are, so that a refusal says what to send instead. Pure.

Serializers put bytes before a value, compressors replace it, and some producers send several events at once. None of
these is read: which schema or codec was meant is not in the message, and half of a batch could not be refused.
"""

from __future__ import annotations

import re
from typing import Any

ONE_EACH = "send each event as a message of its own"
PLAIN = "send the JSON object itself, in UTF-8"
SCHEMA_BYTES = 5
"""Bytes that a schema registry's serializer puts first: a zero, and the schema's number."""

_BEGINNINGS = (
    (b"\xef\xbb\xbf", "a byte order mark", f"leave it out and {PLAIN}"),
    (b"\x1f\x8b", "gzip", f"{PLAIN}; Kafka's own compression (compression.type) is taken"),
    (b"\x28\xb5\x2f\xfd", "zstd", f"{PLAIN}; Kafka's own compression (compression.type) is taken"),
    (b"\x04\x22\x4d\x18", "lz4", f"{PLAIN}; Kafka's own compression (compression.type) is taken"),
    (b"\xc3\x01", "Avro's single-object encoding", PLAIN),
    (b"Obj\x01", "an Avro file", f"{PLAIN}, one event a message"),
    (b"PAR1", "a Parquet file", f"{PLAIN}, one event a message"),
    (b"\xff\xfe", "UTF-16", PLAIN),
    (b"\xfe\xff", "UTF-16", PLAIN),
)
_BATCH_TYPE = re.compile(r"application/cloudevents-batch(\+[a-z0-9.\-]+)?\s*(;.*)?", re.IGNORECASE)
_OTHER_STRUCTURED = re.compile(r"application/cloudevents\+(?!json\s*(;|$))[a-z0-9.\-]+\s*(;.*)?", re.IGNORECASE)


def framed(data: bytes) -> str | None:
    """How a schema registry's serializer began these bytes, in words; None if none did."""
    if len(data) > SCHEMA_BYTES and data[0] == 0:
        number = int.from_bytes(data[1:SCHEMA_BYTES], "big")
        return f"begins with the five bytes of a schema registry's serializer (schema {number})"
    return None


def of_bytes(value: bytes) -> str | None:
    """What bytes that are no JSON are, and what to send instead; None if that is not known."""
    if (how := framed(value)) is not None:
        return f"the event {how}: {PLAIN}, by a serializer of plain strings or bytes"
    for beginning, name, remedy in _BEGINNINGS:
        if value.startswith(beginning):
            return f"the event begins with {name}: {remedy}"
    return None


def of_list(found: list[Any], shown: str) -> str:
    """Why a list is no event."""
    if any(isinstance(one, dict) and "specversion" in one for one in found):
        return f"the event is a batch of {len(found):,} CloudEvents: {ONE_EACH} (application/cloudevents+json)"
    return f"the event is a list, {shown}: {ONE_EACH}, a JSON object"


def of_content_type(content_type: str) -> str | None:
    """Why a content type of CloudEvents is not read; None if it is no such type."""
    if _BATCH_TYPE.fullmatch(content_type):
        return f"the content-type says a batch of CloudEvents: {ONE_EACH} (application/cloudevents+json)"
    if _OTHER_STRUCTURED.fullmatch(content_type):
        return "the content-type says a CloudEvent in another format than JSON: send application/cloudevents+json"
    return None
