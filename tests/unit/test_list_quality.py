"""Recall, NDCG and the lists that a model is held against: to plain Python over random lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.list_quality import BOUGHT_AGAIN, BOUGHT_LATELY, POPULAR, Tally, baselines, filled_up, quality
from almanac.ragged import Ragged
from almanac.ranking import Items
from almanac.ranking_declared import Ranking

RANKING = Ranking(item="item_id", features="items_v1", length=4, kept=8, candidates_max=20, available="available")
KEYS = [f"item {number}" for number in range(9)]
places = st.lists(st.integers(0, 8), unique=True, max_size=8)


def items(available: list[float] | None = None) -> Items:
    together = Ragged.of([[] for _ in KEYS] + [["item 3", "unknown", "item 0", "item 5", "item 7", "item 8"]], object)
    weights = Ragged(np.ones(6, np.float32), together.offsets)
    column = np.array([*(available or [1.0] * 9), np.nan])
    return Items.of([*KEYS, "*"], {"available": column}, {"together_items": together, "together_weights": weights})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(places, places, st.integers(0, 2)), min_size=1, max_size=5), st.integers(1, 6))
def test_recall_and_ndcg_are_what_their_definitions_say(
    found: list[tuple[list[int], list[int], int]], length: int
) -> None:
    lists = Ragged.of([made for made, _, _ in found], np.int64)
    taken = Ragged.of([truth + [-1] * unknown for _, truth, unknown in found], np.int32)
    recall, ndcg = quality(lists, taken, length)
    for row, (made, truth, unknown) in enumerate(found):
        number = len(truth) + unknown
        hits = [place for place, item in enumerate(made[:length]) if item in truth]
        best = sum(1 / math.log2(place + 2) for place in range(min(number, length)))
        assert recall[row] == pytest.approx(len(hits) / number if number else 0)
        gained = sum(1 / math.log2(place + 2) for place in hits)
        assert ndcg[row] == pytest.approx(gained / best if best else 0)


def test_a_list_of_what_was_taken_is_perfect_and_a_tally_is_the_mean() -> None:
    tally = Tally(2)
    truth = Ragged.of([[1, 2], [3]], np.int32)
    tally.add(truth, {"model": Ragged.of([[2, 1], [3, 4]], np.int64), "popular": Ragged.of([[1, 5], [6, 7]], np.int64)})
    tally.add(Ragged.of([[0]], np.int32), {"model": Ragged.of([[5]], np.int64), "popular": Ragged.of([[0]], np.int64)})
    metric = tally.metric("model", ("popular",))
    assert (metric.rows, metric.length) == (3, 2)
    assert metric.recall == pytest.approx(2 / 3)
    assert metric.ndcg == pytest.approx(2 / 3)
    assert metric.recall_baselines["popular"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert Tally(2).metric("model", ("popular",)).rows == 0


def test_simple_lists_hold_what_is_in_the_range_and_are_filled_up_with_what_is_popular() -> None:
    known = items([1, 1, 1, 1, 1, 0, 1, 1, 1])
    history = Ragged.of([[2, 5, 1, 6], [], [-1, 8]], np.int32)
    counts = Ragged.of([[1, 9, 3, 3], [], [2, 2]], np.int64)
    made = baselines(history, counts, known, RANKING)
    listed = {name: [part.tolist() for part in np.split(one.values, one.offsets[1:-1])] for name, one in made.items()}
    assert listed[POPULAR] == [[3, 0, 7, 8]] * 3
    assert listed[BOUGHT_AGAIN] == [[1, 6, 2, 3], [3, 0, 7, 8], [8, 3, 0, 7]]
    assert listed[BOUGHT_LATELY] == [[2, 1, 6, 3], [3, 0, 7, 8], [8, 3, 0, 7]]


def test_who_has_no_list_is_answered_with_what_is_popular() -> None:
    filled = filled_up(Ragged.of([[6], []], np.int64), items(), RANKING)
    assert filled.offsets.tolist() == [0, 1, 5]
    assert filled.values.tolist() == [6, 3, 0, 5, 7]
