"""Which items an entity's list may hold, and what is known of each pair of entity and item.

Own items, neighbours of the newest of them, popular items: distinct, available, none left out. Of one entity nothing
depends on the others that are asked for with it, and what is added up for a pair is added in the order of that
entity's own lists: the same bits in pieces of any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY_MICROSECONDS
from almanac.errors import FeatureError
from almanac.ragged import Ragged, Wholes, best, count_up, offsets_of, picked
from almanac.ranking_rows import Entities, Floats, Items, Places, aligned, list_of

HISTORY, HISTORY_TIMES, HISTORY_COUNTS = "bought_items", "bought_at", "bought_counts"
"""Of an entity: its items, newest first, each once; the microsecond of the newest interaction with each; how many."""

HISTORY_MAX = 100
SEEDS_MAX = 20
"""Newest items of an entity whose neighbours are candidate items."""
NEIGHBOURS_MAX = 20
POPULAR_MAX = 50
"""At most HISTORY_MAX + SEEDS_MAX * NEIGHBOURS_MAX + POPULAR_MAX items are in question for one entity: fewer than
`almanac.ragged.ENTRIES_MAX`."""
ENTITIES_MAX = 1 << 16
"""Entities at once. The numbers of an entity (16 bits), of an item (20) and of a source row (26) share a sort key."""
NEVER = -(1 << 62)
"""In place of a moment that there is not."""

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


def candidates(entities: Entities, items: Items, limits: Limits) -> Pairs:
    """The candidate items of each entity, at most `candidates_max`, with what is known of each pair.

    Raises:
        FeatureError: a list or column that is needed is not there, or lists that belong together differ in length.
    """
    if len(entities) > ENTITIES_MAX:
        raise FeatureError(f"{len(entities):,} entities at once are more than {ENTITIES_MAX:,}: give fewer")
    bits = len(items.keys).bit_length()
    reach, own = _reach(items, limits.available), _own(entities)
    rows = _Rows.of(own, reach, len(entities), bits)
    groups = _Groups.of(rows.keys)
    every = np.concatenate([groups.first, groups.further])
    owner = np.concatenate([np.arange(len(groups.keys)), groups.owner])
    weight: Floats = np.bincount(owner, rows.weights[every], len(groups.keys)).astype(np.float32)
    prior = weight.copy()
    mine = np.flatnonzero(groups.first < len(rows.own.item))
    place = rows.own.place[groups.first[mine]].astype(np.float32)
    prior[mine] += np.float32(OWN_PRIOR) / (1 + place / np.float32(OWN_HALF))
    prior += reach.liked_prior[groups.keys & ((1 << bits) - 1)]
    allowed = np.flatnonzero(_allowed(groups.keys, entities, own, limits, bits))
    offsets = np.searchsorted(groups.keys[allowed], np.arange(len(entities) + 1) << bits)
    kept = np.sort(allowed[best(prior[allowed], offsets, limits.candidates_max)])
    keys = groups.keys[kept]
    pairs = Pairs(
        offsets_of(np.minimum(np.diff(offsets), limits.candidates_max)),
        keys >> bits,
        (keys & ((1 << bits) - 1)).astype(np.int32),
        {name: np.full(len(kept), -1 if name.endswith("_place") else 0, np.float32) for name in PAIR_COLUMNS},
    )
    pairs.columns["near_weight"][:] = weight[kept]
    pairs.columns["popular_place"][:] = reach.liked_place[pairs.item_index]
    _describe_own(pairs, entities, rows.own, groups.first[kept])
    _describe_near(pairs, rows, groups, kept)
    pairs.columns["price_to_own"][:] = _price_to_own(reach.prices, own, pairs, len(entities))
    return pairs


@dataclass(frozen=True, eq=False)
class _Reach:
    """What of all items lists may hold, and what of each counts whoever asks: made once.

    Args:
        usable: bool (items,).
        near, weights: places of the usable items that go with each, closest first, int64, and how closely, float32.
        lengths: how many these are, int64 (items,).
        liked: places of the usable popular items, each once, int64.
        liked_place, liked_prior: float32 (items,): the place among what is popular, -1 elsewhere; what it adds to a
            pair's prior, 0 elsewhere.
        prices: float32 (items,), 0 where there is none.
    """

    usable: NDArray[np.bool_]
    near: Ragged
    weights: Floats
    lengths: Wholes
    liked: Wholes
    liked_place: Floats
    liked_prior: Floats
    prices: Floats


def _reach(items: Items, available: str | None) -> _Reach:
    known: _Reach | None = items.memo.get(("reach", available))
    if known is not None:
        return known
    usable, number = items.answerable(available), len(items.keys)
    row, found = picked(items.neighbours, np.arange(number), NEIGHBOURS_MAX)
    _, weights = picked(items.weights, np.arange(number), NEIGHBOURS_MAX)
    there = found.values >= 0
    there[there] = usable[found.values[there]]
    lengths = np.bincount(row[there], minlength=number)
    near = Ragged(found.values[there].astype(np.int64), offsets_of(lengths))
    popular = items.popular[:POPULAR_MAX].astype(np.int64)
    places = np.flatnonzero(popular >= 0)
    places = places[usable[popular[places]]]
    liked_place, liked_prior = np.full(number, -1, np.float32), np.zeros(number, np.float32)
    back = places[::-1]  # so that of an item that comes twice the first place stays
    liked_place[popular[back]] = back
    liked_prior[popular[back]] = np.float32(POPULAR_PRIOR) / (1 + back.astype(np.float32) / np.float32(POPULAR_HALF))
    liked = np.flatnonzero(liked_place >= 0)
    prices = items.columns.get(PRICE, np.zeros(number)).astype(np.float32)  # the same whichever items are at hand
    clean = np.where(np.isfinite(prices) & (prices > 0), prices, np.float32(0))
    made = _Reach(usable, near, weights.values[there], lengths, liked, liked_place, liked_prior, clean)
    items.memo["reach", available] = made
    return made


@dataclass(frozen=True, eq=False)
class _Own:
    """Items of the entities' histories: whose, which, its place there, and its place among all histories' values."""

    owner: Wholes
    item: Wholes
    place: Wholes
    at: Wholes

    def where(self, kept: NDArray[np.bool_]) -> _Own:
        """Some of them."""
        if kept.all():
            return self
        return _Own(self.owner[kept], self.item[kept], self.place[kept], self.at[kept])


def _own(entities: Entities) -> _Own:
    """The items of each entity's history that are known."""
    history, _ = aligned(entities.lists, HISTORY, HISTORY_TIMES, "entity", entities.keys)
    aligned(entities.lists, HISTORY, HISTORY_COUNTS, "entity", entities.keys)
    owner, place, at = history.rows(HISTORY_MAX)
    item = history.values[at].astype(np.int64)
    return _Own(owner, item, place, at).where(item >= 0)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Why items are in question for entities: the own ones, then those near the newest of these, then what is popular.

    Args:
        keys: entity and item of each row, int64.
        weights: as a neighbour, float32; 0 for the others.
        own: of the first rows.
        near_place: of the rows after them: the place of the item that they are near to, in the own history.
    """

    keys: Wholes
    weights: Floats
    own: _Own
    near_place: Wholes

    @classmethod
    def of(cls, own: _Own, reach: _Reach, entities: int, bits: int) -> _Rows:
        """Of all known items of the histories, usable or not."""
        mine, seeds = own.where(reach.usable[own.item]), own.where(own.place < SEEDS_MAX)
        lengths = reach.lengths[seeds.item]
        at = np.repeat(reach.near.offsets[seeds.item], lengths) + count_up(lengths)
        near = np.repeat(seeds.owner << bits, lengths) | reach.near.values[at]
        liked = ((np.arange(entities) << bits)[:, None] | reach.liked).ravel()
        keys = np.concatenate([(mine.owner << bits) | mine.item, near, liked])
        weights = np.zeros(len(keys), np.float32)
        weights[len(mine.item) : len(mine.item) + len(near)] = reach.weights[at]
        return cls(keys, weights, mine, np.repeat(seeds.place, lengths))


@dataclass(frozen=True, eq=False)
class _Groups:
    """Rows by their keys.

    Args:
        keys: the different ones, rising.
        first: the first row of each.
        further: the other rows, by key, those of one key in their order.
        owner: the place of the key of each of these.
    """

    keys: Wholes
    first: Wholes
    further: Wholes
    owner: Wholes

    @classmethod
    def of(cls, keys: Wholes) -> _Groups:
        """One sort of whole numbers: key, row; both fit, as `ENTITIES_MAX` says."""
        bits = len(keys).bit_length()
        ordered = keys << bits
        ordered |= np.arange(len(keys))
        ordered.sort()
        rising = ordered >> bits
        ordered &= (1 << bits) - 1
        new = np.ones(len(keys), np.bool_)
        np.not_equal(rising[1:], rising[:-1], out=new[1:])
        starts, others = np.flatnonzero(new), np.flatnonzero(~new)
        return cls(rising[starts], ordered[starts], ordered[others], np.cumsum(new)[others] - 1)


def _describe_own(pairs: Pairs, entities: Entities, own: _Own, first: Wholes) -> None:
    """What the histories say of pairs, by the first row of each."""
    at = np.flatnonzero(first < len(own.item))
    row = first[at]
    columns, place = pairs.columns, own.at[row]
    columns["own_place"][at] = own.place[row]
    columns["own_count"][at] = entities.lists[HISTORY_COUNTS].values[place]
    since = (entities.moments[own.owner[row]] - entities.lists[HISTORY_TIMES].values[place]) / DAY_MICROSECONDS
    columns["own_days"][at] = np.maximum(since, 0)


def _describe_near(pairs: Pairs, rows: _Rows, groups: _Groups, kept: Wholes) -> None:
    """How many rows say that a pair's item is near an own one, and the place of the first of these."""
    begin = len(rows.own.item)
    end = begin + len(rows.near_place)
    row = groups.first[kept]
    near = (row >= begin) & (row < end)
    count = near.astype(np.int64)
    # Of what stands in the own history too, the first row is not the first near one.
    slot = np.full(len(groups.keys), -1, np.int64)
    slot[kept] = np.arange(len(kept))
    at = slot[groups.owner]
    more = (groups.further >= begin) & (groups.further < end) & (at >= 0)
    at, further = at[more], groups.further[more]
    back = at[::-1]
    later = row.copy()
    later[back] = further[::-1]
    row = np.where(near, row, later)
    count += np.bincount(at, minlength=len(kept))
    some = np.flatnonzero(count)
    pairs.columns["near_count"][:] = count
    pairs.columns["near_place"][some] = rows.near_place[row[some] - begin]


def _price_to_own(prices: Floats, own: _Own, pairs: Pairs, entities: int) -> Floats:
    """The item's price over the mean price of the entity's items; 0 where either is not known."""
    mine = prices[own.item]
    total = np.bincount(own.owner, mine, entities)
    number = np.bincount(own.owner, mine > 0, entities)
    mean = np.divide(total, number, out=np.zeros(entities), where=number > 0)[pairs.entity_index]
    return np.divide(prices[pairs.item_index], mean, out=np.zeros(len(mean)), where=mean > 0).astype(np.float32)


def _allowed(keys: Wholes, entities: Entities, own: _Own, limits: Limits, bits: int) -> NDArray[np.bool_]:
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


def _lately(pairs: Wholes, entities: Entities, own: _Own, span: int, bits: int) -> NDArray[np.bool_]:
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
