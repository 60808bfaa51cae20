"""Late materialization: columns of the rows that were found, and of no others, as their features are declared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from almanac.errors import FeatureError
from features.asof.chunks import Chunks, Span
from features.asof.keys import NONE, Ints
from features.asof.view import View
from features.declared_types import Misfit, declared, declared_type

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Asked:
    """A column of the source that is asked for, and the value type that it is given as; None: as the source has it."""

    column: str
    kind: str | None = None

    @classmethod
    def of(cls, view: View, column: str) -> Asked:
        """A column as a view declares it; of a type that holds anything it stays as it is."""
        kind = view.kinds.get(column)
        return cls(column, kind if kind is not None and declared_type(kind) is not None else None)


def rows_of(
    view: str, chunks: Chunks, spans: Iterable[Span], asked: Sequence[Asked], rows: Ints
) -> Iterator[list[pa.ChunkedArray]]:
    """The columns of numbered rows, in pieces as they are read.

    Args:
        view: for messages.
        chunks: where the rows are.
        spans: in order; only those that have one of the rows are read.
        rows: numbers in order; one may stand there several times.

    Raises:
        FeatureError: a value of one of these rows is not what its feature is declared as; names file, column and row.
    """
    columns = list(dict.fromkeys(each.column for each in asked))
    typed = frozenset(each.column for each in asked if each.kind is not None)
    for span in spans:
        low, high = np.searchsorted(rows, (span.first, span.first + span.rows))
        if low == high:
            continue
        first = span.first
        for table in chunks.read(span, columns, typed):
            end = low + int(np.searchsorted(rows[low:high], first + len(table)))
            if end > low:
                piece = table.take(rows[low:end] - first)
                yield [_as_declared(view, chunks, span, each, piece[each.column], rows[low:end]) for each in asked]
            first += len(table)
            low = end


def _as_declared(
    view: str, chunks: Chunks, span: Span, asked: Asked, column: pa.ChunkedArray, rows: Ints
) -> pa.ChunkedArray:
    if asked.kind is None:
        return column
    try:
        return declared(column, asked.kind)
    except Misfit as misfit:
        where = chunks.place(span, None if misfit.row is None else int(rows[misfit.row]))
        raise FeatureError(
            f"{where}: column {asked.column} {misfit.says}, view {view} declares {asked.kind}: {misfit.remedy}"
        ) from None


def gathered(view: str, chunks: Chunks, spans: Sequence[Span], asked: Sequence[Asked], rows: Ints) -> pa.Table:
    """The columns of numbered rows, in the order that they are given in, named by their places; null for NONE."""
    import pyarrow as pa

    hit = np.flatnonzero(rows != NONE)
    order = np.argsort(rows[hit], kind="stable")
    pieces = list(rows_of(view, chunks, spans, asked, rows[hit][order]))
    schema = pa.schema([(str(place), _type(chunks, each)) for place, each in enumerate(asked)])
    found = (
        pa.concat_tables([pa.table([*piece], names=schema.names).cast(schema) for piece in pieces])
        if pieces
        else schema.empty_table()
    )
    places = np.full(len(rows), NONE, dtype=np.int64)
    places[hit[order]] = np.arange(len(hit))
    return found.combine_chunks().take(pa.array(places, mask=places == NONE))


def _type(chunks: Chunks, asked: Asked) -> pa.DataType:
    """The type of a column in the result."""
    declared_as = None if asked.kind is None else declared_type(asked.kind)
    return chunks.schema.field(asked.column).type if declared_as is None else declared_as
