"""Other forms of times, events and envelopes: taken as what they say, or refused by a name and with what to send."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

import pytest

from almanac.errors import EventError
from tests.unit.test_events import GOOD, read, refused


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T13:20:00z", "2026-11-21t13:20:00Z", "2026-11-21t13:20:00z", "2026-11-21 13:20:00z",
        "2026-11-21T13:20:00+00:00", "2026-11-21T13:20:00-00:00", "2026-11-21T14:20:00+01:00", "2026-11-21T14:20:00+01",
        "2026-11-21T08:50:00-0430", "2026-11-21T13:20:00.000000999Z", "2026-11-21T13:20:00,0Z", "20261121T132000z",
        "2026-W47-6T13:20Z", "2026W476T1320Z",
    ],
)  # fmt: skip
def test_one_moment_may_be_written_in_many_ways(text: str) -> None:
    assert read({**GOOD, "observed_at": text}) == read(GOOD)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-11-21T13:20:00", "has no offset"), ("2026-11-21 13:20", "has no offset"),
        ("2026-11-21T23:59:60Z", "leap second"), ("2026-11-21T24:00:00Z", "end of a day"),
        ("20261121T240000Z", "end of a day"), ("2026-11-21T235960Z", "leap second"), ("2026-11-21", "is no time:"),
        ("2026-11-21☃13:20:00Z", "is no time:"), ("2026-11-21T13:20:00 Z", "is no time:"),
        (" 2026-11-21T13:20:00Z", "is no time:"), ("2026-11-21T13:20:00Z\n", "is no time:"),
        ("２０２６-11-21T13:20:00Z", "is no time:"), ("2026-11-21T13:20:00.Z", "is no time:"),
        ("2026-11-21T13:20:00+01:60", "is no time:"), ("2026-11-21T13:20:00+24:00", "of any calendar"),
        ("2026-11-21T25:20:00Z", "of any calendar"), ("2026-02-30T13:20:00Z", "of any calendar"),
        ("0000-11-21T13:20:00Z", "of any calendar"), ("2026-W47T13:20:00Z", "is no time:"),
        ("Sat, 21 Nov 2026 13:20:00 GMT", "is no time:"), ("1763731200", "is no time:"),
    ],
)  # fmt: skip
def test_what_is_no_moment_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(EventError, match=why) as caught:
        read({**GOOD, "observed_at": text})
    assert caught.value.reason == "bad-time"


PLAIN = json.dumps(GOOD).encode()
WHOLE = {"specversion": "1.0", "id": "e-1", "source": "/stations/4", "type": "observation", "data": GOOD}


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        (b"\0\0\0\0\x07" + PLAIN, "not-json", "schema registry's serializer (schema 7): send the JSON object itself"),
        (b"\0\0\0\1\x07\x02\x22\xff", "not-json", "(schema 263): send the JSON object itself"),
        (b"\xc3\x01" + bytes(8) + b"\x22", "not-json", "Avro's single-object encoding: send the JSON object"),
        (b"Obj\x01" + bytes(40), "not-json", "an Avro file: send the JSON object"),
        (gzip.compress(PLAIN, mtime=0), "not-json", "gzip: send the JSON object itself, in UTF-8; Kafka's own"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "not-json", "zstd: send"),
        (b"\xef\xbb\xbf" + PLAIN, "not-json", "a byte order mark: leave it out"),
        (PLAIN.decode().encode("utf-16"), "not-json", "UTF-16: send the JSON object itself, in UTF-8"),
        (PLAIN.decode().encode("latin-1") + b"\xe9", "not-json", "not UTF-8 (byte 0xe9"),
        (PLAIN + b"\n" + PLAIN, "not-json", "send each event as a message of its own"),
        (PLAIN + b"}", "not-json", "send each event as a message of its own"),
        ([GOOD, GOOD], "not-an-object", "a list, [{'cell_id': 17"),
        ([WHOLE, WHOLE], "not-an-object", "a batch of 2 CloudEvents: send each event as a message of its own"),
        ([], "not-an-object", "send each event as a message of its own"),
    ],
)
def test_another_encoding_is_named_and_what_to_send_instead(value: Any, reason: str, says: str) -> None:
    with pytest.raises(EventError) as caught:
        read(value)
    assert caught.value.reason == reason
    assert says in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("content_type", "says"),
    [
        (b"application/cloudevents-batch+json", "a batch of CloudEvents: send each event as a message of its own"),
        (b"application/cloudevents-batch+json; charset=utf-8", "a batch of CloudEvents"),
        (b"application/cloudevents+avro", "another format than JSON: send application/cloudevents+json"),
        (b"application/cloudevents+protobuf", "another format than JSON"),
    ],
)
def test_a_content_type_of_cloud_events_that_is_not_read_says_which_is(content_type: bytes, says: str) -> None:
    for value in ([WHOLE], b"\x0a\x03"):
        with pytest.raises(EventError, match=re.escape(says)) as caught:
            read(value, None, {"content-type": content_type})
        assert caught.value.reason == "bad-envelope"


def test_a_key_of_a_schema_registrys_serializer_is_named() -> None:
    with pytest.raises(EventError, match=r"\(schema 7\): send cell_id 17 as plain text") as caught:
        read(GOOD, b"\0\0\0\0\x0717")
    assert caught.value.reason == "key-mismatch"


def test_a_structured_cloud_event_is_known_without_headers() -> None:
    structured = read(WHOLE, b"17", {"content-type": b"application/cloudevents+json"})
    assert structured.event_id == ("/stations/4", "e-1", 17)
    for headers in (None, {"content-type": b"application/json"}, {"content-type": b"application/cloudevents"}):
        assert read(WHOLE, b"17", headers) == structured
    encoded = {**WHOLE, "data_base64": base64.b64encode(PLAIN).decode()}
    del encoded["data"]
    assert read(encoded) == structured
    assert refused({name: WHOLE[name] for name in WHOLE if name != "id"}) == "bad-envelope"
    assert refused({name: WHOLE[name] for name in WHOLE if name != "data"}) == "not-an-object"
    assert read({**GOOD, "specversion": "1.0", "id": "e-1"}).event_id is None, "a plain event may have such fields"
