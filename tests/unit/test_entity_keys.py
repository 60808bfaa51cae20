"""What a value from outside is as an entity's key: the same at every door."""

from __future__ import annotations

import asyncio
import io
import sys
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.entity_keys import TEXT_SHOWN_MAX, NotAKey, WrittenFloat, entity_key, shown
from almanac.errors import EventError, FeatureError, UnknownEntity
from almanac.events_declared import Lines
from almanac.partitioning import Buckets, EntityKey
from almanac.pipeline import Pipeline, Stream
from features.packed.codec import Column
from features.packed.keys import Keys
from features.sources import gates
from features.sources.gates import normalised
from serving_cache.lookup.choosing import choice
from serving_cache.lookup.routes import Routes
from serving_cache.lookup.web import Problem, Request
from streaming.events import parse
from streaming.publish import from_lines
from streaming.values import lines_of
from tests.generations import bucket_pipeline, grid_pipeline, list_pipeline

GRID = grid_pipeline("grid")
USERS = bucket_pipeline("users")
NUMBERED = bucket_pipeline("numbered", partitions=Buckets(count=4, keys="integer"))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOT_WHOLE = ["4503599627370497.5", "16.99999999999999999999", "17.5", "1e-1", "9007199254740991.4"]
"""The first two and the last are read as whole floats, for there is none nearer."""
TOO_LARGE = ["9007199254740992.0", "9007199254740995.0", "-9007199254740993.0", "1e16", "1e400", "1e" + "9" * 30]


def key(pipeline: Pipeline, value: object) -> EntityKey:
    return entity_key(pipeline.entity, pipeline.partitions, value)


def written(text: str) -> Any:
    """A JSON value as every door reads it."""
    return msgspec.json.Decoder(Any, float_hook=WrittenFloat).decode(text.encode())


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.integers())))
def test_any_value_is_a_key_or_refused_in_a_short_sentence(value: object) -> None:
    for pipeline in (GRID, USERS, NUMBERED):
        said = ""
        try:
            partition = pipeline.partitions.partition_of(key(pipeline, value))
        except UnknownEntity as error:
            said, partition = str(error), 0
        assert 0 <= partition < pipeline.partitions.count
        assert len(said) < 250


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_float_that_is_whole_and_below_2_to_53_is_that_number(number: int) -> None:
    for value in (float(number), written(f"{number}.0"), written(f"{number}.000e0"), written(f"{number}e0")):
        assert key(NUMBERED, value) == number
        assert key(USERS, value) == str(number)


@pytest.mark.parametrize("text", NOT_WHOLE + TOO_LARGE)
@pytest.mark.parametrize("pipeline", [GRID, USERS, NUMBERED], ids=lambda one: one.name)
def test_any_other_float_is_refused_and_the_way_out_is_said(pipeline: Pipeline, text: str) -> None:
    with pytest.raises(NotAKey, match=r"not a whole number below 2\*\*53.*: send it as a string"):
        key(pipeline, written(text))


@pytest.mark.parametrize("value", [2.0**53, 1e300, 17.5, float("nan"), float("inf"), -float("inf")])
def test_a_float_without_its_text_is_judged_by_its_value(value: float) -> None:
    with pytest.raises(NotAKey, match="send it as a string"):
        key(NUMBERED, value)


@pytest.mark.parametrize("value", ["0017", 17, 17.0, "17", written("17.0"), written("1.7e1"), written("170e-1")])
def test_cells_are_whole_numbers_however_written(value: object) -> None:
    assert key(GRID, value) == 17


def test_minus_nothing_is_nothing() -> None:
    assert [key(NUMBERED, value) for value in (written("-0"), written("-0.0"), "-0", -0.0)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "value",
    ["64", -1, "1_7", "１７", "1e1", "17.0", "+5", " 17", "17 ", 1.5, True, None, 10**4000, "9" * 5000, "\ud800", ""],
)  # fmt: skip
def test_other_cells_are_refused(value: object) -> None:
    with pytest.raises(UnknownEntity):
        key(GRID, value)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 10**18])
def test_every_whole_number_of_64_bits_is_a_key_as_number_and_as_text(value: int) -> None:
    assert (key(NUMBERED, value), key(NUMBERED, str(value)), key(USERS, value)) == (value, value, str(value))


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "9223372036854775808", 10**300])
@pytest.mark.parametrize("pipeline", [GRID, NUMBERED], ids=lambda one: one.name)
def test_numbers_that_no_store_holds_are_refused(pipeline: Pipeline, value: object) -> None:
    with pytest.raises(UnknownEntity) as error:
        key(pipeline, value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 257, "\ud800", "caf\ufffd", True, None, 10**300])
def test_keys_that_no_store_can_hold_are_refused(value: object) -> None:
    with pytest.raises(UnknownEntity):
        key(USERS, value)


def asked(pipeline: Pipeline, body: str) -> Problem:
    """What a lookup of many answers before it asks any place."""
    routes = Routes({pipeline.name: pipeline}, None, b"")
    request = Request("POST", "/", "", {"content-type": "application/json"}, body.encode())
    with pytest.raises(Problem) as problem:
        asyncio.run(routes.many(request, name=pipeline.name))
    return problem.value


def test_a_body_with_a_float_that_names_two_entities_is_refused() -> None:
    for pipeline in (NUMBERED, USERS, GRID):
        problem = asked(pipeline, '{"entities": [9007199254740995.0, 4503599627370497.5]}')
        assert problem.status == 404
        refusals: Any = dict(problem.members or {})["refusals"]
        assert [refusal.entity for refusal in refusals] == ["9007199254740995.0", "4503599627370497.5"]
        assert all("send it as a string" in refusal.detail for refusal in refusals)


def test_what_is_no_json_number_is_no_key_in_a_body() -> None:
    for token in ("NaN", "Infinity", "017", "+5", ".5", "1_000"):
        assert asked(NUMBERED, f'{{"entities": [{token}]}}').status == 400, token


def test_other_numbers_of_a_body_may_be_whole_floats() -> None:
    lists = list_pipeline("lists")
    assert choice(lists, written("3.0"), None, None) == choice(lists, 3, None, None)
    assert "limit" in str(asked(lists, '{"entities": ["a"], "limit": 2.9999999999999999999}').detail)
    assert "max_stale" in str(asked(lists, '{"entities": ["a"], "max_stale": 1e400}').detail)


STREAMED = replace(NUMBERED, stream=Stream(topic="users.rides", values={"rides": None}))
NAMED = replace(USERS, stream=STREAMED.stream)
PLAIN = '{"user_id": %s, "observed_at": "2026-03-01T11:59:00Z", "rides": 1.5}'


def streamed(pipeline: Pipeline, key: str, structured: bool) -> EntityKey:
    """The entity of an event, plain or within a CloudEvent's envelope."""
    body, headers = PLAIN % key, []
    if structured:
        body = f'{{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {body}}}'
        headers = [("content-type", b"application/cloudevents+json")]
    return parse(body.encode(), None, headers, pipeline, NOW).entity


@pytest.mark.parametrize("structured", [False, True])
def test_an_event_names_its_entity_as_a_body_does(structured: bool) -> None:
    for text in ("17", "17.0", "1.7e1", '"17"'):
        assert streamed(STREAMED, text, structured) == 17
        assert streamed(NAMED, text, structured) == "17"
    assert streamed(STREAMED, '"9007199254740995"', structured) == 9007199254740995
    for text in NOT_WHOLE + TOO_LARGE[:-1]:
        for pipeline in (STREAMED, NAMED):
            with pytest.raises(EventError, match="send it as a string") as caught:
                streamed(pipeline, text, structured)
            assert caught.value.reason == "wrong-type"


def test_an_event_is_sent_with_the_key_that_its_worker_expects() -> None:
    for text, expected in (("17.0", b"17"), ('"0017"', b"17"), ("17", b"17"), ("17.5", None), ("true", None)):
        (sent,) = from_lines(io.BytesIO((PLAIN % text).encode()), STREAMED)
        assert sent.key == expected, text
        if expected:
            assert parse(sent.value, sent.key, None, STREAMED, NOW).entity == 17


def test_an_item_of_an_event_may_be_a_whole_float() -> None:
    declared = Lines(name="lines", item="item_id", values={})
    for value, name in ((17.0, "17"), (written("85123.0"), "85123"), (17, "17"), ("17.0", "17.0")):
        assert lines_of({"lines": [{"item_id": value}]}, declared) == ({"item_id": name},)
    with pytest.raises(EventError, match="send it as a string"):
        lines_of({"lines": [{"item_id": written("9007199254740995.0")}]}, declared)


@pytest.mark.parametrize(
    ("value", "item"),
    [
        (85123.0, "85123"), (Decimal("85123.00"), "85123"), (9007199254740996.0, None), (12.5, None),
        (float("nan"), ""), (Decimal("9007199254740995"), "9007199254740995"), ("85123.0", "85123.0"),
    ],
)  # fmt: skip
def test_an_item_of_a_column_of_numbers_is_the_item_that_events_name(value: object, item: str | None) -> None:
    assert normalised(value) == item


@pytest.mark.parametrize(
    ("value", "bucketed", "numbered"),
    [
        (17850.0, "17850", "17850"), (Decimal("17850.00"), "17850", "17850"), (9007199254740996.0, None, None),
        (" 17", " 17", None), ("1_000", "1_000", None), (float("nan"), "", ""),
    ],
)  # fmt: skip
def test_an_entity_of_a_file_is_the_key_that_callers_name(
    value: object, bucketed: str | None, numbered: str | None
) -> None:
    assert gates.entity_of(value, USERS.partitions) == bucketed
    assert gates.entity_of(value, NUMBERED.partitions) == numbered


def test_online_features_are_not_read_of_a_neighbour() -> None:
    keys = Keys(project="p", view="v", join_keys=(Column("user_id", "INT64"),))
    assert keys.of([17.0, "17", 17]) == keys.of([17, 17, 17])
    for value in (9007199254740996.0, 17.5, "1_000", "１７", " 17", True, np.float32(2**24)):
        with pytest.raises(FeatureError, match="ask for a key of that type"):
            keys.of([value])


def steps_of(work: Any) -> int:
    """How many Python functions are called, or generators resumed, for some work."""
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return steps


@pytest.mark.parametrize(
    "key", ["a" * 900_000, "é" * 450_000, "1" * 900_000, "a" * 899_999 + "\0", WrittenFloat("1" * 900_000 + ".5")]
)
@pytest.mark.parametrize("pipeline", [USERS, NUMBERED])
def test_a_key_of_any_length_is_refused_in_a_few_steps(key: object, pipeline: Pipeline) -> None:
    messages = []

    def refuse() -> None:
        with pytest.raises(UnknownEntity) as caught:
            entity_key(pipeline.entity, pipeline.partitions, key)
        messages.append(str(caught.value))

    assert steps_of(refuse) < 100
    assert len(messages[0]) < 250


def test_what_an_error_repeats_is_short_and_costs_as_little_whatever_was_sent() -> None:
    for value in ["a" * 900_000, [["a" * 900_000] * 300] * 300, {str(n): n for n in range(9_999)}, b"b" * 900_000]:
        text = shown(value)
        assert len(text) <= TEXT_SHOWN_MAX + 1
        assert text.endswith("…")
        assert steps_of(lambda value=value: shown(value)) < 20_000
    assert [shown(value) for value in ("17", 17, 1.5, None, [1, "a"], {"a": True}, WrittenFloat("1e0"))] == [
        "'17'", "17", "1.5", "None", "[1, 'a']", "{'a': True}", "1e0",
    ]  # fmt: skip
    assert shown(10**TEXT_SHOWN_MAX) == "a number of too many digits"
