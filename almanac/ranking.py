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
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY_MICROSECONDS
from almanac.errors import FeatureError, PredictionError
from almanac.ragged import Ragged as Ragged
from almanac.ragged import Wholes, count_up, offsets_of, picked
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
NEVER = -(1 << 62)
"""In place of a moment that there is not."""

MATRIX_ROWS = 2_048
"""Rows of a matrix that are filled together, column by column: what a core's cache holds."""

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
    def leave_out_for(self) -> timedelta | None:
        """How long after an item was taken it is left out; None for as long as such a list has it."""

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
    bits = len(items.keys).bit_length()
    own = _own(entities)
    near, liked = _others(entities, own, items)
    usable = items.answerable(limits.available)
    asked = [rows.where(usable[rows.item]) for rows in (own, near, liked)]
    keys, group = _grouped([(rows.owner << bits) | rows.item for rows in asked])
    groups = np.split(group, np.cumsum([len(rows.item) for rows in asked])[:-1])
    weight = np.bincount(groups[1], asked[1].weight, len(keys)).astype(np.float32)
    prior = weight.copy()
    # Written backwards, so that of an item that comes twice in a list the first place stays.
    for which, most, half in ((0, OWN_PRIOR, OWN_HALF), (2, POPULAR_PRIOR, POPULAR_HALF)):
        at, place = groups[which][::-1], asked[which].place[::-1].astype(np.float32)
        prior[at] = prior[at] + np.float32(most) / (1 + place / np.float32(half))
    allowed = np.flatnonzero(_allowed(keys, entities, own, limits, bits))
    offsets = np.searchsorted(keys[allowed], np.arange(len(entities) + 1) << bits)
    kept = np.sort(allowed[_best(prior[allowed], offsets, limits.candidates_max)])
    slot = np.full(len(keys), -1, np.int64)
    slot[kept] = np.arange(len(kept))
    pairs = Pairs(
        offsets_of(np.minimum(np.diff(offsets), limits.candidates_max)),
        keys[kept] >> bits,
        (keys[kept] & ((1 << bits) - 1)).astype(np.int32),
        {name: np.full(len(kept), -1 if name.endswith("_place") else 0, np.float32) for name in PAIR_COLUMNS},
    )
    slots = [slot[part] for part in groups]
    placed = [rows.where(found >= 0) for rows, found in zip(asked, slots, strict=True)]
    _describe(pairs, entities, placed, [found[found >= 0] for found in slots])
    pairs.columns["near_weight"][:] = weight[kept]
    pairs.columns["price_to_own"][:] = _price_to_own(items, own, pairs, len(entities))
    return pairs


def matrix(entities: Entities, items: Items, pairs: Pairs, inputs: Sequence[str]) -> Floats:
    """The model's columns of each pair: the pair's own, the item's, or the entity's, by name.

    Returns:
        float32 (pairs, inputs).

    Raises:
        FeatureError: a column is nobody's, or both an entity's and an item's.
    """
    every = np.arange(len(pairs))
    sources: list[tuple[Floats, NDArray[Any]]] = []
    for name in inputs:
        if name in pairs.columns:
            sources.append((pairs.columns[name], every))
        elif name in items.columns and name in entities.columns:
            raise FeatureError(f"column {name} is both an entity's and an item's: rename it in one of the views")
        elif name in items.columns:
            sources.append((items.columns[name], pairs.item_index))
        elif name in entities.columns:
            sources.append((entities.columns[name], pairs.entity_index))
        else:
            raise FeatureError(
                f"the model's input {name} is no column of the entity, the item or the pair: "
                "retrieve it, or train on the features there are"
            )
    made = np.empty((len(pairs), len(inputs)), np.float32)
    for start in range(0, len(pairs), MATRIX_ROWS):
        rows = slice(start, start + MATRIX_ROWS)
        for index, (values, place) in enumerate(sources):
            made[rows, index] = values[place[rows]]
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
    chosen = _best(np.asarray(scores, np.float32), pairs.offsets, kept)
    lengths = np.minimum(np.diff(pairs.offsets), kept)
    return Lists(offsets_of(lengths), pairs.item_index[chosen], np.asarray(scores, np.float32)[chosen])


@dataclass(frozen=True, eq=False)
class _Rows:
    """Why an item is in question for an entity: it is in a list of the entity, or of one of its items.

    Args:
        owner, item: int64 (rows,).
        place: in the entity's own history, or in what is popular; int64.
        at: place among the values of all histories; int64, empty where there is none.
        weight: as a neighbour; float32, empty where there is none.
    """

    owner: Wholes
    item: Wholes
    place: Wholes
    at: Wholes
    weight: Floats

    def where(self, kept: NDArray[np.bool_]) -> _Rows:
        """Some of the rows."""
        if kept.all():
            return self
        at = self.at[kept] if len(self.at) else self.at
        weight = self.weight[kept] if len(self.weight) else self.weight
        return _Rows(self.owner[kept], self.item[kept], self.place[kept], at, weight)


_NO_PLACES, _NO_WEIGHTS = np.empty(0, np.int64), np.empty(0, np.float32)


def _own(entities: Entities) -> _Rows:
    """The items of each entity's history that are known."""
    history, _ = aligned(entities.lists, HISTORY, HISTORY_TIMES, "entity", entities.keys)
    aligned(entities.lists, HISTORY, HISTORY_COUNTS, "entity", entities.keys)
    owner, place, at = history.rows(HISTORY_MAX)
    item = history.values[at].astype(np.int64)
    return _Rows(owner, item, place, at, _NO_WEIGHTS).where(item >= 0)


def _others(entities: Entities, own: _Rows, items: Items) -> tuple[_Rows, _Rows]:
    """Neighbours of each entity's newest items, with the places of these; and what is popular."""
    seeds = own.where(own.place < SEEDS_MAX)
    row, found = picked(items.neighbours, seeds.item, NEIGHBOURS_MAX)
    _, weights = picked(items.weights, seeds.item, NEIGHBOURS_MAX)
    near = _Rows(seeds.owner[row], found.values.astype(np.int64), seeds.place[row], _NO_PLACES, weights.values)
    popular = items.popular[:POPULAR_MAX].astype(np.int64)
    number = len(entities)
    owner = np.repeat(np.arange(number), len(popular))
    place = np.tile(np.arange(len(popular)), number)
    liked = _Rows(owner, np.tile(popular, number), place, _NO_PLACES, _NO_WEIGHTS)
    return near.where(near.item >= 0), liked.where(liked.item >= 0)


def _describe(pairs: Pairs, entities: Entities, rows: Sequence[_Rows], slots: Sequence[Wholes]) -> None:
    """What the rows say of their pairs, whose places are `slots`; written backwards, as the first place counts."""
    columns, back = pairs.columns, slice(None, None, -1)
    own, near, liked = rows
    columns["own_place"][slots[0][back]] = own.place[back]
    columns["own_count"][slots[0][back]] = entities.lists[HISTORY_COUNTS].values[own.at][back]
    since = (entities.moments[own.owner] - entities.lists[HISTORY_TIMES].values[own.at]) / DAY_MICROSECONDS
    columns["own_days"][slots[0][back]] = np.maximum(since, 0)[back]
    columns["near_count"][:] = np.bincount(slots[1], minlength=len(pairs))
    columns["near_place"][slots[1][back]] = near.place[back]
    columns["popular_place"][slots[2][back]] = liked.place[back]


def _price_to_own(items: Items, own: _Rows, pairs: Pairs, entities: int) -> Floats:
    """The item's price over the mean price of the entity's items; 0 where either is not known."""
    prices = items.columns.get(PRICE)
    if prices is None:
        return np.zeros(len(pairs), np.float32)
    clean = np.where(np.isfinite(prices) & (prices > 0), prices, 0)
    mine = clean[own.item]
    total = np.bincount(own.owner, mine, entities)
    number = np.bincount(own.owner, mine > 0, entities)
    mean = np.divide(total, number, out=np.zeros(entities), where=number > 0)[pairs.entity_index]
    return np.divide(clean[pairs.item_index], mean, out=np.zeros(len(mean)), where=mean > 0).astype(np.float32)


def _allowed(keys: Wholes, entities: Entities, own: _Rows, limits: Limits, bits: int) -> NDArray[np.bool_]:
    """Which pairs have an item that is in none of the entity's lists that are left out."""
    allowed = np.ones(len(keys), np.bool_)
    for name in limits.leave_out:
        values = list_of(entities.lists, name, "entity")
        owner = np.repeat(np.arange(len(values)), values.lengths)
        known = values.values >= 0
        out = (owner[known] << bits) | values.values[known]
        if limits.leave_out_for is not None:
            out = out[_lately(out, entities, own, limits.leave_out_for // timedelta(microseconds=1), bits)]
        at = np.searchsorted(keys, out)
        inside = at < len(keys)
        allowed[at[inside][keys[at[inside]] == out[inside]]] = False
    return allowed


def _lately(pairs: Wholes, entities: Entities, own: _Rows, span: int, bits: int) -> NDArray[np.bool_]:
    """Which pairs' item was taken less than `span` microseconds before the moment.

    When, the history says; what it does not name counts as taken with the newest that it has.
    """
    times = entities.lists[HISTORY_TIMES]
    newest = np.full(len(entities), NEVER)
    some = np.flatnonzero(times.lengths)
    newest[some] = times.values[times.offsets[some]]
    active = entities.moments - newest < span
    late: NDArray[np.bool_] = active[pairs >> bits]
    if not late.any():
        return late
    held = own.where(active[own.owner])
    known = (held.owner << bits) | held.item
    order = np.argsort(known, kind="stable")  # of an item that stands there twice the newest comes first
    asked = pairs[late]
    place = np.minimum(np.searchsorted(known[order], asked), len(order) - 1)
    taken = newest[asked >> bits]
    if len(order):
        named = known[order][place] == asked
        taken[named] = times.values[held.at][order][place[named]]
    late[late] = entities.moments[asked >> bits] - taken < span
    return late


def _best(scores: Floats, offsets: Wholes, most: int) -> Wholes:
    """Indices of the best of each entity, best first, ties by index; `offsets` says where each entity's begin.

    One sort of whole numbers: entity, score turned round, place within the entity.
    """
    counts = np.diff(offsets)
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 makes -0 equal 0
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    begins = offsets[:-1]
    entity = np.arange(len(counts)) << (32 + GROUPS_BITS)
    ordered = np.repeat(entity - begins, counts) + np.arange(len(scores))
    ordered += (np.int64(0x7FFFFFFF) - rising) << GROUPS_BITS
    ordered.sort()
    kept = np.minimum(counts, most)
    first = np.repeat(begins, kept)
    found: Wholes = first + (ordered[first + count_up(kept)] & ((1 << GROUPS_BITS) - 1))
    return found


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
