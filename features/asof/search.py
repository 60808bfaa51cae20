"""The search: for each entity row, which row of a source was the newest at its moment.

Entity rows are sorted by (key, moment); their places in that order are seats. A
source row becomes visible at the first seat of its key whose moment is not
before it, and stays so for those after it until a newer row comes. So each
source row is offered to one seat alone, which keeps the best it was offered,
and at the end every seat takes over what the seats before it of its key have.
What is held grows with the entity rows, never with the source's, and the order
in which rows come does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.asof.keys import NONE, Ints
from features.asof.times import GREATEST, LEAST, Times

NARROW_ROWS_MIN = 4  # rows for each key, from which on it pays to look at all keys first
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


class Seats:
    """Entity rows by key and moment; shared by all views with these keys and this unit of time."""

    def __init__(self, codes: Ints, moments: Times, count: int) -> None:
        usable = codes != NONE
        if moments.absent is not None:
            usable &= ~moments.absent
        rows = np.flatnonzero(usable)
        order = _order(codes[rows], moments.values[rows])
        self.total = len(codes)
        self.rows: Ints = rows[order]  # the entity row of each seat
        self.moment: Ints = moments.values[self.rows]
        self.codes: Ints = codes[self.rows]  # the key of each seat
        self._bounds: Ints = np.searchsorted(self.codes, np.arange(count + 1))  # where each key's seats begin
        self.begins: Ints = self._bounds[self.codes]  # for each seat, where those of its key begin
        self._alone = bool((np.diff(self._bounds) == 1).all())  # each key has one seat
        self.earliest = int(self.moment.min()) if len(rows) else 0
        self.latest = int(self.moment.max()) if len(rows) else 0

    def __len__(self) -> int:
        return len(self.rows)

    def rows_of(self, settled: tuple[Ints, Ints], earliest: Ints | None) -> Ints:
        """For each entity row the number of its row, NONE where there is none.

        Args:
            settled: of each seat, as `Best.settled` returns it.
            earliest: for each seat the earliest event time that is not too old; None for no limit.
        """
        row, time = settled
        if earliest is not None:
            row = np.where(time >= earliest, row, NONE)
        found = np.full(self.total, NONE, dtype=np.int64)
        found[self.rows] = row
        return found

    def of(self, codes: Ints, visible: Ints) -> Ints:
        """The seat at which rows become visible; NONE where there is none. All codes are of entities."""
        low, high = self._bounds[:-1], self._bounds[1:]
        if len(low) == 1:
            found = np.searchsorted(self.moment, visible)
            return np.where(found < len(self), found, NONE)
        if self._alone:
            found = low[codes]
            return np.where(visible <= self.moment[found], found, NONE)
        ends = high[codes]
        if NARROW_ROWS_MIN * len(low) <= len(codes):
            # Rows come mostly in the order of time: of each key only the seats within these rows' time are in question.
            first, last = (np.full(len(low), one) for one in (visible.min(), visible.max()))
            low, high = first_from(self.moment, low, high, first), first_from(self.moment, low, high, last)
        found = first_from(self.moment, low[codes], high[codes], visible)
        return np.where(found < ends, found, NONE)


def first_from(times: Ints, low: Ints, high: Ints, moments: Ints) -> Ints:
    """For each moment the first position from `low` on whose time is not before it; `high` if none is before that."""
    found, high = low.copy(), high.copy()
    open_ = np.flatnonzero(found < high)
    while len(open_):  # halves what is in question: not more often than a number has bits
        least, most = found[open_], high[open_]
        middle = (least + most) >> 1
        early = times[middle] < moments[open_]
        least = np.where(early, middle + 1, least)
        most = np.where(early, most, middle)
        found[open_], high[open_] = least, most
        open_ = open_[least < most]
    return found


def _order(codes: Ints, moments: Ints) -> Ints:
    """Positions in the order of key and moment."""
    if not len(codes):
        return np.empty(0, dtype=np.int64)
    least = int(moments.min())
    span = int(moments.max()) - least + 1
    if (int(codes.max()) + 1) * span > GREATEST:
        return np.lexsort((moments, codes))
    return np.argsort(codes * span + (moments - least))


class Best:
    """The best row that each seat was offered."""

    def __init__(self, seats: Seats, *, ordered: bool) -> None:
        """`ordered`: rows become visible at their event times, so that of two seats the later one has newer rows."""
        self._seats, self._ordered = seats, ordered
        self.row: Ints = np.full(len(seats), NONE, dtype=np.int64)
        self._time: Ints = np.full(len(seats), LEAST, dtype=np.int64)
        self._created: Ints | None = None
        self._newest = LEAST  # of all times that were offered
        self._draft: Ints = np.empty(len(seats), dtype=np.int64)

    def offer(self, offer: Offer) -> None:
        """Take the rows into account."""
        codes, times, visible, created = offer.codes, offer.times, offer.visible, offer.created
        known = codes != NONE
        rows = np.arange(offer.first, offer.first + len(codes))
        if not known.all():
            codes, times, rows = codes[known], times[known], rows[known]
            visible = None if visible is None else visible[known]
            created = None if created is None else created[known]
        if not len(codes):
            return
        seats = self._seats.of(codes, times if visible is None else visible)
        usable = seats != NONE
        if not usable.all():
            seats, times, rows = seats[usable], times[usable], rows[usable]
            created = None if created is None else created[usable]
        if not len(seats):
            return
        newest, self._newest = self._newest, max(self._newest, int(times.max()))
        rising = _rising(times, created)
        if rising and int(times[0]) > newest:  # newer than all before: the last row for a seat is the best
            self._put(seats, times, created, rows)
            return
        best = best_of(seats, times, created, self._draft, rising=rising)
        self._keep(seats[best], times[best], None if created is None else created[best], rows[best])

    def _keep(self, seats: Ints, times: Ints, created: Ints | None, rows: Ints) -> None:
        held = self._time[seats]
        wins, same = times > held, times == held
        if created is not None:
            before = LEAST if self._created is None else self._created[seats]
            wins |= same & (created > before)
            same &= created == before
        wins |= same & (rows > self.row[seats])
        self._put(seats[wins], times[wins], None if created is None else created[wins], rows[wins])

    def _put(self, seats: Ints, times: Ints, created: Ints | None, rows: Ints) -> None:
        self._time[seats] = times
        self.row[seats] = rows
        if created is not None:
            if self._created is None:
                self._created = np.full(len(self.row), LEAST, dtype=np.int64)
            self._created[seats] = created

    def decided(self, latest: int) -> bool:
        """Whether rows of event times up to `latest` change nothing any more: every seat was offered a newer one."""
        return bool((self.row != NONE).all() and (self._time > latest).all())

    def settled(self) -> tuple[Ints, Ints]:
        """For each seat the row that is known at its moment, NONE where none is, and that row's event time."""
        filled = self.row != NONE
        if self._ordered:
            source = np.maximum.accumulate(np.where(filled, np.arange(len(filled)), 0))
        else:
            created = self._created if self._created is not None else np.zeros_like(self.row)
            order = np.lexsort((self.row, created, self._time, filled, self._seats.begins))
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))  # grows with the key, and within a key with how good a row is
            source = order[np.maximum.accumulate(rank)] if len(order) else order
        known = filled[source] & (source >= self._seats.begins)
        return np.where(known, self.row[source], NONE), self._time[source]


def best_of(seats: Ints, times: Ints, created: Ints | None, draft: Ints, *, rising: bool) -> Ints:
    """Positions of the best row for each seat: greatest time, then created, then the last.

    Args:
        seats: of the rows.
        times: event times.
        created: created times, if there are any.
        draft: an array with a place for every seat, to work in.
        rising: whether no row is better than the one after it.
    """
    left = np.arange(len(seats))
    draft[seats] = left  # of several rows for one seat the last one stays
    if not rising:
        for _ in range(IMPROVEMENTS_MAX):
            left = left[_newer(times, created, left, draft[seats[left]])]
            if not len(left):
                break
            draft[seats[left]] = left
        else:
            keys = (times[left],) if created is None else (created[left], times[left])
            left = left[np.lexsort(keys)]  # the last key counts first; rows that are alike stay in order
            draft[seats[left]] = left
    return np.flatnonzero(draft[seats] == np.arange(len(seats)))


def _rising(times: Ints, created: Ints | None) -> bool:
    rising = times[1:] >= times[:-1]
    if created is None or not rising.all():
        return bool(rising.all())
    return bool(((times[1:] > times[:-1]) | (created[1:] >= created[:-1])).all())


def _newer(times: Ints, created: Ints | None, rows: Ints, than: Ints) -> npt.NDArray[np.bool_]:
    newer: npt.NDArray[np.bool_] = times[rows] > times[than]
    if created is not None:
        newer |= (times[rows] == times[than]) & (created[rows] > created[than])
    return newer
