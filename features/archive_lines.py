"""Lines in the archive: what events said, beside the histories that they were folded into.

The archive's rows are those of the pushed view, which the point-in-time join reads like all others. The next ingest
folds the events themselves, so each row has its event's own moment and lines as well, in columns that no view has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac.clock import need_utc
from almanac.events_declared import Lines
from features.layout import CREATED_TIMESTAMP

if TYPE_CHECKING:
    import pyarrow as pa

LINES_AT = "lines_at"
"""Column of the event's own moment; the row's is that of the newest event in it."""
_PREFIX = "lines_"


def line_columns(declared: Lines) -> dict[str, pa.DataType]:
    """The archive's further columns: one of lists for each field of a line."""
    import pyarrow as pa

    values = {_PREFIX + name: pa.list_(pa.float64()) for name in declared.values}
    return {LINES_AT: pa.timestamp("us", tz="UTC"), _PREFIX + declared.item: pa.list_(pa.string()), **values}


def archived_lines(at: datetime, lines: Sequence[Mapping[str, Any]], declared: Lines) -> dict[str, Any]:
    """An event's lines as the archive has them."""
    names = (declared.item, *declared.values)
    return {LINES_AT: at, **{_PREFIX + name: [line[name] for line in lines] for name in names}}


def lines_between(view_folder: Path, entity: str, declared: Lines, start: datetime, end: datetime) -> pa.Table:
    """The lines of archived events, a line a row, in the order of the events' moments.

    Args:
        view_folder: of the view that events push.
        start, end: of the events' own moments; the end is excluded.

    Returns:
        `entity`, `event` (a number that its lines share), `at`, `created`, the item's column and those of the values.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from features.archive import OFFSET, PARTITION, TOPIC, archived_files

    names = (declared.item, *declared.values)
    place = [TOPIC, PARTITION, OFFSET]
    columns = [entity, CREATED_TIMESTAMP, LINES_AT, *(_PREFIX + name for name in names), *place]
    # A row lies in the hour of its history's newest event, which is never earlier than the event's own.
    tables = [pq.ParquetFile(path).read(columns=columns) for path in archived_files(view_folder, start, None)]
    stamp = pa.timestamp("us", tz="UTC")
    kinds = {"entity": pa.string(), "event": pa.int64(), "at": stamp, "created": stamp, declared.item: pa.string()}
    empty = pa.schema([*kinds.items(), *((name, pa.float64()) for name in declared.values)])
    found = pa.concat_tables(tables) if tables else None
    if found is None or not found.num_rows:
        return empty.empty_table()
    inside = pc.and_(
        pc.greater_equal(found[LINES_AT], pa.scalar(need_utc(start), stamp)),
        pc.less(found[LINES_AT], pa.scalar(need_utc(end), stamp)),
    )
    found = found.filter(inside).sort_by([(LINES_AT, "ascending"), *((name, "ascending") for name in place)])
    found = _once(found, place).combine_chunks()
    if not found.num_rows:
        return empty.empty_table()
    lists = {name: found[_PREFIX + name].combine_chunks() for name in names}
    parent = pc.list_parent_indices(lists[declared.item])
    return pa.table(
        {
            "entity": found[entity].take(parent).cast(pa.string()),
            "event": parent.cast(pa.int64()),
            "at": found[LINES_AT].take(parent),
            "created": found[CREATED_TIMESTAMP].take(parent),
            **{name: pc.list_flatten(held) for name, held in lists.items()},
        }
    )


def _once(found: pa.Table, place: Sequence[str]) -> pa.Table:
    """Rows in the order of moment and place, each place once: while files are merged a row stands in two of them."""
    import numpy as np
    import pyarrow as pa

    same = np.ones(found.num_rows, bool)
    same[:1] = False
    for name in place:
        column = found[name].combine_chunks().dictionary_encode()
        codes = (column if not isinstance(column, pa.ChunkedArray) else column.combine_chunks()).indices.to_numpy()
        same[1:] &= codes[1:] == codes[:-1]
    return found.filter(pa.array(~same))
