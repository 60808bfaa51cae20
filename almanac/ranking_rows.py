"""What is ranked: entities at a moment, and items, both with columns and lists."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError
from almanac.ragged import Ragged, Wholes, picked
from almanac.ranking_declared import ANY_ITEM

NEIGHBOURS, NEIGHBOUR_WEIGHTS = "together_items", "together_weights"
"""Of an item: the items that go with it, closest first, and how closely, above 0."""
ITEMS_MAX = 1 << 20
WHOLE_MAX = 2.0**24
"""From here on float32, which is all that a model of lists reads, does not tell neighbouring whole numbers apart."""

Floats = NDArray[np.float32]
Numbers = NDArray[np.float32] | NDArray[np.float64]
Places = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Items:
    """All items that are known, with their columns and neighbours; make one with `of`.

    Args:
        keys: sorted, each once.
        columns: (items,) by name, float32, or float64 as `narrowed` says.
        neighbours: places of each item's neighbours, int32; -1 is an item that is not known.
        weights: of the neighbours, float32; offsets are those of `neighbours`.
        popular: places of what is popular, best first, int32.
    """

    keys: tuple[str, ...]
    columns: Mapping[str, Numbers]
    neighbours: Ragged
    weights: Ragged
    popular: Places

    @classmethod
    def of(cls, keys: Sequence[str], columns: Mapping[str, NDArray[Any]], lists: Mapping[str, Ragged]) -> Items:
        """Rows of items, in any order, as they are retrieved: `NEIGHBOURS` are keys, and one row may be `ANY_ITEM`.

        Raises:
            FeatureError: a key comes twice, or lists that belong together differ in length.
        """
        order = sorted(range(len(keys)), key=keys.__getitem__)
        if len(order) > ITEMS_MAX:
            raise FeatureError(f"{len(order):,} items are more than {ITEMS_MAX:,}: rank fewer items")
        sorted_keys = tuple(keys[row] for row in order)
        for left, right in itertools.pairwise(sorted_keys):
            if left == right:
                raise FeatureError(f"item {left!r} comes twice: keep one row of each item and moment")
        together, weights = aligned(lists, NEIGHBOURS, NEIGHBOUR_WEIGHTS, "item", keys)
        any_row = [row for row in order if keys[row] == ANY_ITEM]
        order = [row for row in order if keys[row] != ANY_ITEM]
        found = tuple(keys[row] for row in order)
        known = {key: place for place, key in enumerate(found)}
        rows = np.array(order, dtype=np.int64)
        flat = places_of(known, together.values)
        _, neighbours = picked(Ragged(flat, together.offsets), rows)
        _, picked_weights = picked(Ragged(weights.values.astype(np.float32), weights.offsets), rows)
        popular = flat[together.offsets[any_row[0]] : together.offsets[any_row[0] + 1]] if any_row else flat[:0]
        plain = {name: narrowed(np.asarray(values)[rows]) for name, values in columns.items()}
        return cls(found, plain, neighbours, picked_weights, popular)

    @cached_property
    def known(self) -> Mapping[str, int]:
        """The place of each key."""
        return {key: place for place, key in enumerate(self.keys)}

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What was made of all items once and is asked for again for every few entities, by what was asked."""
        return {}

    def places(self, keys: Sequence[str] | NDArray[Any]) -> Places:
        """The places of these keys, -1 for what is not known."""
        return places_of(self.known, keys)

    def answerable(self, available: str | None) -> NDArray[np.bool_]:
        """Which items a list may hold: available, and every column a number.

        Raises:
            FeatureError: there is no such column.
        """
        if available is not None and available not in self.columns:
            raise FeatureError(
                f"items have no column {available}, which says whether one is available: "
                "add it to a view of the items, or name another column in the declaration"
            )
        whole = np.ones(len(self.keys), np.bool_)
        for name, values in self.columns.items():
            whole &= np.isfinite(values)
            if name == available:
                whole &= values > 0
        return whole

    def liked(self, available: str | None) -> Places:
        """Places of what is popular and may be in a list, best first, each once.

        Raises:
            FeatureError: there is no such column.
        """
        known = self.popular[self.popular >= 0]
        usable = known[self.answerable(available)[known]]
        return np.fromiter(dict.fromkeys(usable.tolist()), np.int32)


@dataclass(frozen=True, eq=False)
class Entities:
    """Entities to make lists for, each at a moment.

    Args:
        keys: as they are stored and served.
        moments: that the list speaks as of, microseconds since 1970, int64 (entities,).
        columns: (entities,) by name, as of the moment: float32, or float64 as `narrowed` says.
        lists: by name; those of items hold places among `Items.keys`, -1 for what is not known.
    """

    keys: Sequence[Any]
    moments: Wholes
    columns: Mapping[str, Numbers]
    lists: Mapping[str, Ragged]

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, stop: int) -> Entities:
        """The entities `start` up to `stop`."""
        return Entities(
            self.keys[start:stop],
            self.moments[start:stop],
            {name: values[start:stop] for name, values in self.columns.items()},
            {name: values.part(start, stop) for name, values in self.lists.items()},
        )


def narrowed(values: NDArray[Any]) -> Numbers:
    """A column as float32; it stays float64 if it has a number that `rounded_away` names, for its readers to refuse.

    Whole numbers become doubles first, as they are where online features are read.
    """
    if values.dtype == np.float32:
        return values
    wide = values.astype(np.float64)
    with np.errstate(over="ignore"):
        return wide if rounded_away(wide).any() else wide.astype(np.float32)


def rounded_away(values: Numbers) -> NDArray[np.bool_]:
    """Which numbers of `WHOLE_MAX` and more float32 would replace by a neighbour; one beyond its range is infinite."""
    if values.dtype == np.float32:
        return np.zeros(len(values), np.bool_)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return np.asarray(np.isfinite(narrow) & (np.abs(values) >= WHOLE_MAX) & (narrow != values))


def places_of(known: Mapping[str, int], keys: Sequence[str] | NDArray[Any]) -> Places:
    """The place of each key, int32; -1 for one that is not known."""
    get = known.get
    return np.fromiter((get(key, -1) for key in keys), np.int32, len(keys))


def list_of(lists: Mapping[str, Ragged], name: str, whose: str) -> Ragged:
    """One of the lists.

    Args:
        whose: `entity` or `item`, for the error.

    Raises:
        FeatureError: it is not there.
    """
    if name not in lists:
        raise FeatureError(f"the list {name} of each {whose} is needed to rank: add it to a view, or declare another")
    return lists[name]


def aligned(
    lists: Mapping[str, Ragged], left: str, right: str, whose: str, keys: Sequence[Any]
) -> tuple[Ragged, Ragged]:
    """Two lists whose entries belong together.

    Args:
        whose: `entity` or `item`, for the error; `keys` are theirs.

    Raises:
        FeatureError: one is not there, or they differ in length.
    """
    one, other = list_of(lists, left, whose), list_of(lists, right, whose)
    differ = np.flatnonzero(one.lengths != other.lengths) if len(one) == len(other) else np.array([-1])
    if len(differ):
        named = f" of {whose} {keys[differ[0]]}" if differ[0] >= 0 else ""
        raise FeatureError(f"the lists {left} and {right}{named} differ in length: make the features again")
    return one, other
