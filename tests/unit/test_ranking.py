"""Candidate items, pair features and the best of them: held to plain Python over random and hostile entities."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.errors import FeatureError, PredictionError
from almanac.ragged import Ragged
from almanac.ranking import PAIR_COLUMNS, Entities, Items, Pairs, candidates, matrix, top

DAY = 86_400_000_000
NOW = 20_000 * DAY
KEYS = [f"item {number:02d}" for number in range(40)]


@dataclass(frozen=True)
class Limits:
    candidates_max: int = 12
    leave_out: tuple[str, ...] = ("basket_items",)
    leave_out_for: timedelta | None = None
    available: str | None = "available"


@dataclass
class Customer:
    """One entity as a person would write it down; items are keys, some of which nobody knows."""

    bought: list[str] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    basket: list[str] = field(default_factory=list)


def _items(seed: int = 3) -> Items:
    draw = np.random.default_rng(seed)
    rows = [*KEYS, "*"]
    draw.shuffle(rows)
    together = Ragged.of([list(draw.choice([*KEYS, "gone"], 6, replace=False)) for _ in rows], object)
    weights = Ragged(np.sort(draw.random(len(together.values)).astype(np.float32)), together.offsets)
    columns = {
        "price": draw.uniform(1, 9, len(rows)),
        "available": (draw.random(len(rows)) > 0.2).astype(np.float64),
    }
    return Items.of(rows, columns, {"together_items": together, "together_weights": weights})


ITEMS = _items()
customers = st.builds(
    lambda bought, ages, counts, basket: Customer(
        bought, [NOW - age for age in ages[: len(bought)]], counts[: len(bought)], basket
    ),
    st.lists(st.sampled_from([*KEYS, "", "never sold", "\N{SNOWMAN}"]), max_size=15),
    st.lists(st.integers(-DAY, 400 * DAY), min_size=15, max_size=15),
    st.lists(st.integers(1, 99), min_size=15, max_size=15),
    st.lists(st.sampled_from([*KEYS, "never sold"]), max_size=5),
)


def entities(found: list[Customer], items: Items = ITEMS) -> Entities:
    def places(lists: list[list[str]]) -> Ragged:
        keys = Ragged.of(lists, object)
        return Ragged(items.places(keys.values), keys.offsets)

    return Entities(
        keys=[str(number) for number in range(len(found))],
        moments=np.full(len(found), NOW, np.int64),
        columns={"orders_30d": np.arange(len(found), dtype=np.float32)},
        lists={
            "bought_items": places([one.bought for one in found]),
            "bought_at": Ragged.of([one.at for one in found], np.int64),
            "bought_counts": Ragged.of([one.counts for one in found], np.int64),
            "basket_items": places([one.basket for one in found]),
        },
    )


def keys_of(pairs: Pairs, entity: int) -> list[str]:
    return [ITEMS.keys[place] for place in pairs.item_index[pairs.offsets[entity] : pairs.offsets[entity + 1]]]


def same_bits(one: Pairs, other: Pairs) -> None:
    np.testing.assert_array_equal(one.item_index, other.item_index)
    for name in PAIR_COLUMNS:
        np.testing.assert_array_equal(one.columns[name].view(np.int32), other.columns[name].view(np.int32))


@settings(max_examples=60, deadline=None)
@given(st.lists(customers, max_size=6), st.integers(1, 40))
def test_candidates_are_distinct_available_and_none_that_is_left_out(found: list[Customer], most: int) -> None:
    pairs = candidates(entities(found), ITEMS, Limits(candidates_max=most))
    assert len(pairs.offsets) == len(found) + 1
    for number, one in enumerate(found):
        keys = keys_of(pairs, number)
        assert keys == sorted(set(keys))
        assert len(keys) <= most
        assert not set(keys) & set(one.basket)
        assert all(ITEMS.columns["available"][ITEMS.known[key]] > 0 for key in keys)
    assert all(np.isfinite(values).all() and len(values) == len(pairs) for values in pairs.columns.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(customers, min_size=1, max_size=7), st.data())
def test_pairs_and_lists_are_the_same_bits_in_pieces_of_any_size(found: list[Customer], data: st.DataObject) -> None:
    together = entities(found)
    whole = candidates(together, ITEMS, Limits())
    inputs = ("orders_30d", "price", *PAIR_COLUMNS)
    scores = matrix(together, ITEMS, whole, inputs).sum(axis=1)
    lists = top(scores, whole, 5)
    cuts = sorted({0, len(found), *data.draw(st.lists(st.integers(0, len(found)), max_size=4))})
    for start, stop in itertools.pairwise(cuts):
        some = together.part(start, stop)
        pairs = candidates(some, ITEMS, Limits())
        first, last = whole.offsets[start], whole.offsets[stop]
        columns = {name: values[first:last] for name, values in whole.columns.items()}
        same_bits(pairs, Pairs(pairs.offsets, pairs.entity_index, whole.item_index[first:last], columns))
        np.testing.assert_array_equal(matrix(some, ITEMS, pairs, inputs).sum(axis=1), scores[first:last])
        best = top(scores[first:last], pairs, 5)
        np.testing.assert_array_equal(best.item_index, lists.item_index[lists.offsets[start] : lists.offsets[stop]])


@settings(max_examples=60, deadline=None)
@given(customers)
def test_what_is_known_of_a_pair_is_what_plain_python_finds(one: Customer) -> None:
    pairs = candidates(entities([one]), ITEMS, Limits(candidates_max=1000, leave_out=()))
    seeds = [(place, key) for place, key in enumerate(one.bought) if key in ITEMS.known]
    prices = [float(ITEMS.columns["price"][ITEMS.known[key]]) for _, key in seeds]
    mean = sum(prices) / len(prices) if prices else 0.0
    for row, key in enumerate(keys_of(pairs, 0)):
        found = {name: float(values[row]) for name, values in pairs.columns.items()}
        place = one.bought.index(key) if key in one.bought else -1
        assert found["own_place"] == place
        assert found["own_count"] == (one.counts[place] if place >= 0 else 0)
        days = max((NOW - one.at[place]) / DAY, 0) if place >= 0 else 0
        assert found["own_days"] == np.float32(days)
        near = [(at, _weight(seed, key)) for at, seed in seeds if _weight(seed, key)]
        assert found["near_count"] == len(near)
        assert found["near_place"] == (near[0][0] if near else -1)
        assert found["near_weight"] == pytest.approx(sum(weight for _, weight in near), rel=1e-6)
        price = float(ITEMS.columns["price"][ITEMS.known[key]])
        assert found["price_to_own"] == pytest.approx(price / mean if mean else 0, rel=1e-6)


def _weight(seed: str, key: str) -> float:
    start, stop = ITEMS.neighbours.offsets[ITEMS.known[seed] : ITEMS.known[seed] + 2]
    for at in range(start, stop):
        if ITEMS.neighbours.values[at] == ITEMS.known[key]:
            return float(ITEMS.weights.values[at])
    return 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(customers, min_size=1, max_size=4), st.integers(1, 12), st.data())
def test_the_best_come_first_and_equal_scores_by_key(found: list[Customer], kept: int, data: st.DataObject) -> None:
    pairs = candidates(entities(found), ITEMS, Limits())
    drawn = st.sampled_from([-3.5, -0.0, 0.0, 1e-30, -1e-30, 2.0, 3e38])
    scores = np.array(data.draw(st.lists(drawn, min_size=len(pairs), max_size=len(pairs))), np.float32)
    lists = top(scores, pairs, kept)
    for number in range(len(found)):
        part = slice(pairs.offsets[number], pairs.offsets[number + 1])
        by_hand = sorted(zip(-scores[part], keys_of(pairs, number), strict=True))[:kept]
        mine = slice(lists.offsets[number], lists.offsets[number + 1])
        assert [ITEMS.keys[place] for place in lists.item_index[mine]] == [key for _, key in by_hand]
        np.testing.assert_array_equal(lists.scores[mine], [-score for score, _ in by_hand])


def test_an_entity_without_a_history_gets_what_is_popular() -> None:
    pairs = candidates(entities([Customer()]), ITEMS, Limits())
    liked = {ITEMS.keys[place] for place in ITEMS.popular if place >= 0}
    assert set(keys_of(pairs, 0)) <= liked
    assert len(pairs) > 0
    np.testing.assert_array_equal(pairs.columns["own_place"], -1)


def test_a_basket_of_ten_thousand_lines_is_left_out_whole_and_one_in_the_history_is_read_to_its_limit() -> None:
    long = [f"line {number}" for number in range(9_960)] + KEYS
    customer = Customer(bought=long, at=[NOW] * len(long), counts=[1] * len(long), basket=long)
    assert len(candidates(entities([customer, Customer()]), ITEMS, Limits(candidates_max=500))) == len(
        candidates(entities([Customer()]), ITEMS, Limits(candidates_max=500))
    )


def test_an_item_without_a_number_is_not_answered_and_a_range_without_items_answers_nothing() -> None:
    columns = {"available": np.ones(2), "price": np.array([1.0, np.nan])}
    together = Ragged.of([["b"], ["a"]], object)
    weights = Ragged.of([[0.5], [0.5]], np.float32)
    items = Items.of(["b", "a"], columns, {"together_items": together, "together_weights": weights})
    customer = Customer(["a", "b"], [NOW, NOW], [1, 1])
    assert candidates(entities([customer], items), items, Limits()).item_index.tolist() == [1]
    nothing = Items.of(
        [], {"available": np.empty(0)}, {"together_items": together.part(0, 0), "together_weights": weights.part(0, 0)}
    )
    pairs = candidates(entities([customer], nothing), nothing, Limits())
    assert len(pairs) == 0
    assert len(top(np.empty(0, np.float32), pairs, 10)) == 1


@given(st.lists(customers, min_size=1, max_size=6), st.integers(1, 400))
def test_an_item_is_left_out_for_so_long_after_it_was_taken(found: list[Customer], span_days: int) -> None:
    for one in found:
        one.at.sort(reverse=True)
    whole = Limits(candidates_max=1_000, leave_out=())
    names = ("bought_items", "basket_items")
    timed = Limits(candidates_max=1_000, leave_out=names, leave_out_for=timedelta(days=span_days))
    asked = entities(found)
    every, left = _named(candidates(asked, ITEMS, whole)), _named(candidates(asked, ITEMS, timed))
    for number, one in enumerate(found):
        newest = max(one.at, default=None)
        taken = dict(reversed(list(zip(one.bought, one.at, strict=True))))
        lately = {
            item
            for item in (*one.bought, *one.basket)
            if (at := taken.get(item, newest)) is not None and NOW - at < span_days * DAY
        }
        assert left.get(number, set()) == every.get(number, set()) - lately


def _named(pairs: Pairs) -> dict[int, set[str]]:
    """The keys of each entity's candidate items."""
    named: dict[int, set[str]] = {}
    for owner, item in zip(pairs.entity_index.tolist(), pairs.item_index.tolist(), strict=True):
        named.setdefault(owner, set()).add(ITEMS.keys[item])
    return named


def test_what_cannot_be_ranked_is_refused_by_name() -> None:
    broken = Customer(["item 01", "item 02"], [NOW], [1, 1])
    with pytest.raises(FeatureError, match="bought_items and bought_at of entity 1 differ in length"):
        candidates(entities([Customer(), broken]), ITEMS, Limits())
    one = entities([Customer()])
    with pytest.raises(FeatureError, match="no column in_range"):
        candidates(one, ITEMS, Limits(available="in_range"))
    with pytest.raises(FeatureError, match="the list refused of each entity"):
        candidates(one, ITEMS, Limits(leave_out=("refused",)))
    pairs = candidates(one, ITEMS, Limits())
    with pytest.raises(FeatureError, match="input colour is no column"):
        matrix(one, ITEMS, pairs, ["colour"])
    with pytest.raises(PredictionError, match="1 not finite"):
        top(np.array([np.nan, *[0.0] * (len(pairs) - 1)], np.float32), pairs, 3)
    lists = {"together_items": Ragged.of([[], []], object), "together_weights": Ragged.of([[], []], np.float32)}
    with pytest.raises(FeatureError, match="'a' comes twice"):
        Items.of(["a", "a"], {}, lists)
