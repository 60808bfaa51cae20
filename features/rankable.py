"""What is ranked, made of features: an entity's columns and lists at a moment, and the items in question for some.

Pure NumPy, for batch, stream and fresh computation alike. Where all items are at hand, they are given; online the
few that matter are asked for, by two questions (`items_in_question`), whose answers give the same lists to the bit:
an entity's candidate items are its own, neighbours of the newest of these, and what is popular.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError
from almanac.pipeline import Interactions, Pipeline
from almanac.ragged import Ragged, Wholes
from almanac.ranking import HISTORY_MAX, SEEDS_MAX
from almanac.ranking import NEIGHBOURS_MAX as SEED_NEIGHBOURS_MAX
from almanac.ranking_declared import ANY_ITEM
from almanac.ranking_rows import NEIGHBOUR_WEIGHTS, NEIGHBOURS, Entities, Items, narrowed
from features.interactions.history import HISTORY as HISTORY_COLUMNS
from features.interactions.history import empty_history, windows_at
from features.online_reading import MISSING, NEVER, PRESENT, Features


@dataclass(frozen=True)
class Range:
    """The items in question, and how new they are.

    Args:
        at: microseconds since 1970 of what is newest of them: of what stands for any item, if it is there.
        popular: whether what stands for any item has a row, expired or not.
    """

    items: Items
    at: int
    popular: bool = True

    def moments(self, histories: Wholes) -> Wholes:
        """The moments that lists speak as of: of an entity's newest event, or of the items, if these are newer."""
        return np.maximum(histories, self.at)


Asking = Generator[list[str], Features, Range]
"""Gives keys of items, is sent their features in the same order, and in the end returns the items."""


def entities_of(
    pipeline: Pipeline,
    keys: Sequence[Any],
    moments: Wholes,
    columns: Mapping[str, NDArray[Any]],
    lists: Mapping[str, Ragged],
) -> Entities:
    """Entities as of a moment each; their lists still hold the items' keys: see `placed`.

    Args:
        columns, lists: the entities' features; of a pipeline with interactions, their histories.
    """
    if isinstance(pipeline.source, Interactions):
        wholes = {name: np.asarray(values).astype(np.int64) for name, values in columns.items()}
        return Entities(keys, moments, windows_at(wholes, lists, moments), lists)
    return Entities(keys, moments, {name: narrowed(values) for name, values in columns.items()}, lists)


def placed(entities: Entities, items: Items) -> Entities:
    """The same with the items' places in place of their keys."""
    lists = {
        name: Ragged(items.places(held.values), held.offsets) if held.values.dtype == object else held
        for name, held in entities.lists.items()
    }
    return Entities(entities.keys, entities.moments, entities.columns, lists)


def history_lists(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, NDArray[np.int64]], dict[str, Ragged]]:
    """Columns and lists of histories that are Python's: see `features.interactions.history.HISTORY`."""
    columns, lists = {}, {}
    for name, kind in HISTORY_COLUMNS.items():
        held = [row[name] for row in rows]
        if kind.endswith("s"):
            lists[name] = Ragged.of(held, object if kind == "strings" else np.int64)
        else:
            columns[name] = np.array(held, np.int64)
    return columns, lists


def history_rows(found: Features) -> list[dict[str, Any] | None]:
    """The histories that were read, as `features.interactions.fold` takes them; None where there is no row.

    Raises:
        FeatureError: the FeatureService has not all columns of a history.
    """
    absent = [name for name in HISTORY_COLUMNS if name not in found.columns and name not in found.lists]
    if absent:
        raise FeatureError(f"the online features lack {', '.join(absent)} of a history: apply the definitions again")
    present = found.views[0].status == PRESENT
    plain = {
        name: [int(value) if value == value else None for value in found.columns[name].tolist()]
        for name, kind in HISTORY_COLUMNS.items()
        if not kind.endswith("s")
    }
    rows: list[dict[str, Any] | None] = []
    for at, there in enumerate(present.tolist()):
        if not there:
            rows.append(None)
            continue
        row = empty_history()
        for name, kind in HISTORY_COLUMNS.items():
            if kind.endswith("s"):
                held = found.lists[name]
                row[name] = held.values[held.offsets[at] : held.offsets[at + 1]].tolist()
            elif (value := plain[name][at]) is not None:
                row[name] = value
        rows.append(row)
    return rows


def items_in_question(histories: Ragged, rows: Rows | None = None) -> Asking:
    """Ask for all items that lists of some entities may hold, and for those by which they are chosen.

    Args:
        histories: the keys of each entity's own items, newest first.
        rows: what was asked for before, and is not asked for again; what is answered is added. Lists are the same
            whatever else is known, for an entity's candidate items are named by its own items and what is popular.
    """
    rows = Rows() if rows is None else rows
    _, _, at = histories.rows(HISTORY_MAX)
    own = [key for key in dict.fromkeys([ANY_ITEM, *histories.values[at]]) if key not in rows.known]
    if own:
        rows.add(own, (yield own))
    _, _, at = histories.rows(SEEDS_MAX)
    seeds = dict.fromkeys(histories.values[at])
    wanted = dict.fromkeys(rows.neighbours(ANY_ITEM, None))
    for seed in seeds:
        wanted.update(dict.fromkeys(rows.neighbours(seed, SEED_NEIGHBOURS_MAX)))
    more = [key for key in wanted if key not in rows.known]
    if more:
        rows.add(more, (yield more))
    return rows.range()


class Rows:
    """The items that were asked for, as they were answered."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, int]] = {}
        self._answers: list[tuple[list[str], Features]] = []
        self._range: Range | None = None

    def range(self) -> Range:
        """All of them; made once, as long as nothing is added."""
        if self._range is None:
            self._range = Range(self.items(), self.newest(), self.popular())
        return self._range

    def add(self, keys: list[str], found: Features) -> None:
        """Take what was answered.

        Raises:
            FeatureError: the items have no neighbours.
        """
        self._range = None
        for name in (NEIGHBOURS, NEIGHBOUR_WEIGHTS):
            if name not in found.lists:
                raise FeatureError(f"the items' features lack the list {name}: add it to a view, and apply it")
        self.known.update({key: (len(self._answers), at) for at, key in enumerate(keys)})
        self._answers.append((keys, found))

    def neighbours(self, key: str, most: int | None) -> Iterable[str]:
        """The first neighbours of an item; none of one that was not asked for."""
        answer, at = self.known.get(key, (-1, 0))
        if answer < 0:
            return []
        held = self._answers[answer][1].lists[NEIGHBOURS]
        found: list[str] = held.values[held.offsets[at] : held.offsets[at + 1]].tolist()
        return found[:most]

    def items(self) -> Items:
        """Those that have a row in some view; what a row lacks is no number, and such an item is in no list."""
        keys: list[str] = []
        rows: list[np.ndarray[Any, Any]] = []
        for asked, found in self._answers:
            absent = np.array([view.status != PRESENT for view in found.views])
            rows.append(np.flatnonzero(~absent.all(axis=0)))
            keys += [asked[at] for at in rows[-1].tolist()]
        answers = [found for _, found in self._answers]
        names = answers[0].columns
        columns = {
            name: np.concatenate([found.columns[name][at] for found, at in zip(answers, rows, strict=True)])
            for name in names
        }
        return Items.of(keys, columns, {name: self._list(name, rows) for name in (NEIGHBOURS, NEIGHBOUR_WEIGHTS)})

    def popular(self) -> bool:
        """Whether what stands for any item has a row in some view."""
        answer, at = self.known.get(ANY_ITEM, (-1, 0))
        return answer >= 0 and any(view.status[at] != MISSING for view in self._answers[answer][1].views)

    def newest(self) -> int:
        """The newest event time of what stands for any item; of no such row, of all there are."""
        found = [
            np.where(view.status == PRESENT, view.times, NEVER)[:1] if answer == 0 else view.times[:0]
            for answer, (_, features) in enumerate(self._answers)
            for view in features.views
        ]
        of_any = int(np.concatenate(found).max(initial=NEVER))
        every = [view.times[view.status == PRESENT] for _, features in self._answers for view in features.views]
        return of_any if of_any > NEVER else int(np.concatenate(every).max(initial=NEVER))

    def _list(self, name: str, rows: Sequence[np.ndarray[Any, Any]]) -> Ragged:
        held = [
            found.lists[name].values[found.lists[name].offsets[at] : found.lists[name].offsets[at + 1]]
            for (_, found), chosen in zip(self._answers, rows, strict=True)
            for at in chosen.tolist()
        ]
        return Ragged.of(held, object if name == NEIGHBOURS else np.float32)


def need_items(found: Range, pipeline: Pipeline, service: str) -> Range:
    """The same, if there are any items, and what is popular where every night says it.

    Raises:
        FeatureError: there is no item at all, or not what is popular: the store was emptied, is not filled yet, or
            lost it. Lists without what is popular would be others.
    """
    if not found.items.keys:
        raise FeatureError(f"the online store has no items of {service}: run the pipeline's DAG, or wait for it")
    if not found.popular and isinstance(pipeline.source, Interactions):
        raise FeatureError(
            f"the online store has items of {service}, and no row {ANY_ITEM!r} of what is popular: it is being filled, "
            f"or lost it; run `almanac materialize {pipeline.name} --full`"
        )
    return found
