"""From entities and items to ranked lists: the one way of batch, stream and fresh computation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from almanac.errors import PredictionError
from almanac.ragged import offsets_of
from almanac.ranked import RankedList
from almanac.ranking import Entities, Items, Lists, Pairs, candidates, matrix, need_told_apart, top
from almanac.ranking_declared import Ranking
from almanac.ranking_rows import Floats


class Scores(Protocol):
    """What ranking needs of a model: `almanac.scoring.Scorer` is one."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns of a pair, in order."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """One: the score."""
        ...

    def score_matrix(self, matrix: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """One array per output, of the input columns side by side."""
        ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """Entities before they are scored: their pairs, and what the model is to be asked of each.

    Args:
        inputs: float32 (pairs, columns of the model); entity i has the rows `pairs.offsets[i]` up to
            `pairs.offsets[i + 1]`, and nothing else decides what its list will be.
    """

    pairs: Pairs
    inputs: Floats

    def __len__(self) -> int:
        return len(self.pairs.offsets) - 1

    def where(self, chosen: NDArray[np.bool_]) -> Prepared:
        """Some of the entities."""
        if chosen.all():
            return self
        lengths = np.diff(self.pairs.offsets)
        rows = np.repeat(chosen, lengths)
        pairs = Pairs(
            offsets_of(lengths[chosen]),
            np.repeat(np.arange(int(chosen.sum())), lengths[chosen]),
            self.pairs.item_index[rows],
            {name: values[rows] for name, values in self.pairs.columns.items()},
        )
        return Prepared(pairs, self.inputs[rows])


def prepared(entities: Entities, items: Items, columns: Sequence[str], ranking: Ranking) -> Prepared:
    """Steps 1 and 2: the candidate items of each entity, and the model's columns of each pair.

    Raises:
        FeatureError: a column or list that is needed is not there.
        PredictionError: a number that the model reads, or the list shows, is one that float32 cannot hold.
    """
    pairs = candidates(entities, items, ranking)
    need_told_apart(items.columns, ranking.attributes, pairs.item_index, items.keys)
    return Prepared(pairs, matrix(entities, items, pairs, columns))


def scored(asked: Prepared, scorer: Scores, kept: int) -> Lists:
    """Steps 3 and 4: a score for each pair, and the best of each entity in order.

    Raises:
        FeatureError: an input is not finite.
        PredictionError: the model answers NaN or infinity.
    """
    pairs = asked.pairs
    scores = scorer.score_matrix(asked.inputs)[scorer.outputs[0]] if len(pairs) else np.empty(0, np.float32)
    return top(scores, pairs, kept)


def best(entities: Entities, items: Items, scorer: Scores, ranking: Ranking) -> Lists:
    """The items of each entity's list, best first, and their scores.

    Raises:
        FeatureError: a column or list that is needed is not there, or not finite.
        PredictionError: the model answers NaN or infinity.
    """
    return scored(prepared(entities, items, scorer.inputs, ranking), scorer, ranking.kept)


def rank(entities: Entities, items: Items, scorer: Scores, ranking: Ranking) -> list[RankedList]:
    """A list for each entity, best first; empty where nothing is to be recommended.

    Raises:
        FeatureError: a column or list that is needed is not there.
        PredictionError: the model answers NaN or infinity.
    """
    return ranked(best(entities, items, scorer, ranking), items, ranking.attributes)


def rank_each(entities: Entities, items: Items, scorer: Scores, ranking: Ranking) -> list[RankedList | PredictionError]:
    """The same; if the model answers NaN for some, one by one, so that only those have an error in place of a list."""
    try:
        return list(rank(entities, items, scorer, ranking))
    except PredictionError as error:
        if len(entities) == 1:
            return [error]
    return [one for at in range(len(entities)) for one in rank_each(entities.part(at, at + 1), items, scorer, ranking)]


def ranked(lists: Lists, items: Items, attributes: tuple[str, ...]) -> list[RankedList]:
    """Lists with the items' keys and attributes."""
    keys, scores = items.keys, lists.scores.tolist()
    places = lists.item_index.tolist()
    columns = {name: items.columns[name][lists.item_index].astype(np.float32).tolist() for name in attributes}
    ends = lists.offsets.tolist()
    return [
        RankedList(
            items=tuple(keys[place] for place in places[a:b]),
            scores=tuple(scores[a:b]),
            attributes={name: tuple(values[a:b]) for name, values in columns.items()},
        )
        for a, b in itertools.pairwise(ends)
    ]
