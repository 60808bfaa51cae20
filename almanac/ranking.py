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
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError, PredictionError
from almanac.ragged import Ragged as Ragged
from almanac.ragged import Wholes, offsets_of, picked
from almanac.ranking_rows import ANY_ITEM as ANY_ITEM
from almanac.ranking_rows import Entities as Entities
from almanac.ranking_rows import Floats, Places, aligned, list_of
from almanac.ranking_rows import Items as Items

HISTORY, HISTORY_TIMES, HISTORY_COUNTS = "bought_items", "bought_at", "bought_counts"
"""Of an entity: its items, newest first, each once; the microsecond of the newest interaction with each; how many."""

HISTORY_MAX = 100
SEEDS_MAX = 20
"""Newest items of an entity whose neighbours are candidate items."""
NEIGHBOURS_MAX = 20
POPULAR_MAX = 50
GROUPS_BITS = 10
"""At most HISTORY_MAX + SEEDS_MAX * NEIGHBOURS_MAX + POPULAR_MAX items are in question for one entity: below 2**10."""
ENTITIES_MAX = 1 << 16
"""Entities at once. The numbers of an entity (16 bits), of an item (20) and of a source row (26) share a sort key, and
so do those of an entity, a score (32) and a place (GROUPS_BITS)."""
DAY_MICROSECONDS = 86_400_000_000

PAIR_COLUMNS = (
    "own_place",
    "own_count",
    "own_days",
    "near_weight",
    "near_count",
    "near_place",
    "popular_place",
    "price_to_own",
)
"""What is known of a pair: place in the own history, interactions, days since the newest; weight as a neighbour of the
newest items, of how many of them, and the first of them; place in the popular list; price against the mean of the
own items'. A place that is not there is -1, anything else 0."""
PRICE = "price"
OWN_PRIOR, OWN_HALF, POPULAR_PRIOR, POPULAR_HALF = 2.0, 20.0, 0.5, 20.0
"""Which pairs are kept where there are too many: weights that fall with the places in the own history and in the
popular list, beside the neighbours' own."""


class Limits(Protocol):
    """What of a pipeline's declared ranking counts here."""

    @property
    def candidates_max(self) -> int:
        """Most candidate items of an entity."""

    @property
    def leave_out(self) -> tuple[str, ...]:
        """Lists of the entity whose items are never in its list."""

    @property
    def available(self) -> str | None:
        """Item column that is 0 once an item left the range; None where none ever does."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Entities and their candidate items, in the order of entity and item.

    Args:
        offsets: int64 (entities + 1,): entity i has the pairs `offsets[i]` up to `offsets[i + 1]`.
        entity_index, item_index: int64 and int32 (pairs,).
        columns: float32 (pairs,) for each of `PAIR_COLUMNS`.
    """

    offsets: Wholes
    entity_index: Wholes
    item_index: Places
    columns: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.item_index)


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


def candidates(entities: Entities, items: Items, limits: Limits) -> Pairs:
    """The candidate items of each entity, at most `candidates_max`, with what is known of each pair.

    Raises:
        FeatureError: a list or column that is needed is not there, or lists that belong together differ in length.
    """
    if len(entities) > ENTITIES_MAX:
        raise FeatureError(f"{len(entities):,} entities at once are more than {ENTITIES_MAX:,}: give fewer")
    history, times = aligned(entities.lists, HISTORY, HISTORY_TIMES, "entity", entities.keys)
    _, counts = aligned(entities.lists, HISTORY, HISTORY_COUNTS, "entity", entities.keys)
    owner, place, at = history.rows(HISTORY_MAX)
    item = history.values[at].astype(np.int64)
    known = item >= 0
    owner, place, at, item = owner[known], place[known], at[known], item[known]
    near = _near(owner, place, item, items)
    popular = items.popular[items.popular >= 0][:POPULAR_MAX].astype(np.int64)
    crowd = np.repeat(np.arange(len(entities)), len(popular))
    sources = (
        owner * len(items.keys) + item,
        near[0] * len(items.keys) + near[1],
        crowd * len(items.keys) + np.tile(popular, len(entities)),
    )
    keys, group = _grouped(sources)
    found = _Groups(keys // max(len(items.keys), 1), keys % max(len(items.keys), 1))
    own, closer, liked = np.split(group, np.cumsum([len(source) for source in sources])[:-1])
    columns = {name: np.full(len(keys), -1 if name.endswith("_place") else 0, np.float32) for name in PAIR_COLUMNS}
    # Written backwards, so that of an item that comes twice in a list the first place stays.
    back = slice(None, None, -1)
    columns["own_place"][own[back]] = place[back]
    columns["own_count"][own[back]] = counts.values[at][back]
    since = (entities.moments[owner] - times.values[at]) / DAY_MICROSECONDS
    columns["own_days"][own[back]] = np.maximum(since, 0)[back]
    columns["near_weight"] = np.bincount(closer, near[3], len(keys)).astype(np.float32)
    columns["near_count"] = np.bincount(closer, minlength=len(keys)).astype(np.float32)
    columns["near_place"][closer[back]] = near[2][back]
    columns["popular_place"][liked[back]] = np.tile(np.arange(len(popular)), len(entities))[back]
    columns["price_to_own"] = _price_to_own(items, owner, item, found, len(entities))
    usable = items.answerable(limits.available)[found.item]
    for name in limits.leave_out:
        usable &= ~_among(keys, entities, name, len(items.keys))
    return _kept(found, columns, usable, len(entities), limits.candidates_max)


def matrix(entities: Entities, items: Items, pairs: Pairs, inputs: Sequence[str]) -> Floats:
    """The model's columns of each pair: the pair's own, the item's, or the entity's, by name.

    Returns:
        float32 (pairs, inputs).

    Raises:
        FeatureError: a column is nobody's, or both an entity's and an item's.
    """
    made = np.empty((len(pairs), len(inputs)), np.float32)
    for index, name in enumerate(inputs):
        if name in pairs.columns:
            made[:, index] = pairs.columns[name]
        elif name in items.columns and name in entities.columns:
            raise FeatureError(f"column {name} is both an entity's and an item's: rename it in one of the views")
        elif name in items.columns:
            made[:, index] = items.columns[name][pairs.item_index]
        elif name in entities.columns:
            made[:, index] = entities.columns[name][pairs.entity_index]
        else:
            raise FeatureError(
                f"the model's input {name} is no column of the entity, the item or the pair: "
                "retrieve it, or train on the features there are"
            )
    return made


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
    chosen = _best(np.asarray(scores, np.float32), pairs.entity_index, pairs.offsets, kept)
    lengths = np.minimum(np.diff(pairs.offsets), kept)
    return Lists(offsets_of(lengths), pairs.item_index[chosen], np.asarray(scores, np.float32)[chosen])


@dataclass(frozen=True, eq=False)
class _Groups:
    """Pairs in question, in the order of entity and item."""

    entity: Wholes
    item: Wholes


def _near(owner: Wholes, place: Wholes, item: Wholes, items: Items) -> tuple[Wholes, Wholes, Wholes, Floats]:
    """Neighbours of each entity's newest items: entity, item, place of the newest item, and weight."""
    seeds = place < SEEDS_MAX
    owner, place, item = owner[seeds], place[seeds], item[seeds]
    row, at = picked(items.neighbours, item, NEIGHBOURS_MAX)
    known = at.values >= 0
    _, weights = picked(items.weights, item, NEIGHBOURS_MAX)
    return owner[row][known], at.values[known].astype(np.int64), place[row][known], weights.values[known]


def _price_to_own(items: Items, owner: Wholes, item: Wholes, found: _Groups, entities: int) -> Floats:
    """The item's price over the mean price of the entity's items; 0 where either is not known."""
    prices = items.columns.get(PRICE)
    if prices is None:
        return np.zeros(len(found.item), np.float32)
    clean = np.where(np.isfinite(prices) & (prices > 0), prices, 0)
    own = clean[item]
    total = np.bincount(owner, own, entities)
    number = np.bincount(owner, own > 0, entities)
    mean = np.divide(total, number, out=np.zeros(entities), where=number > 0)[found.entity]
    return np.divide(clean[found.item], mean, out=np.zeros(len(mean)), where=mean > 0).astype(np.float32)


def _among(keys: Wholes, entities: Entities, name: str, items: int) -> NDArray[np.bool_]:
    """Which pairs have an item of the entity's list `name`."""
    values = list_of(entities.lists, name, "entity")
    owner = np.repeat(np.arange(len(values)), values.lengths)
    known = values.values >= 0
    return np.isin(keys, owner[known] * items + values.values[known])


def _kept(found: _Groups, columns: Mapping[str, Floats], usable: NDArray[np.bool_], entities: int, most: int) -> Pairs:
    """Of the usable pairs of each entity the best by what is known beforehand, in the order of entity and item."""
    chosen = np.flatnonzero(usable)
    entity = found.entity[chosen]
    own, liked = columns["own_place"][chosen], columns["popular_place"][chosen]
    prior = columns["near_weight"][chosen].astype(np.float32)
    prior += np.where(own >= 0, np.float32(OWN_PRIOR) / (1 + own / np.float32(OWN_HALF)), np.float32(0))
    prior += np.where(liked >= 0, np.float32(POPULAR_PRIOR) / (1 + liked / np.float32(POPULAR_HALF)), np.float32(0))
    offsets = offsets_of(np.bincount(entity, minlength=entities))
    best = np.sort(chosen[_best(prior, entity, offsets, most)])
    counts = np.minimum(np.diff(offsets), most)
    return Pairs(
        offsets_of(counts),
        found.entity[best],
        found.item[best].astype(np.int32),
        {name: values[best] for name, values in columns.items()},
    )


def _best(scores: Floats, entity: Wholes, offsets: Wholes, most: int) -> Wholes:
    """Indices of the best of each entity, best first, ties by index; `offsets` says where each entity's begin.

    One sort of whole numbers: entity, score turned round, place within the entity.
    """
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 makes -0 equal 0
    falling = np.where(bits < 0, bits & 0x7FFFFFFF, -1 - bits) + (1 << 31)
    place = np.arange(len(scores)) - offsets[entity]
    ordered = np.sort((entity << (32 + GROUPS_BITS)) | (falling << GROUPS_BITS) | place)
    index = offsets[ordered >> (32 + GROUPS_BITS)] + (ordered & ((1 << GROUPS_BITS) - 1))
    chosen: Wholes = index[np.arange(len(index)) - offsets[entity[index]] < most]
    return chosen


def _grouped(sources: Sequence[Wholes]) -> tuple[Wholes, Wholes]:
    """The different keys of all sources, rising, and the place of each source row's key among them.

    One sort of whole numbers: key, source row; both fit, as `ENTITIES_MAX` says.
    """
    keys = np.concatenate(sources)
    bits = len(keys).bit_length()
    ordered = np.sort((keys << bits) | np.arange(len(keys)))
    rising = ordered >> bits
    first = np.ones(len(keys), np.bool_)
    np.not_equal(rising[1:], rising[:-1], out=first[1:])
    group = np.empty(len(keys), np.int64)
    group[ordered & ((1 << bits) - 1)] = np.cumsum(first) - 1
    return rising[first], group
