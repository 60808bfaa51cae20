"""The newest row of every key, for materialization, in memory that does not grow with the source.

Keys and times are streamed; what is held are the best rows so far, one for each
key. Where those alone are too large, the keys are divided by a hash and the
source is streamed once for each part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from almanac.errors import FeatureError
from features.asof.chunks import Chunks, Span, Window, opened, schema_of
from features.asof.gather import Asked, rows_of
from features.asof.keys import Ints
from features.asof.search import best_of
from features.asof.times import LEAST, Times, of_moment, unit_of
from features.asof.view import View

if TYPE_CHECKING:
    import pyarrow as pa

OUT_ROWS_MAX = 131_072  # of a batch
PENDING_ROWS_MAX = 1 << 22
HELD_BYTES_MAX = 256 << 20  # of keys and times, one row a key
DIVIDE_BY = 8
PARTS_MAX = DIVIDE_BY**5
TIME, CREATED, ROW = "__time", "__created", "__row"


class _TooMany(Exception):
    """More keys than may be held at once."""


def latest_rows(
    view: View, start: datetime, end: datetime, keys: Mapping[str, tuple[int, int]] | None = None
) -> Iterator[pa.RecordBatch]:
    """As `features.asof.latest`."""
    unit = unit_of(schema_of(view).field(view.timestamp).type, f"view {view.name}: {view.timestamp}")
    earliest, last = (of_moment(one if one.tzinfo else one.replace(tzinfo=UTC), unit) for one in (start, end))
    window = Window(timestamp=view.timestamp, unit=unit, earliest=earliest, latest=last, keys=keys)
    with opened(view, window) as chunks:
        yield from _part(view, chunks, window, 1, 0)


def _part(view: View, chunks: Chunks, window: Window, parts: int, part: int) -> Iterator[pa.RecordBatch]:
    """The rows of the keys whose hash leaves `part` when divided by `parts`; in smaller parts if they are too many."""
    import pyarrow as pa

    spans = chunks.spans(window)
    try:
        rows = _newest(view, chunks, spans, window, (parts, part))
    except _TooMany:
        if parts >= PARTS_MAX:
            raise FeatureError(f"view {view.name}: its keys are too long to be held in memory: shorten them") from None
        for further in range(DIVIDE_BY):
            yield from _part(view, chunks, window, parts * DIVIDE_BY, part + parts * further)
        return
    names = {**view.keys, view.timestamp: view.timestamp, **({view.created: view.created} if view.created else {})}
    names |= view.features
    asked = [Asked.of(view, name) for name in names]
    for columns in rows_of(view.name, chunks, spans, asked, rows):
        yield from pa.table(columns, names=list(names.values())).combine_chunks().to_batches(OUT_ROWS_MAX)


def _newest(view: View, chunks: Chunks, spans: Sequence[Span], window: Window, part: tuple[int, int]) -> Ints:
    """The numbers, in order, of the newest row of each key."""
    import pyarrow as pa

    held: list[pa.Table] = []
    count = 0
    for span in spans:
        first = span.first
        for table in chunks.read(span, view.ordering):
            held.append(_candidates(view, table, first, window, part))
            first += len(table)
            count += len(held[-1])
            if count > PENDING_ROWS_MAX:
                held = [_reduced(pa.concat_tables(held), len(view.keys))]
                count = 0
                if held[0].nbytes > HELD_BYTES_MAX:
                    raise _TooMany
    rows = _reduced(pa.concat_tables(held), len(view.keys))[ROW].to_numpy() if held else np.empty(0, dtype=np.int64)
    return np.sort(rows)


def _candidates(view: View, table: pa.Table, first: int, window: Window, part: tuple[int, int]) -> pa.Table:
    """Keys, times and numbers of the rows within the window and the part."""
    import pyarrow as pa
    import pyarrow.compute as pc

    times = Times.of(table[view.timestamp], window.unit)
    usable = (times.values >= (window.earliest or 0)) & (times.values <= (window.latest or 0))
    if times.absent is not None:
        usable &= ~times.absent
    for name, (low, high) in (window.keys or {}).items():
        within = pc.and_(pc.greater_equal(table[name], low), pc.less_equal(table[name], high))
        usable &= pc.fill_null(within, False).to_numpy()
    keys = [_plain(table[name], f"view {view.name}: the key {name}") for name in view.keys]
    if part[0] > 1:
        usable &= _hashes(keys, len(table)) % np.uint64(part[0]) == np.uint64(part[1])
    created = np.full(len(table), LEAST)
    if view.created:
        moments = Times.of(table[view.created], window.unit)
        created = moments.values if moments.absent is None else np.where(moments.absent, LEAST, moments.values)
    numbers = first + np.arange(len(table))
    columns = {**{f"key{place}": key for place, key in enumerate(keys)}, TIME: times.values, CREATED: created}
    found = pa.table({**columns, ROW: numbers})
    return found if usable.all() else found.filter(pa.array(usable))


def _reduced(table: pa.Table, keys: int) -> pa.Table:
    """The best row of each key."""
    codes = np.zeros(len(table), dtype=np.int64)
    for place in range(keys):
        coded = table.column(place).combine_chunks().dictionary_encode(null_encoding="encode")
        codes = codes * len(coded.dictionary) + coded.indices.to_numpy()
        if place:
            codes = np.unique(codes, return_inverse=True)[1]
    count = int(codes.max()) + 1 if len(codes) else 0
    draft = np.empty(count, dtype=np.int64)
    times, created = table[TIME].to_numpy(), table[CREATED].to_numpy()
    return table.take(best_of(codes, times, created, draft, rising=False))


def _plain(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Without a dictionary or an extension such as that of UUIDs.

    Raises:
        FeatureError: its values cannot be told apart as keys; `what` names view and key.
    """
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        raise FeatureError(f"{what} is {column.type}, which cannot be a key: write text or whole numbers")
    return column


def _hashes(keys: Sequence[pa.ChunkedArray], rows: int) -> npt.NDArray[np.uint64]:
    """A number for each row that depends on its keys alone."""
    import pandas as pd
    import pyarrow as pa

    total = np.zeros(rows, dtype=np.uint64)
    for key in keys:
        # As text, for a column of numbers has another type in pandas where some are null.
        kind = key.type
        if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
            key = key.cast(pa.large_binary())
        whole = pa.types.is_binary(key.type) or pa.types.is_large_binary(key.type)
        text = key if whole else key.cast(pa.large_string())
        total = total * np.uint64(1_000_003) + pd.util.hash_array(text.to_numpy())
    return total
