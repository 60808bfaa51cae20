"""Events: what is believed, and with which word everything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import EventError, UsageError
from almanac.partitioning import Buckets, Grid
from almanac.pipeline import Freshness, GridObservations, Output, Pipeline, Stream, hours
from streaming.events import EVENT_BYTES_MAX, REASONS, Event, parse
from streaming.publish import replayable

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
GOOD = {"cell_id": 17, "observed_at": "2026-11-21T13:20:00Z", "t2m": 281.3}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENVELOPE = {"ce_specversion": b"1.0", "ce_id": b"e-1", "ce_source": b"/stations/4", "ce_type": b"observation"}


def declare(partitions: Grid | Buckets) -> Pipeline:
    return Pipeline(
        name="tiny",
        entity="cell_id",
        partitions=partitions,
        outputs=(Output(name="t2m_1h", horizon=hours(1)),),
        features="weather_v1",
        model="tiny@champion",
        schedule="0 * * * *",
        freshness=Freshness(fresh_for=hours(1), usable_for=hours(2)),
        source=GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0))
        if isinstance(partitions, Grid)
        else None,
        stream=Stream(
            topic="tiny.observations", values={} if isinstance(partitions, Grid) else {"t2m": (180.0, 340.0)}
        ),
    )


TINY = declare(Grid(rows=4, cols=5, tile=2))


def read(value: Any, key: bytes | None = None, headers: dict[str, bytes] | None = None) -> Event:
    raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return parse(raw, key, list((headers or {}).items()), TINY, NOW)


def refused(value: Any, key: bytes | None = None, headers: dict[str, bytes] | None = None) -> str:
    with pytest.raises(EventError) as caught:
        read(value, key, headers)
    assert caught.value.reason in REASONS
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_a_plain_event_is_read() -> None:
    assert read(GOOD) == Event(entity=17, observed_at=datetime(2026, 11, 21, 13, 20, tzinfo=UTC), value=281.3)


def test_the_key_may_be_the_entity_or_absent_and_other_fields_are_ignored() -> None:
    assert read({**GOOD, "station": [1, {"a": None}]}, b"17") == read(GOOD)


def test_times_are_taken_to_utc() -> None:
    assert read({**GOOD, "observed_at": "2026-11-21T14:20:00+01:00"}) == read(GOOD)


def test_the_entity_may_be_text_or_a_whole_float() -> None:
    assert read({**GOOD, "cell_id": "17"}) == read({**GOOD, "cell_id": 17.0}) == read(GOOD)


def test_a_whole_number_is_a_value() -> None:
    assert read({**GOOD, "t2m": 281}).value == 281.0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not-json"),
        (b"", "not-json"),
        (b"hello", "not-json"),
        (b"\xff\xfe", "not-json"),
        (b"\xef\xbb\xbf{}", "not-json"),
        (json.dumps(GOOD).encode("utf-16"), "not-json"),
        (b"[" * 30_000, "not-json"),
        (b"1" * 5_000, "not-json"),
        (b"[]", "not-an-object"),
        (b"17", "not-an-object"),
        (b"null", "not-an-object"),
        (b'{"cell_id": 17, "cell_id": 18, "observed_at": "2026-11-21T13:20:00Z", "t2m": 281.3}', "duplicate-field"),
        (b'{"cell_id": 17, "observed_at": "2026-11-21T13:20:00Z", "t2m": NaN}', "not-finite"),
        (b'{"cell_id": 17, "observed_at": "2026-11-21T13:20:00Z", "t2m": -Infinity}', "not-finite"),
        (b'{"cell_id": 17, "observed_at": "2026-11-21T13:20:00Z", "t2m": 1e999}', "not-finite"),
        ({**GOOD, "t2m": 10**400}, "not-finite"),
        ({}, "missing-field"),
        ({name: GOOD[name] for name in ("cell_id", "t2m")}, "missing-field"),
        ({name: GOOD[name] for name in ("cell_id", "observed_at")}, "missing-field"),
        ({**GOOD, "cell_id": "17.0"}, "wrong-type"),
        ({**GOOD, "cell_id": 17.5}, "wrong-type"),
        ({**GOOD, "cell_id": True}, "wrong-type"),
        ({**GOOD, "cell_id": None}, "wrong-type"),
        ({**GOOD, "t2m": "281.3"}, "wrong-type"),
        ({**GOOD, "t2m": True}, "wrong-type"),
        ({**GOOD, "t2m": None}, "wrong-type"),
        ({**GOOD, "observed_at": 1763731200}, "wrong-type"),
        ({**GOOD, "cell_id": 20}, "unknown-entity"),
        ({**GOOD, "cell_id": -1}, "unknown-entity"),
        ({**GOOD, "cell_id": 10**30}, "unknown-entity"),
        ({**GOOD, "t2m": 179.99}, "out-of-range"),
        ({**GOOD, "t2m": 8.15}, "out-of-range"),
        ({**GOOD, "observed_at": "yesterday"}, "bad-time"),
        ({**GOOD, "observed_at": ""}, "bad-time"),
        ({**GOOD, "observed_at": "2026-11-21T13:20:00"}, "bad-time"),
        ({**GOOD, "observed_at": "2026-11-21"}, "bad-time"),
        ({**GOOD, "observed_at": "0001-01-01T00:00:00+23:00"}, "bad-time"),
        ({**GOOD, "observed_at": "1969-12-31T23:59:59Z"}, "bad-time"),
        ({**GOOD, "observed_at": "2026-11-21T13:35:01Z"}, "future-time"),
        ({**GOOD, "observed_at": "9999-12-31T23:59:59Z"}, "future-time"),
        ({**GOOD, "observed_at": "2026-11-20T13:29:59Z"}, "past-time"),
        ({**GOOD, "observed_at": "1999-01-01T00:00:00Z"}, "past-time"),
        ({**GOOD, "note": "x" * EVENT_BYTES_MAX}, "too-large"),
    ],
)
def test_what_cannot_be_believed_is_refused_with_its_reason(value: Any, reason: str) -> None:
    assert refused(value) == reason


def test_the_future_begins_after_the_declared_tolerance() -> None:
    last = NOW + TINY.stream.future_tolerance  # type: ignore[union-attr]
    event = read({**GOOD, "observed_at": last.isoformat()})
    assert (event.observed_at, event.claimed_at) == (NOW, last)  # as of its arrival: it hides nothing of what comes
    assert event.said[0] == last
    assert refused({**GOOD, "observed_at": (last + timedelta(microseconds=1)).isoformat()}) == "future-time"


@pytest.mark.parametrize("name", ["cell_id", "observed_at", "t2m"])
def test_what_is_nested_as_deep_as_json_can_be_read_is_refused(name: str) -> None:
    for depth in (*range(850, 1_000, 7), 20_000):
        raw = json.dumps({**GOOD, name: 0}).replace(f'"{name}": 0', f'"{name}": ' + "[" * depth + "]" * depth)
        assert refused(raw.encode()) in ("not-json", "wrong-type")


def test_the_ends_of_the_valid_range_are_valid() -> None:
    assert [read({**GOOD, "t2m": value}).value for value in (180, 340)] == [180.0, 340.0]


def test_another_key_than_the_entity_is_refused() -> None:
    assert refused(GOOD, b"18") == "key-mismatch"
    assert refused(GOOD, b"017") == "key-mismatch"


def test_an_empty_key_is_none() -> None:
    assert read(GOOD, b"") == read(GOOD)


def test_a_cloud_event_in_binary_mode_is_read_with_its_identity() -> None:
    event = read(GOOD, b"17", {**ENVELOPE, "content-type": b"application/json"})
    assert (event.entity, event.value, event.event_id) == (17, 281.3, ("/stations/4", "e-1", 17))


def test_a_cloud_event_in_structured_mode_is_read_with_its_identity() -> None:
    whole = {"specversion": "1.0", "id": "e-1", "source": "/stations/4", "type": "observation", "data": GOOD}
    headers = {"content-type": b"application/cloudevents+json; charset=utf-8"}
    assert read(whole, b"17", headers) == read(GOOD, b"17", ENVELOPE)


@pytest.mark.parametrize("absent", list(ENVELOPE))
def test_a_cloud_event_without_a_required_attribute_is_refused(absent: str) -> None:
    headers = {name: content for name, content in ENVELOPE.items() if name != absent}
    if absent == "ce_specversion":  # the library reads it as 1.0
        assert read(GOOD, None, headers).event_id == ("/stations/4", "e-1", 17)
    else:
        assert refused(GOOD, None, headers) == "bad-envelope"


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (GOOD, {**ENVELOPE, "ce_time": b"noon"}, "bad-envelope"),
        (GOOD, {**ENVELOPE, "ce_id": b"\xff"}, "bad-envelope"),
        (GOOD, {**ENVELOPE, "ce_specversion": b"7"}, "bad-envelope"),
        (GOOD, {**ENVELOPE, "content-type": b"application/avro"}, "not-json"),
        (b'{"a": 1, "a": 2}', ENVELOPE, "duplicate-field"),
        ({"data": GOOD}, {"content-type": b"application/cloudevents+json"}, "bad-envelope"),
        (
            {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": "text"},
            {"content-type": b"application/cloudevents+json"},
            "not-an-object",
        ),
    ],
)
def test_a_malformed_cloud_event_is_refused(value: Any, headers: dict[str, bytes], reason: str) -> None:
    assert refused(value, None, headers) == reason


def test_the_trace_is_taken_from_either_header_and_only_if_well_formed() -> None:
    assert read(GOOD, None, {"traceparent": TRACE.encode()}).trace == TRACE
    assert read(GOOD, None, {**ENVELOPE, "ce_traceparent": TRACE.encode()}).trace == TRACE
    assert read(GOOD, None, {"ce_traceparent": TRACE.encode()}).trace == TRACE
    assert read(GOOD, None, {"traceparent": b"00-x"}).trace is None
    assert read(GOOD, None, {"traceparent": b"\xff"}).trace is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "cell_id": ANYTHING | st.integers(-2, 22),
        "observed_at": ANYTHING | st.datetimes().map(datetime.isoformat) | st.just(GOOD["observed_at"]),
        "t2m": ANYTHING | st.floats(150, 400),
        "specversion": st.sampled_from(["1.0", "0.3", "2"]) | ANYTHING,
        "id": ANYTHING,
        "source": ANYTHING,
        "type": ANYTHING,
        "time": ANYTHING,
        "data": ANYTHING | st.just(GOOD),
        "data_base64": ANYTHING,
    },
)
HEADER_NAMES = st.sampled_from(
    ["ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "ce_", "CE_ID", "ce_data", "content-type"]
) | st.text(max_size=5)
HEADER_VALUES = st.none() | st.binary(max_size=12) | st.sampled_from([b"1.0", b"0.3", b"application/cloudevents+json"])


@given(
    value=st.none()
    | st.binary()
    | ANYTHING.map(lambda v: json.dumps(v).encode())
    | FIELDS.map(lambda v: json.dumps(v).encode()),
    key=st.none() | st.binary(max_size=4) | st.integers(0, 30).map(lambda n: str(n).encode()),
    headers=st.none() | st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=6),
)
def test_no_message_raises_anything_but_an_event_error(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]] | None
) -> None:
    refusal: EventError | None = None
    try:
        event = parse(value, key, headers, TINY, NOW)
    except EventError as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason in REASONS
        assert "\n" not in str(refusal)
        assert str(refusal).encode()
    else:
        assert 0 <= event.entity < 20  # type: ignore[operator]
        assert 180 <= event.value <= 340
        assert event.observed_at <= NOW + timedelta(minutes=5)


RIDES = replace(
    TINY,
    entity="station",
    partitions=Buckets(count=4),
    source=None,
    stream=Stream(topic="bikes.rides", values={"rides": (0, 500), "open": bool, "balance": None}),
)
RIDE = {"station": "Holborn", "observed_at": "2026-11-21T13:20:00Z", "rides": 12, "open": True, "balance": -3.5}


def ridden(value: Any, pipeline: Pipeline = RIDES) -> Event:
    return parse(json.dumps(value).encode(), None, None, pipeline, NOW)


def test_without_a_source_an_event_carries_the_declared_columns() -> None:
    event = ridden({**RIDE, "more": "ignored"})
    assert (event.entity, event.value) == ("Holborn", {"rides": 12.0, "open": True, "balance": -3.5})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rides": 501}, "out-of-range"),
        ({"rides": True}, "wrong-type"),
        ({"rides": "12"}, "wrong-type"),
        ({"open": 1}, "wrong-type"),
        ({"balance": None}, "wrong-type"),
        ({"balance": 10**400}, "not-finite"),
        ({"balance": -3.5e38}, "out-of-range"),
        ({"station": 1.5}, "wrong-type"),
        ({"station": ""}, "unknown-entity"),
    ],
)
def test_each_declared_column_is_checked(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(EventError) as caught:
        ridden({**RIDE, **change})
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_a_declared_column_that_is_absent_is_named() -> None:
    with pytest.raises(EventError, match="field 'balance' is missing"):
        ridden({name: value for name, value in RIDE.items() if name != "balance"})


def test_integer_keys_stay_whole_numbers() -> None:
    numbered = replace(RIDES, partitions=Buckets(count=4, keys="integer"))
    assert ridden({**RIDE, "station": 17}, numbered).entity == 17
    for wrong in ("x", True, 1.5, 2**63):
        with pytest.raises(EventError, match="a whole number"):
            ridden({**RIDE, "station": wrong}, numbered)


@pytest.mark.parametrize(
    ("source", "name", "repeated"),
    [
        ("/stations/4", "e-1", True), ("/sensor", "a 7", True), ("☃" * 1024, "1", True), ("s", "x" * 1025, False),
        ("s", "\ud800", False), ("\udfff", "1", False),
    ],
)  # fmt: skip
def test_predictions_repeat_a_cloud_events_names_unless_they_are_long_or_no_text(
    source: str, name: str, repeated: bool
) -> None:
    envelope = {"specversion": "1.0", "id": name, "source": source, "type": "observation", "data": GOOD}
    event = parse(json.dumps(envelope).encode(), None, (), TINY, NOW)
    assert event.repeated == ({"source": source, "id": name} if repeated else None)
    assert parse(json.dumps(GOOD).encode(), None, (), TINY, NOW).repeated is None


def test_a_pipeline_without_a_source_is_told_to_send_a_file_not_to_declare_a_grid() -> None:
    with pytest.raises(UsageError, match="pipeline rides has no source to replay: send events with --file"):
        replayable(replace(RIDES, name="rides"))
