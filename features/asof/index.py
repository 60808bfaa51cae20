"""Keys and times of files in order, kept for the next retrieval from the same files.

Made when the same files are searched a second time for times that concern most
of their rows, and only for one key of whole numbers. Kept by the files' paths,
sizes and times of change, so that files that were written anew have no index;
all indexes of a process together are bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from features.asof.chunks import Chunks, Span, Window
from features.asof.keys import NONE, Ints, as_type
from features.asof.search import Seats, first_from
from features.asof.times import GREATEST, LEAST, Times
from features.asof.view import View

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_MAX = 1 << 24  # of all indexes; 12 bytes a row
SEEN_MAX = 256  # searches that are remembered
SHARE_MIN = 0.5  # of the rows, that a search must concern

Identity = tuple[object, ...]
_seen: OrderedDict[Identity, None] = OrderedDict()
_kept: OrderedDict[Identity, Index] = OrderedDict()


@dataclass(frozen=True, kw_only=True)
class Index:
    """Rows by key, event time, created time and number.

    Args:
        keys: the distinct ones, in order.
        bounds: where the rows of each begin; one more for the end.
        times: event times.
        rows: numbers of the rows.
    """

    keys: Ints
    bounds: Ints
    times: Ints
    rows: npt.NDArray[np.int32]

    def settled(self, keys: Ints, seats: Seats) -> tuple[Ints, Ints]:
        """As `Best.settled`.

        Args:
            keys: the entities' keys by their numbers.
            seats: the entity rows.
        """
        if not len(self.keys) or not len(keys):
            return np.full(len(seats), NONE), np.full(len(seats), LEAST)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        absent = self.keys[places] != keys
        low = np.where(absent, 0, self.bounds[places])[seats.codes]
        high = np.where(absent, 0, self.bounds[places + 1])[seats.codes]
        after = first_from(self.times, low, high, np.minimum(seats.moment, GREATEST - 1) + 1)
        known = after > low
        last = np.maximum(after - 1, 0)
        return np.where(known, self.rows[last], NONE), np.where(known, self.times[last], LEAST)


def index_of(view: View, chunks: Chunks, spans: list[Span], window: Window, kinds: list[pa.DataType]) -> Index | None:
    """The index of a view's files, if there is one or it is time to make one."""
    from pyarrow import types

    total = chunks.total
    identity = chunks.identity
    if identity is None or len(kinds) != 1 or not types.is_int64(kinds[0]) or total > ROWS_MAX:
        return None
    if sum(span.rows for span in spans) < SHARE_MIN * total:
        return None
    identity = (*identity, view.ordering, window.unit)
    if identity in _kept:
        _kept.move_to_end(identity)
        return _kept[identity]
    if identity not in _seen:
        _seen[identity] = None
        while len(_seen) > SEEN_MAX:
            _seen.popitem(last=False)
        return None
    index = _made(view, chunks, Window(timestamp=view.timestamp, unit=window.unit), total)
    _kept[identity] = index
    while sum(len(one.rows) for one in _kept.values()) > ROWS_MAX:
        _kept.popitem(last=False)
    return index


def _made(view: View, chunks: Chunks, window: Window, total: int) -> Index:
    """Read keys and times of all rows, and sort them."""
    import pyarrow as pa

    (key,) = view.keys
    keys, times, created = (np.empty(total, dtype=np.int64) for _ in range(3))
    usable = np.ones(total, dtype=bool)
    for span in chunks.spans(window):
        first = span.first
        for table in chunks.read(span, view.ordering):
            rows = slice(first, first + len(table))
            column = as_type(table[key], pa.int64(), f"view {view.name}: the key {key}")
            keys[rows] = column.fill_null(0).to_numpy()
            usable[rows] = column.is_valid().to_numpy(zero_copy_only=False)
            moments = Times.of(table[view.timestamp], window.unit)
            times[rows] = moments.values
            if moments.absent is not None:
                usable[rows] &= ~moments.absent
            if view.created:
                stamps = Times.of(table[view.created], window.unit, up=True)
                created[rows] = (
                    stamps.values if stamps.absent is None else np.where(stamps.absent, LEAST, stamps.values)
                )
            first += len(table)
    rows_ = np.flatnonzero(usable)
    if len(rows_) < total:
        keys, times, created = keys[rows_], times[rows_], created[rows_]
    order = np.lexsort((created, times, keys) if view.created else (times, keys))
    keys = keys[order]
    begins = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1)) if len(keys) else np.empty(0, dtype=np.int64)
    return Index(
        keys=keys[begins],
        bounds=np.append(begins, len(keys)),
        times=times[order],
        rows=rows_[order].astype(np.int32),
    )
