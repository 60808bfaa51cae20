"""The search: for each entity row, which row of a source was the newest at its moment.

Entity rows are sorted by (key, moment); their places in that order are slots. A
source row becomes visible at the first slot of its key whose moment is not
before it, and stays so for those after it until a newer row comes. So each
source row is offered to one slot alone, which keeps the best it was offered,
and at the end every slot takes over what the slots before it of its key have.
What is held grows with the entity rows, never with the source's, and the order
in which rows come does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.asof_keys import NONE, Ints
from features.asof_times import LEAST, Times

SLOT_TABLE_ENTRIES_MAX = 1 << 24
IMPROVEMENTS_MAX = 8  # passes over rows that come unsorted, before they are sorted


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Rows of a source: the numbers of their keys, their event and created times, when they become visible.

    Args:
        codes: NONE where the key is no entity's.
        times: event times.
        created: created times, `LEAST` where null; None if the view has none.
        visible: the moments from which rows are known; None: their event times.
        first: the number of the first row.
    """

    codes: Ints
    times: Ints
    created: Ints | None
    visible: Ints | None
    first: int


class Slots:
    """Entity rows by key and moment; shared by all views with these keys and this unit of time."""

    def __init__(self, codes: Ints, moments: Times, count: int) -> None:
        usable = codes != NONE
        if moments.absent is not None:
            usable &= ~moments.absent
        rows = np.flatnonzero(usable)
        self.total = len(codes)
        self.moments, ranks = np.unique(moments.values[rows], return_inverse=True)
        self._steps = max(len(self.moments), 1)
        places = codes[rows] * self._steps + ranks
        order = np.argsort(places, kind="stable")
        self.rows: Ints = rows[order]  # the entity row of each slot
        self._places = places[order]
        self.moment: Ints = moments.values[self.rows]
        codes = codes[self.rows]
        fresh = np.ones(len(codes), dtype=bool)
        fresh[1:] = codes[1:] != codes[:-1]
        self.begins: Ints = np.maximum.accumulate(np.where(fresh, np.arange(len(codes)), 0))  # of the slot's key
        self._codes = codes
        self._table: npt.NDArray[np.int32] | None = None
        if count * self._steps <= SLOT_TABLE_ENTRIES_MAX:
            self._table = self._search(np.arange(count * self._steps)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, codes: Ints, visible: Ints) -> Ints:
        """The slot at which rows become visible; NONE where there is none. All codes are of entities."""
        if self._steps == 1:
            places, late = codes, visible > (self.moments[0] if len(self.moments) else LEAST)
        else:
            steps = np.searchsorted(self.moments, visible)
            late = steps == self._steps
            places = codes * self._steps + steps
        if not late.any():
            return self._slots(places)
        found = np.full(len(codes), NONE, dtype=np.int64)
        soon = np.flatnonzero(~late)
        found[soon] = self._slots(places[soon])
        return found

    def _slots(self, places: Ints) -> Ints:
        return self._search(places) if self._table is None else self._table[places].astype(np.int64)

    def _search(self, places: Ints) -> Ints:
        if not len(self._places):
            return np.full(len(places), NONE, dtype=np.int64)
        found = np.searchsorted(self._places, places)
        np.minimum(found, len(self._places) - 1, out=found)
        found[(self._places[found] < places) | (self._codes[found] != places // self._steps)] = NONE
        return found


class Best:
    """The best row that each slot was offered."""

    def __init__(self, slots: Slots, *, ordered: bool) -> None:
        """`ordered`: rows become visible at their event times, so that of two slots the later one has newer rows."""
        self._slots, self._ordered = slots, ordered
        self.row: Ints = np.full(len(slots), NONE, dtype=np.int64)
        self._time: Ints = np.full(len(slots), LEAST, dtype=np.int64)
        self._created: Ints | None = None
        self._draft: Ints = np.empty(len(slots), dtype=np.int64)

    def offer(self, offer: Offer) -> None:
        """Take the rows into account."""
        chosen = np.flatnonzero(offer.codes != NONE)
        if not len(chosen):
            return
        times = offer.times[chosen]
        visible = times if offer.visible is None else offer.visible[chosen]
        slots = self._slots.of(offer.codes[chosen], visible)
        usable = slots != NONE
        if not usable.all():
            chosen, times, slots = chosen[usable], times[usable], slots[usable]
        created = None if offer.created is None else offer.created[chosen]
        best = best_of(slots, times, created, self._draft)
        self._keep(slots[best], times[best], None if created is None else created[best], offer.first + chosen[best])

    def _keep(self, slots: Ints, times: Ints, created: Ints | None, rows: Ints) -> None:
        held = self._time[slots]
        wins = (times > held) | (self.row[slots] == NONE)
        if created is not None:
            if self._created is None:
                self._created = np.full(len(self.row), LEAST, dtype=np.int64)
            same = times == held
            wins |= same & (created > self._created[slots])
            wins |= same & (created == self._created[slots]) & (rows > self.row[slots])
            self._created[slots[wins]] = created[wins]
        else:
            wins |= (times == held) & (rows > self.row[slots])
        self._time[slots[wins]] = times[wins]
        self.row[slots[wins]] = rows[wins]

    def settled(self) -> tuple[Ints, Ints]:
        """For each slot the row that is known at its moment, NONE where none is, and that row's event time."""
        filled = self.row != NONE
        if self._ordered:
            source = np.maximum.accumulate(np.where(filled, np.arange(len(filled)), 0))
        else:
            created = self._created if self._created is not None else np.zeros_like(self.row)
            order = np.lexsort((self.row, created, self._time, filled, self._slots.begins))
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))  # grows with the key, and within a key with how good a row is
            source = order[np.maximum.accumulate(rank)] if len(order) else order
        known = filled[source] & (source >= self._slots.begins)
        return np.where(known, self.row[source], NONE), self._time[source]

    def rows(self, settled: tuple[Ints, Ints], earliest: Ints | None) -> Ints:
        """For each entity row the number of its row, NONE where there is none.

        Args:
            settled: what `settled` returned.
            earliest: for each slot the earliest event time that is not too old; None for no limit.
        """
        row, time = settled
        if earliest is not None:
            row = np.where(time >= earliest, row, NONE)
        found = np.full(self._slots.total, NONE, dtype=np.int64)
        found[self._slots.rows] = row
        return found


def best_of(slots: Ints, times: Ints, created: Ints | None, draft: Ints) -> Ints:
    """Positions of the best row for each slot: greatest time, then created, then the last.

    Args:
        slots: of the rows.
        times: event times.
        created: created times, if there are any.
        draft: an array with a place for every slot, to work in.
    """
    left = np.arange(len(slots))
    for _ in range(IMPROVEMENTS_MAX):
        draft[slots[left]] = left  # of several rows for one slot the last one stays
        left = left[_newer(times, created, left, draft[slots[left]])]
        if not len(left):
            break
    else:
        keys = (times[left],) if created is None else (created[left], times[left])
        left = left[np.lexsort(keys)]  # the last key counts first; rows that are alike stay in order
        draft[slots[left]] = left
    return np.flatnonzero(draft[slots] == np.arange(len(slots)))


def _newer(times: Ints, created: Ints | None, rows: Ints, than: Ints) -> npt.NDArray[np.bool_]:
    newer: npt.NDArray[np.bool_] = times[rows] > times[than]
    if created is not None:
        newer |= (times[rows] == times[than]) & (created[rows] > created[than])
    return newer
