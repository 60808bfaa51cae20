"""Late materialization: columns of the rows that were found, and of no others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from features.asof.chunks import Chunks, Span
from features.asof.keys import NONE, Ints

if TYPE_CHECKING:
    import pyarrow as pa


def rows_of(chunks: Chunks, spans: Iterable[Span], columns: Sequence[str], rows: Ints) -> Iterator[pa.Table]:
    """The columns of numbered rows, in pieces as they are read.

    Args:
        chunks: where the rows are.
        spans: in order; only those that have one of the rows are read.
        columns: of the source.
        rows: numbers in order; one may stand there several times.
    """
    for span in spans:
        low, high = np.searchsorted(rows, (span.first, span.first + span.rows))
        if low == high:
            continue
        first = span.first
        for table in chunks.read(span, columns):
            end = low + int(np.searchsorted(rows[low:high], first + len(table)))
            if end > low:
                yield table.take(rows[low:end] - first)
            first += len(table)
            low = end


def gathered(chunks: Chunks, spans: Sequence[Span], columns: Sequence[str], rows: Ints) -> pa.Table:
    """The columns of numbered rows, in the order that they are given in; null for NONE."""
    import pyarrow as pa

    schema = pa.schema([chunks.schema.field(name).with_nullable(True) for name in columns])
    hit = np.flatnonzero(rows != NONE)
    order = np.argsort(rows[hit], kind="stable")
    pieces = list(rows_of(chunks, spans, columns, rows[hit][order]))
    found = pa.concat_tables([piece.cast(schema) for piece in pieces]) if pieces else schema.empty_table()
    places = np.full(len(rows), NONE, dtype=np.int64)
    places[hit[order]] = np.arange(len(hit))
    return found.combine_chunks().take(pa.array(places, mask=places == NONE))
