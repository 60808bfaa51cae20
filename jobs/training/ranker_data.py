"""Lists to learn from and to measure on: candidate items of entities as of a moment, and what was then taken.

Held out is the newest `Training.holdout` of what was taken. A list that is learned from is the one that would be
answered just before an entity took something, and its truth is what was taken then: it speaks as of the entity's newest
event, or of the night before if that is newer, and items are those of that night. What is held out is measured in two
ways:

    nightly      one list for each entity, as of just before the first held-out midnight; its truth is all that the
                 entity took in the held-out time
    each_basket  the list that would be answered just before each time an entity took something; its truth is that
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY_MICROSECONDS, MICROSECOND, at_micros
from almanac.pipeline import Pipeline
from almanac.ragged import Ragged, Wholes, offsets_of, picked
from almanac.ranking import Entities, Items
from almanac.settings import Settings
from features.ranked import NoItemYet, Taken, entities_of, history_at, newest_events, range_at

if TYPE_CHECKING:
    import pyarrow as pa

NIGHTLY, EACH_BASKET = "nightly", "each_basket"
BY_NIGHT = "each_basket_by_last_night"
"""The baskets of `EACH_BASKET`, answered as of the midnight before: beside it, what the stream is worth."""
NIGHTS_MAX = 90
"""Nights whose items are learned from; more are drawn from evenly."""
LISTS_AT_ONCE = 10_000
"""Histories in memory together: some tens of megabytes."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Lists to make, all with the items of one night.

    Args:
        entities: with a history; in the order of `known`.
        items: as they were that night.
        known: which of the lists asked for have a history; the others are answered with what is popular.
        truth: for every list asked for, the places of what was taken, each once.
    """

    entities: Entities
    items: Items
    known: Wholes
    truth: Ragged

    def __len__(self) -> int:
        return len(self.truth)


def held_out_since(pipeline: Pipeline, newest: int) -> int:
    """The first held-out midnight, in UTC, microseconds since 1970.

    Args:
        newest: when something was taken last.
    """
    holdout = pipeline.training.holdout // MICROSECOND
    return (newest // DAY_MICROSECONDS + 1) * DAY_MICROSECONDS - holdout // DAY_MICROSECONDS * DAY_MICROSECONDS


def nightly(pipeline: Pipeline, settings: Settings, taken: Taken, midnight: int) -> Asked:
    """One list for each entity that took something, as of just before a midnight."""
    encoded = taken.keys.dictionary_encode()
    owner = encoded.indices.to_numpy().astype(np.int64)
    rows = np.repeat(owner, taken.items.lengths)
    order = np.argsort(rows, kind="stable")
    together = Ragged(taken.items.values[order], offsets_of(np.bincount(rows, minlength=len(encoded.dictionary))))
    moments = np.full(len(encoded.dictionary), midnight - 1, np.int64)  # what was taken at midnight is foretold
    table = _histories(pipeline, settings, encoded.dictionary, moments)
    return _asked(pipeline, settings, table, together, at_micros(midnight))


def each_basket(
    pipeline: Pipeline, settings: Settings, taken: Taken, chosen: Wholes, *, by_night: bool = False
) -> Iterator[Asked]:
    """Lists as of just before some of the times that something was taken, a day at a time.

    The first days of a history are left out while no item has features: nobody could have been given a list then.

    Args:
        chosen: which of `taken`, ascending.
        by_night: as of the midnight before instead: what is answered without a stream.
    """
    begun = False
    for start in range(0, len(chosen), LISTS_AT_ONCE):
        some = chosen[start : start + LISTS_AT_ONCE]
        days = taken.moments[some] // DAY_MICROSECONDS
        as_of = (days * DAY_MICROSECONDS if by_night else taken.moments[some]) - 1
        table = _histories(pipeline, settings, taken.keys.take(some), as_of)
        for day in np.unique(days):
            places = np.flatnonzero(days == day)
            lists = picked(taken.items, some[places])[1]
            night = at_micros(int(day) * DAY_MICROSECONDS)
            try:
                asked = _asked(pipeline, settings, table.take(places), lists, night)
            except NoItemYet:
                if begun:
                    raise
                continue
            begun = True
            yield asked


def sample(pipeline: Pipeline, taken: Taken, first: int, last: int) -> Wholes:
    """Which of `taken` to learn from: of the moments from `first` up to `last`, as many as `Training.rows_max` allows.

    Days are drawn first, for each costs a look at all items, then of these the times that something was taken.
    """
    draw = np.random.default_rng(pipeline.training.seed)
    found = np.flatnonzero((taken.moments >= first) & (taken.moments < last))
    days = taken.moments[found] // DAY_MICROSECONDS
    different = np.unique(days)
    if len(different) > NIGHTS_MAX:
        even = np.linspace(0, len(different) - 1, NIGHTS_MAX).round().astype(np.int64)
        found = found[np.isin(days, different[even])]
    ranking = pipeline.ranking
    most = max(1, pipeline.training.rows_max // (ranking.candidates_max if ranking is not None else 1))
    if len(found) > most:
        found = np.sort(draw.choice(found, size=most, replace=False))
    return found


def _histories(pipeline: Pipeline, settings: Settings, keys: pa.Array, moments: Wholes) -> pa.Table:
    import pyarrow as pa

    times = pa.array(moments).cast(pa.timestamp("us", "UTC"))
    return history_at(pipeline, settings, pa.table({pipeline.entity: keys, "event_timestamp": times}))


def _asked(pipeline: Pipeline, settings: Settings, table: pa.Table, lists: Ragged, night: datetime) -> Asked:
    """Lists of the entities of `table` with the items of a night, each as of the newer of both, as they are served."""
    import pyarrow as pa

    span = range_at(pipeline, settings, night)
    known = np.flatnonzero(_present(table, pipeline))
    rows = table.take(pa.array(known))
    entities = entities_of(pipeline, rows, span.items, span.moments(newest_events(rows)))
    return Asked(entities=entities, items=span.items, known=known, truth=_distinct(span.items, lists))


def _present(table: pa.Table, pipeline: Pipeline) -> NDArray[np.bool_]:
    """Rows of which every view knew something."""
    present = np.ones(len(table), np.bool_)
    for name in table.column_names:
        if name not in (pipeline.entity, "event_timestamp"):
            present &= table[name].is_valid().to_numpy()
    return present


def _distinct(items: Items, lists: Ragged) -> Ragged:
    """The places of what was taken, each item once in a list; one that is not known is -1, and counts all the same."""
    import pyarrow as pa

    owner = np.repeat(np.arange(len(lists)), lists.lengths)
    code = pa.array(lists.values, pa.string()).dictionary_encode().indices.to_numpy()
    order = np.lexsort((code, owner))
    first = np.ones(len(order), np.bool_)
    first[1:] = (owner[order][1:] != owner[order][:-1]) | (code[order][1:] != code[order][:-1])
    kept = np.sort(order[first])
    return Ragged(items.places(lists.values[kept]), offsets_of(np.bincount(owner[kept], minlength=len(lists))))
