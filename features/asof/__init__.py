"""The point-in-time join: what was known of each entity at its moment; and the newest row of every entity.

Entities in, Arrow out; nothing here knows Feast. `join` gives each row of the
entities, for each view, the row of the view's source that has the same key and
the newest event time at or before the row's moment, and not older than the
view's TTL; of two rows with one key and event time the one created later. No
key (null) never meets a row. `latest` gives the newest row of each key within
a time, for materialization. A source is Parquet files or anything that gives
record batches; only the columns that a view names are read.

Nothing is sorted or held that grows with a source: row groups whose statistics
say that no entity can see them are skipped, keys and times of the others are
streamed past the entity rows (`search`), and the features of the rows that
were found are read afterwards (`gather`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from almanac.errors import FeatureError
from features.asof.chunks import BATCH_ROWS_MAX, Chunks, Span, Window, opened, schema_of
from features.asof.footers import paths_of
from features.asof.gather import Asked, gathered
from features.asof.index import index_of
from features.asof.keys import NONE, Ints, Keys, as_type, common_type
from features.asof.newest import latest_rows
from features.asof.search import Best, Offer, Seats
from features.asof.times import GREATEST, LEAST, Times, span_of, unit_of
from features.asof.view import Files, Rows, View, Wanted

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BATCH_ROWS_MAX", "MOMENT", "Files", "Rows", "View", "Wanted", "join", "latest", "paths_of"]

MOMENT = "event_timestamp"


def join(
    entities: pa.Table, views: Sequence[View], *, moment: str = MOMENT, created_by_moment: bool = False
) -> pa.Table:
    """The features of each entity as they were at its moment.

    Args:
        entities: key columns, and a timestamp column `moment` (without a time zone it counts as UTC); more are kept.
        views: what to join; output names must be new.
        moment: name of the entities' timestamp column.
        created_by_moment: a row counts only if it was also created at or before the moment.

    Returns:
        The rows of `entities` in their order, with one column for each feature;
        null where nothing was known.

    Raises:
        FeatureError: a column is missing, has another type, or a file cannot be read; names the view.
    """
    _check(entities, views, moment)
    asked = _Entities(entities, moment)
    found: dict[str, pa.ChunkedArray] = {}
    for alike in _alike(views):
        found |= _joined(asked, alike, created_by_moment)
    table = entities
    for view in views:
        for name in view.features.values():
            table = table.append_column(name, found[name])
    return table


def latest(
    view: View, start: datetime, end: datetime, keys: Mapping[str, tuple[int, int]] | None = None
) -> Iterator[pa.RecordBatch]:
    """The newest row of each key with an event time from `start` to `end`, both included.

    Args:
        keys: of columns of whole numbers, the least and the greatest that are asked for: there is no row of others.

    Returns:
        Batches with the keys by the entities' names, event time and created
        time by the source's, the features by the result's. A key that is null
        counts as a key.

    Raises:
        FeatureError: a column is missing, has another type, or a file cannot be read; names the view.
    """
    return latest_rows(view, start, end, keys)


def _check(entities: pa.Table, views: Sequence[View], moment: str) -> None:
    taken = set(entities.column_names)
    for view in views:
        missing = [name for name in (*view.keys.values(), moment) if name not in entities.column_names]
        if missing:
            have = ", ".join(entities.column_names)
            raise FeatureError(f"view {view.name}: the entities have no column {missing[0]} (found: {have}): give it")
        for name in view.features.values():
            if name in taken:
                raise FeatureError(f"view {view.name}: the result has a column {name} already: use full feature names")
            taken.add(name)


def _alike(views: Sequence[View]) -> list[list[View]]:
    """Views that differ in features and TTL alone are searched once."""
    groups: list[list[View]] = []
    for view in views:
        for group in groups:
            one = group[0]
            if (one.source, one.keys, one.times) == (view.source, view.keys, view.times):
                group.append(view)
                break
        else:
            groups.append([view])
    return groups


class _Entities:
    """The entity rows, and what was worked out of them for one view and serves the next."""

    def __init__(self, table: pa.Table, moment: str) -> None:
        self.table, self._moment = table, moment
        self._keys: dict[tuple[tuple[str, pa.DataType], ...], Keys] = {}
        self._seats: dict[tuple[tuple[tuple[str, pa.DataType], ...], str], Seats] = {}

    def keys(self, columns: tuple[tuple[str, pa.DataType], ...]) -> Keys:
        """Numbers for the keys in these columns, compared in these types."""
        if columns not in self._keys:
            arrays = [as_type(self.table[name], kind, f"the entities' {name}") for name, kind in columns]
            self._keys[columns] = Keys(arrays, len(self.table))
        return self._keys[columns]

    def seats(self, columns: tuple[tuple[str, pa.DataType], ...], unit: str) -> Seats:
        """The entity rows by these keys and their moments."""
        if (columns, unit) not in self._seats:
            keys = self.keys(columns)
            self._seats[columns, unit] = Seats(keys.codes, self.moments(unit), keys.count)
        return self._seats[columns, unit]

    def moments(self, unit: str, *, up: bool = False) -> Times:
        """The moments in a unit."""
        column = self.table[self._moment]
        unit_of(column.type, f"the entities' {self._moment}")
        return Times.of(column, unit, up=up)


def _joined(entities: _Entities, views: list[View], created_by_moment: bool) -> dict[str, pa.ChunkedArray]:
    """The features of views that are searched as one, by their names in the result."""
    features = {name: name for view in views for name in view.features}
    ttl = max((view.ttl or timedelta.max for view in views), default=timedelta.max)
    union = replace(views[0], features=features, ttl=ttl)
    search = _Search(entities, union, schema_of(union), created_by_moment)
    with opened(union, search.window) as chunks:
        spans = chunks.spans(search.window) if len(search.seats) else []
        return search.columns(chunks, spans, views, search.settled(chunks, spans))


class _Search:
    """Finds the rows of one source for the entities.

    Args:
        entities: whom they are looked for.
        view: the source, its keys and times, and the longest TTL.
        schema: of the source.
        created_by_moment: as in `join`.
    """

    def __init__(self, entities: _Entities, view: View, schema: pa.Schema, created_by_moment: bool) -> None:
        self._entities, self._view = entities, view
        kinds = []
        for theirs, ours in view.keys.items():
            what = f"view {view.name}: the key {theirs}"
            kinds.append((ours, common_type(entities.table.schema.field(ours).type, schema.field(theirs).type, what)))
        self._kinds = tuple(kinds)
        self._unit = unit_of(schema.field(view.timestamp).type, f"view {view.name}: {view.timestamp}")
        self._keys = entities.keys(self._kinds)
        self.seats = entities.seats(self._kinds, self._unit)
        self._by_creation = created_by_moment and view.created is not None
        self._best = Best(self.seats, ordered=not self._by_creation)
        self.window = self._window()

    def _window(self) -> Window:
        if not len(self.seats):
            return Window(timestamp=self._view.timestamp, unit=self._unit)
        first, last = self.seats.earliest, self.seats.latest
        ttl = span_of(self._view.ttl, self._unit)
        limits = {name: self._keys.limits(place) for place, name in enumerate(self._view.keys)}
        return Window(
            timestamp=self._view.timestamp,
            unit=self._unit,
            earliest=None if ttl is None else max(first - ttl, LEAST),
            latest=last,
            keys={name: known for name, known in limits.items() if known is not None},
        )

    def settled(self, chunks: Chunks, spans: list[Span]) -> tuple[Ints, Ints]:
        """For each seat the row that is known at its moment, and that row's event time."""
        kinds = [kind for _, kind in self._kinds]
        index = None if self._by_creation else index_of(self._view, chunks, spans, self.window, kinds)
        if index is not None:
            return index.settled(self._keys.values, self.seats)
        one_moment = self.seats.earliest == self.seats.latest
        before = GREATEST
        for span in sorted(spans, key=lambda span: -span.latest) if one_moment else spans:
            if one_moment and span.latest < before and self._best.decided(span.latest):
                break  # what is older cannot be seen any more
            before = span.latest
            first = span.first
            for table in chunks.read(span, self._view.ordering):
                self._look_through(table, first)
                first += len(table)
        return self._best.settled()

    def _look_through(self, table: pa.Table, first: int) -> None:
        """Take rows into account; `first` is the number of the first one."""
        times = Times.of(table[self._view.timestamp], self._unit)
        outside = np.zeros(len(table), dtype=bool) if times.absent is None else times.absent.copy()
        if self.window.earliest is not None:
            outside |= times.values < self.window.earliest
        outside |= times.values > (self.window.latest or 0)
        inside = np.flatnonzero(~outside)
        if not len(inside):
            return
        low, high = (
            int(inside[0]),
            int(inside[-1]) + 1,
        )  # all that matter, of rows in the order of time
        table, outside, values = table.slice(low, high - low), outside[low:high], times.values[low:high]
        created = visible = None
        if self._view.created:
            moments = Times.of(table[self._view.created], self._unit, up=True)
            created = moments.values if moments.absent is None else np.where(moments.absent, LEAST, moments.values)
            if self._by_creation:
                visible = np.maximum(values, created)
                outside = outside if moments.absent is None else outside | moments.absent
        codes = self._codes(table)
        if outside.any():
            codes[outside] = NONE
        self._best.offer(Offer(codes=codes, times=values, created=created, visible=visible, first=first + low))

    def _codes(self, table: pa.Table) -> Ints:
        if not self._kinds:
            return np.zeros(len(table), dtype=np.int64)
        what = f"view {self._view.name}: the key"
        columns = zip(self._view.keys, self._kinds, strict=True)
        return self._keys.codes_of([as_type(table[name], kind, f"{what} {name}") for name, (_, kind) in columns])

    def columns(
        self, chunks: Chunks, spans: list[Span], views: list[View], settled: tuple[Ints, Ints]
    ) -> dict[str, pa.ChunkedArray]:
        """The features of the rows that were found, for each view within its own TTL."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = self.seats.rows_of(settled, self._earliest(self._view))
        wanted = list(dict.fromkeys(Asked.of(view, name) for view in views for name in view.features))
        table = gathered(self._view.name, chunks, spans, wanted, rows)
        found: dict[str, pa.ChunkedArray] = {}
        for view in views:
            known = self.seats.rows_of(settled, self._earliest(view)) != NONE
            alike = span_of(view.ttl, self._unit) == span_of(self._view.ttl, self._unit)
            hidden = None if alike else pa.array(known)
            for theirs, ours in view.features.items():
                column = table.column(wanted.index(Asked.of(view, theirs)))
                found[ours] = column if hidden is None else pc.if_else(hidden, column, pa.scalar(None, column.type))
        return found

    def _earliest(self, view: View) -> Ints | None:
        ttl = span_of(view.ttl, self._unit)
        if ttl is None:
            return None
        moments = self._entities.moments(self._unit, up=True).values[self.seats.rows]
        return np.where(moments < LEAST + ttl, LEAST, moments - ttl)
