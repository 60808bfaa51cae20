"""What callers want of a list: limit, items left out, conditions on declared attributes; and what they get wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import UsageError
from almanac.ranked import RankedList
from pipelines.weather import weather
from serving_cache.lookup.choosing import choice
from serving_cache.lookup_cli import _joined
from tests.baskets import basket_pipeline

PIPELINE = basket_pipeline("baskets")
LIST = RankedList(
    items=("a", "RED, WHITE", "c", "d", "e", "f"),
    scores=(6.0, 5.0, 4.0, 3.0, 2.0, 1.0),
    attributes={"price": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)},
)


def chosen(limit: object = None, exclude: object = None, conditions: object = None) -> tuple[str, ...]:
    wanted = choice(PIPELINE, limit, exclude, conditions)
    assert wanted is not None
    found = wanted.of(LIST)
    assert [LIST.scores[LIST.items.index(item)] for item in found.items] == list(found.scores)
    assert [LIST.attributes["price"][LIST.items.index(item)] for item in found.items] == list(found.attributes["price"])
    return found.items


def test_without_a_wish_there_are_as_many_as_are_declared() -> None:
    assert chosen() == LIST.items[:5]


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"limit": "2"}, ("a", "RED, WHITE")),
        ({"limit": 6}, LIST.items),
        ({"limit": "10"}, LIST.items),
        ({"exclude": "a,c"}, ("RED, WHITE", "d", "e", "f")),
        ({"exclude": 'a,"RED, WHITE"'}, ("c", "d", "e", "f")),
        ({"exclude": ["RED, WHITE"]}, ("a", "c", "d", "e", "f")),
        ({"exclude": "unknown"}, LIST.items[:5]),
        ({"conditions": "price<3"}, ("a", "RED, WHITE")),
        ({"conditions": " price >= 3 , price != 4 "}, ("c", "e", "f")),
        ({"conditions": ["price>5"]}, ("f",)),
        ({"conditions": "price=3e0"}, ("c",)),
        ({"conditions": "price<=-1"}, ()),
        ({"limit": 1, "exclude": "a", "conditions": "price>2"}, ("c",)),
    ],
)
def test_a_wish_is_met_in_the_lists_order(wish: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert chosen(**wish) == expected


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"limit": "0"}, "limit is '0': give 1 to 10"),
        ({"limit": 11}, "limit is 11"),
        ({"limit": True}, "limit is True"),
        ({"limit": "2.0"}, "limit is '2.0'"),
        ({"limit": "9" * 5_000}, "limit is"),
        ({"exclude": "a,,b"}, "exclude is 'a,,b'"),
        ({"exclude": '"a'}, "close its double quotes"),
        ({"exclude": 7}, "exclude is 7"),
        ({"exclude": [7]}, "exclude is"),
        ({"exclude": ["x"] * 1_001}, "at most 1,000"),
        ({"conditions": "colour=red"}, r"filter names colour, which answers do not carry \(declared: price\)"),
        ({"conditions": "price"}, "is no condition"),
        ({"conditions": "price<cheap"}, "give a number"),
        ({"conditions": "price<nan"}, "give a number"),
        ({"conditions": "price<1_0"}, "give a number"),
        ({"conditions": "price<３"}, "give a number"),
        ({"conditions": "price<1 or 1=1"}, "is no condition"),
        ({"conditions": "price<1," * 17 + "price<1"}, "at most 16"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        chosen(**wish)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shown", ["2.95", "2.55", "0.1", "16777217", "1e39"])
def test_a_condition_means_the_number_that_answers_show(shown: str) -> None:
    held = float(np.float32(min(float(shown), 3e38)))  # as a block has it
    for sign, holds in (("<=", True), (">=", True), ("=", True), ("<", False), (">", False), ("!=", False)):
        wanted = choice(PIPELINE, None, None, f"price{sign}{shown}")
        assert wanted is not None
        if shown == "1e39":  # beyond what an attribute can be
            holds = sign in ("<=", "<", "!=")
        assert wanted.conditions[0].holds(held) is holds, sign


def test_a_pipeline_without_lists_takes_no_wishes() -> None:
    assert choice(weather, None, None, None) is None
    with pytest.raises(UsageError, match="weather answers numbers, not lists: leave filter out"):
        choice(weather, None, None, "price<3")


def test_without_declared_attributes_there_is_nothing_to_filter_by() -> None:
    ranking = PIPELINE.ranking
    assert ranking is not None
    bare = replace(PIPELINE, ranking=replace(ranking, attributes=()))
    with pytest.raises(UsageError, match="declared: none"):
        choice(bare, None, None, "price<3")


@given(st.text() | st.none() | st.integers() | st.lists(st.text() | st.integers()))
def test_any_wish_is_met_or_refused(value: Any) -> None:
    for wish in ({"limit": value}, {"exclude": value}, {"conditions": value}):
        try:
            chosen(**wish)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0"), min_size=1, max_size=6), min_size=1, max_size=5))
def test_items_that_the_command_line_sends_are_read_as_they_are(items: list[str]) -> None:
    wanted = choice(PIPELINE, None, _joined(items), None)
    assert wanted is not None
    assert wanted.exclude == frozenset(items)


def nested(depth: int, value: object = "85123A") -> object:
    """Lists within lists."""
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("what", [nested(983), nested(50_000), [{"a": nested(983)}], nested(3, 10**5_000)])
@pytest.mark.parametrize("wish", ["limit", "exclude", "conditions"])
def test_what_is_nested_is_refused_in_one_short_sentence_however_deep_it_is(what: object, wish: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(**{wish: what})
    assert len(str(caught.value)) < 250
    assert chosen() == LIST.items[:5]
