"""Lists from the items that were asked for are those from all items, to the bit; histories come back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.clock import DAY_MICROSECONDS as DAY
from almanac.errors import FeatureError
from almanac.list_scoring import rank
from almanac.ragged import Ragged
from almanac.ranking_declared import ANY_ITEM, Ranking
from almanac.ranking_rows import Items
from features.interactions.fold import Event, advance
from features.interactions.history import HISTORY
from features.online_reading import MISSING, NEVER, PRESENT, Features, View, ViewRows
from features.rankable import (
    Range,
    Rows,
    entities_of,
    history_lists,
    history_rows,
    items_in_question,
    need_items,
    placed,
)
from pipelines.shop import shop
from tests.baskets import Sums

ITEMS_COLUMNS = ("price", "available", "sold_30d")
RANKING = Ranking(
    item="item_id", features="items_v1", length=3, kept=8, candidates_max=12, leave_out=("basket_items",),
    available="available", attributes=("price",),
)  # fmt: skip
START = 20_000 * DAY


class Mixed(Sums):
    """All columns, so that a difference in any is seen."""

    inputs = (
        "own_place", "own_count", "own_days", "near_weight", "near_count", "near_place", "popular_place",
        "price_to_own", "sold_30d", "price", "lines_30d", "days_since_last", "price_mean",
    )  # fmt: skip


Row = tuple[dict[str, float], list[str], list[float]]


def answer(world: Mapping[str, Row], keys: list[str]) -> Features:
    """What the online store would answer: numbers in one view, lists in another."""
    there = np.array([key in world for key in keys], bool)
    numbers = there & np.array([key != ANY_ITEM for key in keys], bool)
    lists = [world[key][1] if key in world else [] for key in keys]
    weights = [world[key][2] if key in world else [] for key in keys]
    views = []
    for name, present in (("stats", numbers), ("together", there)):
        view = View(name=name, packed=(), features=(), columns=())
        status = np.where(present, PRESENT, MISSING).astype(np.uint8)
        views.append(ViewRows(view=view, status=status, times=np.where(present, 0, NEVER)))
    columns = {
        name: np.array([world[key][0].get(name, np.nan) if key in world else np.nan for key in keys], np.float64)
        for name in ITEMS_COLUMNS
    }
    return Features(
        columns=columns,
        views=tuple(views),
        lists={"together_items": Ragged.of(lists, object), "together_weights": Ragged.of(weights, np.float32)},
    )


def asked(world: Mapping[str, Row], histories: Ragged, rows: Rows | None = None) -> tuple[Items, int]:
    """The items by asking, beside what was asked for before, and how many questions it took."""
    asking, questions = items_in_question(histories, rows), 0
    try:
        keys = next(asking)
        while True:
            questions += 1
            keys = asking.send(answer(world, keys))
    except StopIteration as end:
        return end.value.items, questions


def everything(world: Mapping[str, Row]) -> Items:
    found = answer(world, list(world))
    return Items.of(list(world), found.columns, found.lists)


NAMES = [f"i{n}" for n in range(30)]
WORLDS = st.dictionaries(
    st.sampled_from([*NAMES, ANY_ITEM]),
    st.tuples(
        st.fixed_dictionaries(
            {"price": st.floats(0.5, 9, width=32), "available": st.sampled_from([0.0, 1.0]), "sold_30d": st.just(2.0)}
        ),
        st.lists(st.sampled_from(NAMES), max_size=6, unique=True),
    ),
    max_size=25,
)
LINES = st.tuples(
    st.sampled_from(NAMES), st.sampled_from([1.0, 2.0, 5.0, -1.0]), st.floats(0.5, 9).map(lambda p: round(p, 2))
)
BASKETS = st.tuples(st.integers(0, 40), st.lists(LINES, min_size=1, max_size=4))


@given(WORLDS, st.lists(st.lists(BASKETS, max_size=6), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_lists_from_items_asked_for_are_those_from_all_items(drawn: dict[str, Any], shoppers: list[Any]) -> None:
    world = {key: (numbers, near, [1 / (n + 1) for n in range(len(near))]) for key, (numbers, near) in drawn.items()}
    rows, moments = [], []
    for number, baskets in enumerate(shoppers):
        found = advance(None, Event(entity=f"c{number}", at=START, lines=(("i0", 1.0, 1.0),)))
        for hour, lines in baskets:
            event = Event(entity=f"c{number}", at=START + hour * DAY // 7, lines=tuple(lines))
            found = advance(found.row, event)
        rows.append(found.row)
        moments.append(found.at)
    columns, lists = history_lists(rows)
    entities = entities_of(shop, [f"c{n}" for n in range(len(rows))], np.array(moments), columns, lists)
    some, questions = asked(world, lists["bought_items"])
    assert questions <= 2
    every = everything(world)
    assert rank(placed(entities, some), some, Mixed(), RANKING) == rank(
        placed(entities, every), every, Mixed(), RANKING
    )
    kept = Rows()
    for at in range(len(rows)):  # and each alone, and after those before it
        columns, lists = history_lists(rows[at : at + 1])
        one = entities_of(shop, ["c"], np.array(moments[at : at + 1]), columns, lists)
        expected = rank(placed(entities, every), every, Mixed(), RANKING)[at : at + 1]
        some, _ = asked(world, lists["bought_items"])
        assert rank(placed(one, some), some, Mixed(), RANKING) == expected
        some, _ = asked(world, lists["bought_items"], kept)
        assert rank(placed(one, some), some, Mixed(), RANKING) == expected
        again, questions = asked(world, lists["bought_items"], kept)
        assert (again, questions) == (some, 0)


def test_a_history_is_read_back_as_it_was_and_an_absent_one_is_none() -> None:
    row = advance(None, Event(entity="c", at=START, lines=(("a", 2.0, 1.5), ("b", 1.0, 0.5)))).row
    columns, lists = history_lists([row, row])
    view = View(name="history", packed=(), features=(), columns=())
    status = np.array([PRESENT, MISSING], np.uint8)
    found = Features(
        columns={name: values.astype(np.float64) for name, values in columns.items()},
        views=(ViewRows(view=view, status=status, times=np.zeros(2, np.int64)),),
        lists=lists,
    )
    assert history_rows(found) == [row, None]
    found.lists.pop("seen")
    with pytest.raises(FeatureError, match="seen of a history"):
        history_rows(found)


def test_an_empty_store_is_said() -> None:
    empty, _ = asked({}, Ragged.of([["i1"]], object))
    with pytest.raises(FeatureError, match="no items of items_v1"):
        need_items(Range(empty, 0), shop, "items_v1")


def test_a_pipeline_without_interactions_is_ranked_by_its_columns_as_they_are() -> None:
    plain = replace(shop, source=None, stream=None)
    found = entities_of(plain, ["c"], np.zeros(1, np.int64), {"age": np.array([3.0])}, {})
    assert found.columns["age"].tolist() == [3.0]
    assert set(HISTORY) & set(found.columns) == set()
