"""Events with lines: what of a basket is believed, and with which word everything else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import DeclarationError, EventError
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Lines, Output, Pipeline, Stream, days
from streaming.events import EVENT_BYTES_MAX, LINES_BYTES_MAX, REASONS, Event, parse

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
LINE = {"item_id": "85123A", "quantity": 6, "price": 2.55}
GOOD = {"customer_id": "17850", "observed_at": "2026-11-21T13:20:00Z", "lines": [LINE]}
LINES = Lines(item="item_id", values={"quantity": (-10_000.0, 10_000.0), "price": (0.0, 100_000.0)}, most=50)


def declare(**more: Any) -> Pipeline:
    fields: dict[str, Any] = {
        "name": "baskets",
        "entity": "customer_id",
        "partitions": Buckets(count=4),
        "outputs": (Output(name="score"),),
        "features": "baskets_v1",
        "model": "baskets@champion",
        "schedule": "0 3 * * *",
        "freshness": Freshness(fresh_for=days(1), usable_for=days(2)),
        "stream": Stream(topic="baskets.purchases", lines=LINES),
    }
    return Pipeline(**{**fields, **more})


BASKETS = declare()


def read(value: Any, key: bytes | None = b"17850") -> Event:
    raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return parse(raw, key, None, BASKETS, NOW)


def refused(value: Any, key: bytes | None = b"17850") -> str:
    with pytest.raises(EventError) as caught:
        read(value, key)
    assert caught.value.reason in REASONS
    assert "\n" not in str(caught.value)
    return caught.value.reason


def basket(**more: Any) -> dict[str, Any]:
    return {**GOOD, "lines": [{**LINE, **more}]}


def test_a_basket_is_read_line_by_line_and_other_fields_are_ignored() -> None:
    event = read({**GOOD, "till": 4, "lines": [{**LINE, "description": "HEART"}, {**LINE, "item_id": 22423}]})
    assert event.lines == (
        {"item_id": "85123A", "quantity": 6.0, "price": 2.55},
        {"item_id": "22423", "quantity": 6.0, "price": 2.55},
    )
    assert (event.entity, event.observed_at) == ("17850", datetime(2026, 11, 21, 13, 20, tzinfo=UTC))


def test_an_item_may_stand_in_several_lines_and_a_return_has_a_negative_quantity() -> None:
    event = read({**GOOD, "lines": [LINE, {**LINE, "quantity": -2}]})
    assert [line["quantity"] for line in event.lines] == [6.0, -2.0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({**GOOD, "customer_id": ""}, "unknown-entity"),
        ({**GOOD, "customer_id": "x" * 257}, "unknown-entity"),
        ({**GOOD, "customer_id": "x" * LINES_BYTES_MAX}, "too-large"),
        ({**GOOD, "customer_id": "a\0b"}, "wrong-type"),
        (b'{"customer_id": "\\ud800", "observed_at": "2026-11-21T13:20:00Z", "lines": []}', "wrong-type"),
        ({**GOOD, "customer_id": None}, "wrong-type"),
        ({**GOOD, "customer_id": 1.5}, "wrong-type"),
        ({**GOOD, "customer_id": {"$ne": ""}}, "wrong-type"),
        ({**GOOD, "lines": [LINE] * 51}, "too-many-lines"),
        ({**GOOD, "lines": [LINE] * 10_000}, "too-large"),
        ({**GOOD, "lines": []}, "no-lines"),
        ({**GOOD, "lines": LINE}, "wrong-type"),
        ({**GOOD, "lines": ["85123A"]}, "wrong-type"),
        ({**GOOD, "lines": None}, "wrong-type"),
        ({name: GOOD[name] for name in ("customer_id", "observed_at")}, "missing-field"),
        ({**GOOD, "lines": [{"item_id": "a", "quantity": 1}]}, "missing-field"),
        ({**GOOD, "lines": [{"quantity": 1, "price": 1}]}, "missing-field"),
        ({**GOOD, "lines": [LINE, {**LINE, "price": None}]}, "wrong-type"),
        (json.dumps(basket(price=0)).replace('"price": 0', '"price": NaN').encode(), "not-finite"),
        (json.dumps(basket(price=0)).replace('"price": 0', '"price": 1e999').encode(), "not-finite"),
        (basket(price=-0.01), "out-of-range"),
        (basket(quantity=10_001), "out-of-range"),
        (basket(quantity=True), "wrong-type"),
        (basket(item_id=""), "bad-item"),
        (basket(item_id="*"), "bad-item"),
        (basket(item_id="a\0"), "bad-item"),
        (basket(item_id="é" * 129), "bad-item"),
        (basket(item_id=None), "wrong-type"),
        (basket(item_id=1.5), "wrong-type"),
        (b'{"customer_id": "17850", "lines": [{"item_id": "\\udfff"}]}', "missing-field"),
        (json.dumps(basket(item_id="X")).replace('"X"', '"\\ud800"').encode(), "wrong-type"),
        (json.dumps(basket(description="caf\u00e9"), ensure_ascii=False).encode("latin-1"), "not-json"),
        (json.dumps(basket()).encode("utf-16"), "not-json"),
        ({**GOOD, "observed_at": "1066-10-14T09:00:00Z"}, "bad-time"),
        ({**GOOD, "observed_at": "2009-12-01T07:45:00Z"}, "past-time"),
        ({**GOOD, "observed_at": "2026-11-22T13:20:00Z"}, "future-time"),
    ],
)
def test_what_cannot_be_believed_is_refused_with_its_reason(value: Any, reason: str) -> None:
    named = value["customer_id"] if isinstance(value, dict) else None
    key = named.encode() if isinstance(named, str) else b"17850"
    assert refused(value, key) == reason


def test_another_encoding_is_said() -> None:
    with pytest.raises(EventError, match=r"not UTF-8 \(byte 0xe9 at"):
        read(json.dumps(basket(description="café"), ensure_ascii=False).encode("latin-1"))


def test_an_event_that_names_no_key_is_refused_for_its_entity_may_be_elsewhere() -> None:
    assert refused(GOOD, None) == "key-missing"
    assert refused(GOOD, b"") == "key-missing"
    assert refused(GOOD, b"17851") == "key-mismatch"


def test_a_basket_may_be_larger_than_an_event_without_lines() -> None:
    wide = {**GOOD, "lines": [{**LINE, "description": "x" * 2_000}] * 50}
    assert EVENT_BYTES_MAX < len(json.dumps(wide)) < LINES_BYTES_MAX
    assert len(read(wide).lines) == 50


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"item": "item id"}, "Lines.item"),
        ({"values": {"item_id": None}}, "names the item"),
        ({"values": {"price": (2, 1)}}, r"Lines.values\['price'\]"),
        ({"values": [1]}, "Lines.values"),
        ({"most": 0}, "Lines.most"),
        ({"most": 10**6}, "Lines.most"),
        ({"name": "9"}, "Lines.name"),
    ],
)
def test_a_declaration_of_lines_that_cannot_be_is_refused(given_: Mapping[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        Lines(**{"item": "item_id", "values": {"price": None}, **given_})


def test_lines_are_told_from_values_and_from_entity_and_time() -> None:
    with pytest.raises(DeclarationError, match="values and lines"):
        Stream(topic="t", values={"a": None}, lines=LINES)
    for name in ("customer_id", "observed_at"):
        with pytest.raises(DeclarationError, match="cannot carry"):
            declare(stream=Stream(topic="t", lines=Lines(item="item_id", values={}, name=name)))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = {"item_id": ANYTHING, "quantity": ANYTHING | st.floats(-9, 9), "price": ANYTHING | st.floats(0, 9)}


@given(st.lists(ANYTHING | st.fixed_dictionaries({}, optional=FIELDS), max_size=4) | ANYTHING)
def test_any_lines_are_believed_or_refused_with_a_known_reason(lines: Any) -> None:
    raw = json.dumps({**GOOD, "lines": lines}).encode()
    reasons: list[str] = []
    found: Any = ()
    try:
        found = read(raw).lines
    except EventError as error:
        reasons.append(error.reason)
    assert set(reasons) <= set(REASONS)
    assert all(set(line) == {"item_id", "quantity", "price"} for line in found)
