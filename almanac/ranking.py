"""Ranked lists: which items an entity's list may hold, what is known of each pair, and the best of them in order.

Pure NumPy over ragged arrays: batch, stream, fresh computation and training call the same functions on the same
numbers, and get the same bits however many entities they give at once: nothing here adds up numbers of two entities,
and what is added up for one pair is added in the order of that entity's own lists.

    candidates  own items, neighbours of the newest of them, popular items: distinct, available, none left out
    matrix      columns of the entity, of the item and of the pair, side by side, as the model wants them
    top         the best by score; of equal scores the item whose key comes first

An item is known here by its place among `Items.keys`, which are sorted, so that places order as keys do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.candidate_items import HISTORY as HISTORY
from almanac.candidate_items import HISTORY_COUNTS as HISTORY_COUNTS
from almanac.candidate_items import HISTORY_MAX as HISTORY_MAX
from almanac.candidate_items import HISTORY_TIMES as HISTORY_TIMES
from almanac.candidate_items import NEIGHBOURS_MAX as NEIGHBOURS_MAX
from almanac.candidate_items import NEVER as NEVER
from almanac.candidate_items import PAIR_COLUMNS as PAIR_COLUMNS
from almanac.candidate_items import SEEDS_MAX as SEEDS_MAX
from almanac.candidate_items import Pairs as Pairs
from almanac.candidate_items import candidates as candidates
from almanac.errors import FeatureError, PredictionError
from almanac.ragged import Ragged as Ragged
from almanac.ragged import Wholes, best, offsets_of
from almanac.ranking_rows import WHOLE_MAX, Floats, Numbers, Places, rounded_away
from almanac.ranking_rows import Entities as Entities
from almanac.ranking_rows import Items as Items

MATRIX_ROWS = 2_048
"""Rows of a matrix that are filled together: what a core's cache holds."""


@dataclass(frozen=True, eq=False)
class Lists:
    """Ranked lists, one after another, best first.

    Args:
        offsets: int64 (entities + 1,).
        item_index: places of the items, int32.
        scores: float32.
    """

    offsets: Wholes
    item_index: Places
    scores: Floats

    def __len__(self) -> int:
        return len(self.offsets) - 1


def matrix(entities: Entities, items: Items, pairs: Pairs, inputs: Sequence[str]) -> Floats:
    """The model's columns of each pair: the pair's own, the item's, or the entity's, by name.

    Returns:
        float32 (pairs, inputs).

    Raises:
        FeatureError: a column is nobody's, or both an entity's and an item's.
        PredictionError: a number is one that float32 would replace by a neighbour; names the column and whose it is.
    """
    own, theirs, items_own = _whose(entities, items, pairs, inputs)
    need_told_apart(entities.columns, [inputs[place] for place in theirs], pairs.entity_index, entities.keys)
    need_told_apart(items.columns, [inputs[place] for place in items_own], pairs.item_index, items.keys)
    made = np.empty((len(pairs), len(inputs)), np.float32)
    sides: list[tuple[slice | list[int], Numbers, NDArray[Any]]] = []
    if theirs:
        sides.append((_span(theirs), _stacked(entities.columns, inputs, theirs), pairs.entity_index))
    if items_own:
        sides.append((_span(items_own), _of_items(items, inputs, items_own), pairs.item_index))
    for start in range(0, len(pairs), MATRIX_ROWS):
        rows = slice(start, start + MATRIX_ROWS)
        for where, values, place in sides:
            made[rows, where] = np.take(values, place[rows], axis=0)
        for index in own:
            made[rows, index] = pairs.columns[inputs[index]][rows]
    return made


def need_told_apart(
    columns: Mapping[str, Numbers], names: Sequence[str], places: NDArray[Any], keys: Sequence[Any]
) -> None:
    """Refuse what a list would be ranked by, or show, as if it were another number.

    Args:
        names: of the columns that are read.
        places: of the entities or items that are read.
        keys: of all of them.

    Raises:
        PredictionError: names the column, the number and whose it is.
    """
    for name in names:
        if name not in columns or columns[name].dtype == np.float32:
            continue
        bad = np.flatnonzero(rounded_away(columns[name])[places])
        if len(bad):
            place = int(places[bad[0]])
            raise PredictionError(
                f"{name} of {keys[place]} is {columns[name][place]:.17g}: from {WHOLE_MAX:,.0f} on float32 does not "
                "tell whole numbers apart, and lists read float32 alone: give it relative to something, such as days "
                "since, or declare it Float32 if that is all it means"
            )


def _whose(
    entities: Entities, items: Items, pairs: Pairs, inputs: Sequence[str]
) -> tuple[list[int], list[int], list[int]]:
    """The places of the pairs' own columns among the inputs, of the entities', and of the items'."""
    own, theirs, items_own = [], [], []
    for index, name in enumerate(inputs):
        if name in pairs.columns:
            own.append(index)
        elif name in items.columns and name in entities.columns:
            raise FeatureError(f"column {name} is both an entity's and an item's: rename it in one of the views")
        elif name in items.columns:
            items_own.append(index)
        elif name in entities.columns:
            theirs.append(index)
        else:
            raise FeatureError(
                f"the model's input {name} is no column of the entity, the item or the pair: "
                "retrieve it, or train on the features there are"
            )
    return own, theirs, items_own


def _stacked(columns: Mapping[str, Numbers], inputs: Sequence[str], places: Sequence[int]) -> Numbers:
    """Some of the inputs side by side."""
    return np.stack([columns[inputs[place]] for place in places], axis=1)  # type: ignore[return-value]


def _of_items(items: Items, inputs: Sequence[str], places: Sequence[int]) -> Numbers:
    asked = ("columns", *(inputs[place] for place in places))
    if asked not in items.memo:
        items.memo[asked] = _stacked(items.columns, inputs, places)
    found: Numbers = items.memo[asked]
    return found


def _span(places: Sequence[int]) -> slice | list[int]:
    """Places that follow each other as a slice, which is filled faster."""
    if places[-1] - places[0] + 1 == len(places):
        return slice(places[0], places[-1] + 1)
    return list(places)


def top(scores: Floats, pairs: Pairs, kept: int) -> Lists:
    """The best `kept` pairs of each entity by score, best first; of equal scores the item whose key comes first.

    Raises:
        PredictionError: a score is NaN or infinite, or there is not one for each pair.
    """
    if len(scores) != len(pairs) or not np.isfinite(scores).all():
        raise PredictionError(
            f"{len(scores)} scores for {len(pairs)} pairs, {int((~np.isfinite(scores)).sum())} not finite: "
            "look at the features, or roll the model's alias back"
        )
    chosen = best(np.asarray(scores, np.float32), pairs.offsets, kept)
    lengths = np.minimum(np.diff(pairs.offsets), kept)
    return Lists(offsets_of(lengths), pairs.item_index[chosen], np.asarray(scores, np.float32)[chosen])
