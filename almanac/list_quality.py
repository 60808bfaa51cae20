"""How good ranked lists are: recall and NDCG of their first items against what was taken; simple lists beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from almanac.manifest import ListMetric
from almanac.ragged import Ragged, offsets_of, picked
from almanac.ranking import Items, Lists
from almanac.ranking_declared import Ranking

POPULAR, BOUGHT_AGAIN, BOUGHT_LATELY = "popular", "bought_again", "bought_lately"

Numbers = NDArray[np.float64]
Wholes = NDArray[np.int64]


class Tally:
    """Recall and NDCG of lists, by who made them, as they come in.

    Args:
        length: items of a list that count.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._found: dict[str, list[tuple[Numbers, Numbers]]] = {}

    def add(self, taken: Ragged, lists: Mapping[str, Ragged]) -> None:
        """More entities: what each took (places of items, -1 for an unknown one), and each maker's list for it."""
        for who, made in lists.items():
            self._found.setdefault(who, []).append(quality(made, taken, self.length))

    def metric(self, model: str, baselines: tuple[str, ...]) -> ListMetric:
        """One maker's figures beside the others'; of no lists at all they are 0."""
        means = {who: (_mean(parts, 0), _mean(parts, 1)) for who, parts in self._found.items()}
        rows = sum(len(part[0]) for part in self._found.get(model, []))
        return ListMetric(
            length=self.length,
            recall=means.get(model, (0.0, 0.0))[0],
            ndcg=means.get(model, (0.0, 0.0))[1],
            recall_baselines={who: means.get(who, (0.0, 0.0))[0] for who in baselines},
            ndcg_baselines={who: means.get(who, (0.0, 0.0))[1] for who in baselines},
            rows=rows,
        )


def quality(lists: Ragged, taken: Ragged, length: int) -> tuple[Numbers, Numbers]:
    """Recall and NDCG of each list's first `length` items.

    Recall is the share of what was taken that the list holds; NDCG weighs a hit by 1 / log2(place + 1), over the
    same sum of a list that begins with what was taken.

    Args:
        lists: places of items, best first, each once.
        taken: places of items, each once; -1 for one that is not known, which no list can hold.

    Returns:
        float64 (lists,) each; 0 where nothing was taken.
    """
    owner, place, at = lists.rows(length)
    span = int(max(lists.values.max(initial=0), taken.values.max(initial=0))) + 2
    wanted = np.repeat(np.arange(len(taken)), taken.lengths) * span + taken.values + 1
    known = taken.values >= 0
    hit = np.isin(owner * span + lists.values[at] + 1, wanted[known])
    weights = 1 / np.log2(np.arange(2, length + 2))
    hits = np.bincount(owner[hit], minlength=len(lists))
    gains = np.bincount(owner[hit], weights[place[hit]], len(lists))
    best = np.concatenate([np.zeros(1), np.cumsum(weights)])[np.minimum(taken.lengths, length)]
    number = np.maximum(taken.lengths, 1)
    return hits / number, np.divide(gains, best, out=np.zeros(len(lists)), where=best > 0)


def baselines(history: Ragged, counts: Ragged, items: Items, ranking: Ranking) -> dict[str, Ragged]:
    """What three people without a model would show: what is popular; the own items, most often taken or newest first.

    The own items are filled up with what is popular, so that each list is as long as the model's. Items that have left
    the range are in none of them.

    Args:
        history: places of each entity's items, newest first.
        counts: how often each was taken.
    """
    usable = items.answerable(ranking.available)
    popular: Wholes = items.liked(ranking.available).astype(np.int64)
    owner, place, at = history.rows(int(history.lengths.max(initial=0)))
    item, count = history.values[at].astype(np.int64), counts.values[at]
    kept = item >= 0
    kept[kept] &= usable[item[kept]]
    owner, place, item, count = owner[kept], place[kept], item[kept], count[kept]
    number, often = len(history), np.lexsort((place, -count, owner))
    return {
        POPULAR: _filled(owner[:0], item[:0], popular, number, ranking.length),
        BOUGHT_AGAIN: _filled(owner[often], item[often], popular, number, ranking.length),
        BOUGHT_LATELY: _filled(owner, item, popular, number, ranking.length),
    }


def as_lists(made: Lists) -> Ragged:
    """Ranked lists without their scores."""
    return Ragged(made.item_index, made.offsets)


def filled_up(lists: Ragged, items: Items, ranking: Ranking) -> Ragged:
    """Lists that are empty become that of what is popular, which is what a lookup answers in their place."""
    popular = items.liked(ranking.available)[: ranking.length]
    rows = np.where(lists.lengths > 0, np.arange(len(lists)), len(lists))
    with_popular = Ragged(
        np.concatenate([lists.values, popular]), np.append(lists.offsets, lists.offsets[-1] + len(popular))
    )
    return picked(with_popular, rows)[1]


def _filled(owner: Wholes, item: Wholes, popular: Wholes, entities: int, length: int) -> Ragged:
    """The first items of each entity, filled up with popular ones that it does not have."""
    lists = Ragged(item, offsets_of(np.bincount(owner, minlength=entities)))
    own_owner, _, at = lists.rows(length)
    own = lists.values[at]
    span = int(max(own.max(initial=0), popular.max(initial=0))) + 1
    more_owner = np.repeat(np.arange(entities), len(popular))
    more = np.tile(popular, entities)
    new = ~np.isin(more_owner * span + more, own_owner * span + own)
    owners = np.concatenate([own_owner, more_owner[new]])
    order = np.argsort(owners, kind="stable")
    every = Ragged(np.concatenate([own, more[new]])[order], offsets_of(np.bincount(owners, minlength=entities)))
    _, _, first = every.rows(length)
    return Ragged(every.values[first], offsets_of(np.minimum(every.lengths, length)))


def _mean(parts: list[tuple[Numbers, Numbers]], which: int) -> float:
    values = np.concatenate([part[which] for part in parts]) if parts else np.empty(0)
    return float(values.mean()) if len(values) else 0.0
