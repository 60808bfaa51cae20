"""Numbers of entities and items that float32 would replace by a neighbour: refused by name, whoever ranks by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from almanac.errors import FeatureError, PredictionError
from almanac.list_scoring import prepared, rank_each, scored
from almanac.ragged import Ragged
from almanac.ranked import RankedList
from almanac.ranking import Entities, Items, Pairs, matrix
from almanac.ranking_declared import Ranking
from almanac.ranking_rows import narrowed
from features.rankable import entities_of
from features.ranked import _numbers
from jobs.listing import Listed

NEXT = 2**24 + 1
"""The first whole number that float32 does not have."""
KEYS = ["a", "b", "c"]
RANKING = Ranking(item="item", features="items_v1", length=2, kept=3)


class First:
    """A model whose score is its only input."""

    def __init__(self, name: str) -> None:
        self.inputs, self.outputs = (name,), ("score",)

    def score_matrix(self, matrix: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        return {"score": matrix[:, 0]}


def items(sold: NDArray[Any], popular: list[str] | None = None) -> Items:
    together = Ragged.of([[], [], [], KEYS if popular is None else popular], object)
    weights = Ragged(np.ones(len(together.values), np.float32), together.offsets)
    rows = {"sold": np.append(sold, sold[:1]), "price": np.ones(4)}
    return Items.of([*KEYS, "*"], rows, {"together_items": together, "together_weights": weights})


def entities(seen: NDArray[Any]) -> Entities:
    nothing = Ragged.of([[]] * len(seen), np.int64)
    names = ("bought_items", "bought_at", "bought_counts", "basket_items")
    pipeline = cast(Any, SimpleNamespace(source=None))
    keys = [f"e{at}" for at in range(len(seen))]
    made = entities_of(pipeline, keys, np.zeros(len(seen), np.int64), {"seen": seen}, dict.fromkeys(names, nothing))
    return replace(made, lists={**made.lists, "bought_items": replaced(nothing), "basket_items": replaced(nothing)})


def replaced(held: Ragged) -> Ragged:
    return Ragged(held.values.astype(np.int32), held.offsets)


def pairs(count: int) -> Pairs:
    owners = np.repeat(np.arange(count), 3)
    return Pairs(np.arange(count + 1) * 3, owners, np.tile(np.arange(3, dtype=np.int32), count), {})


@pytest.mark.parametrize("number", [NEXT, float(NEXT), -NEXT, 1_700_000_001, 2.0**24 + 0.5, 2**40 + 1])
def test_a_number_that_float32_replaces_is_refused_by_column_and_key(number: float) -> None:
    of_items = items(np.array([1, number, 3]))
    asked = entities(np.array([5, number]))
    with pytest.raises(PredictionError, match=r"sold of b is -?1.*float32 does not tell whole numbers apart"):
        matrix(asked, of_items, pairs(2), ["sold"])
    with pytest.raises(PredictionError, match="seen of e1 is"):
        matrix(asked, of_items, pairs(2), ["seen"])
    assert matrix(asked.part(0, 1), of_items, pairs(1), ["seen", "price"]).tolist() == [[5, 1]] * 3


@pytest.mark.parametrize("values", [[2**24, 2**25], [0.1, 12.99], [2.0**24 + 2, np.nan], [1e300, 1.0], [True, False]])
def test_other_numbers_are_rounded_as_ever(values: list[Any]) -> None:
    column = narrowed(np.array(values))
    assert column.dtype == np.float32
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(column, np.array(values, np.float64).astype(np.float32))
    assert narrowed(np.float32([2**24 + 2, 1.7e9])).dtype == np.float32


def test_one_entity_that_is_refused_leaves_the_others_their_lists() -> None:
    ranked = rank_each(entities(np.array([5, NEXT])), items(np.array([1, 2, 3])), First("seen"), RANKING)
    assert isinstance(ranked[0], RankedList)
    assert ranked[0].items == ("a", "b", "c")
    assert isinstance(ranked[1], PredictionError)
    assert "seen of e1 is 16777217" in str(ranked[1])


def test_an_item_counts_where_it_is_a_candidate() -> None:
    sold = np.array([1, NEXT, 3])
    ranked = rank_each(entities(np.array([5])), items(sold, ["a", "c"]), First("sold"), RANKING)
    assert isinstance(ranked[0], RankedList)
    assert ranked[0].items == ("c", "a")
    (refused,) = rank_each(entities(np.array([5])), items(sold), First("sold"), RANKING)
    assert "sold of b is 16777217" in str(refused)


def test_what_an_answer_shows_is_refused_alike() -> None:
    sold = items(np.array([1, NEXT, 3]))
    shown = replace(RANKING, attributes=("sold",))
    with pytest.raises(PredictionError, match="sold of b is 16777217"):
        scored(prepared(entities(np.array([5])), sold, ("price",), shown), First("price"), 3)
    listed = Listed(cast(Any, None), shown, sold, 0)
    with pytest.raises(PredictionError, match="sold of b is 16777217"):
        listed.default()
    assert Listed(cast(Any, None), shown, items(np.array([1, 2, 3])), 0).default().attributes == {"sold": (1, 2, 3)}


def test_items_of_every_type_are_read_or_refused_by_column() -> None:
    pipeline = cast(Any, SimpleNamespace(name="shop"))
    for column in (pa.array([NEXT]), pa.array([float(NEXT)]), pa.array([True]), pa.array([None], pa.int64())):
        read = _numbers(pipeline, "item", "sold", column)
        assert read.dtype == np.float64
        np.testing.assert_array_equal(read, [np.nan if column[0].as_py() is None else float(column[0].as_py())])
    for column in (pa.array(["x"]), pa.array([0], pa.timestamp("us"))):
        with pytest.raises(FeatureError, match=r"shop: sold of the item is (string|timestamp\[us\]), expected"):
            _numbers(pipeline, "item", "sold", column)
