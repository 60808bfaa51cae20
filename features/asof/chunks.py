"""Rows of a source in pieces that fit in memory, each row with a number; pieces that cannot matter are left out.

Rows are numbered through all files in order. A `Span` is a run of row groups of
one file, or a slice of a table. What a `Rows` source gives is kept in memory up
to a limit, and put into a temporary Parquet file beyond it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from almanac.errors import FeatureError, FilesChanged
from features import parquet_files
from features.asof.footers import Footer, footer_of, paths_of
from features.asof.times import GREATEST, to_moment
from features.asof.view import Files, Rows, View, Wanted

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS_MAX = 1 << 20
SPOOL_BYTES_MAX = 256 << 20  # of a source's rows in memory
GROUP_ROWS = 1 << 17  # of a temporary file


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which rows matter: event times from `earliest` to `latest`, in `unit`; keys within limits."""

    timestamp: str
    unit: str
    earliest: int | None = None
    latest: int | None = None
    keys: Mapping[str, tuple[int, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """A run of rows: number of the first one, how many, where they lie; their greatest event time, if that is known."""

    first: int
    rows: int
    file: int
    groups: tuple[int, ...]
    latest: int = GREATEST


class Chunks(Protocol):
    """An opened source."""

    schema: pa.Schema
    total: int
    """Of rows."""
    identity: tuple[object, ...] | None
    """What changes whenever a row does; None where nothing does."""

    def spans(self, window: Window) -> list[Span]:
        """The runs of rows that can matter, in order."""

    def read(self, span: Span, columns: Sequence[str], as_they_are: Collection[str] = ()) -> Iterator[pa.Table]:
        """All rows of a run in order, at most `BATCH_ROWS_MAX` at a time.

        Args:
            as_they_are: those columns whose type is the file's own, not the first file's.
        """

    def place(self, span: Span, row: int | None) -> str:
        """Where a row lies, for a message: the file, and the row's number in it from 1; None: the file alone."""


def schema_of(view: View) -> pa.Schema:
    """The schema of a view's source; of several files that of the first.

    Raises:
        FeatureError: it has no file, a file cannot be read, or a column is missing; names the view.
    """
    schema = taken(view.source.schema) if isinstance(view.source, Rows) else ParquetChunks(view.source, view).schema
    checked(schema, view, "the source")
    return schema


def taken(schema: pa.Schema) -> pa.Schema:
    """A schema whose rows can be taken by number: Arrow cannot do that with views of text and bytes."""
    import pyarrow as pa
    from pyarrow import types

    for place, field in enumerate(schema):
        if types.is_string_view(field.type):
            schema = schema.set(place, field.with_type(pa.string()))
        elif types.is_binary_view(field.type):
            schema = schema.set(place, field.with_type(pa.binary()))
    return schema


@contextmanager
def opened(view: View, window: Window) -> Iterator[Chunks]:
    """A view's source, ready to be read; temporary files are gone afterwards.

    Raises:
        FeatureError: it has no file, a file cannot be read, or a column is missing; names the view.
    """
    if isinstance(view.source, Files):
        yield ParquetChunks(view.source, view)
        return
    with tempfile.TemporaryDirectory(prefix="almanac-asof-") as folder:
        yield spooled(view, view.source, window, Path(folder))


def spooled(view: View, source: Rows, window: Window, folder: Path) -> Chunks:
    """What a `Rows` source gives: in memory, or in a file below `folder` if it is too large."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    checked(source.schema, view, "the source")
    limits = [
        None if value is None else to_moment(value, window.unit, up=up)
        for value, up in ((window.earliest, False), (window.latest, True))
    ]
    schema = taken(pa.schema([source.schema.field(name) for name in view.columns]))
    batches: list[pa.RecordBatch] = []
    held, writer, path = 0, None, folder / "rows.parquet"
    for batch in source.read(Wanted(columns=view.columns, earliest=limits[0], latest=limits[1])):
        batches.append(batch.select(list(view.columns)).cast(schema))
        held += batch.nbytes
        if held > SPOOL_BYTES_MAX:
            writer = writer or pq.ParquetWriter(path, schema, compression="lz4")
            writer.write_table(pa.Table.from_batches(batches, schema), row_group_size=GROUP_ROWS)
            batches, held = [], 0
    if writer is None:
        return TableChunks(pa.Table.from_batches(batches, schema), f"the source of view {view.name}")
    writer.write_table(pa.Table.from_batches(batches, schema), row_group_size=GROUP_ROWS)
    writer.close()
    return ParquetChunks(Files(paths=(str(path),)), view, f"the source of view {view.name}")


def checked(schema: pa.Schema, view: View, where: str) -> None:
    """Refuse a schema that lacks a column of the view.

    Raises:
        FeatureError: names view, column and place.
    """
    for name in view.columns:
        if (times := schema.names.count(name)) != 1:
            have = ", ".join(schema.names)
            said = f"no column {name}" if times == 0 else f"the column {name} {times} times"
            raise FeatureError(f"view {view.name}: {where} has {said} (found: {have}): mend one of them")


class TableChunks:
    """A table in memory."""

    def __init__(self, table: pa.Table, name: str) -> None:
        self._table, self._name = table, name
        self.schema = table.schema
        self.total = len(table)
        self.identity: tuple[object, ...] | None = None

    def spans(self, window: Window) -> list[Span]:
        """The whole table."""
        return [Span(first=0, rows=len(self._table), file=0, groups=())] if len(self._table) else []

    def read(self, span: Span, columns: Sequence[str], as_they_are: Collection[str] = ()) -> Iterator[pa.Table]:
        """Slices of it."""
        table = self._table.select(list(columns))
        for first in range(0, len(table), BATCH_ROWS_MAX):
            yield table.slice(first, BATCH_ROWS_MAX)

    def place(self, span: Span, row: int | None) -> str:
        """The source's name, and which of the rows that it gave."""
        return self._name if row is None else f"{self._name}, row {row + 1:,} of those that it gave"


class ParquetChunks:
    """Parquet files; columns are found by name, and cast to the first file's type where a file has another."""

    def __init__(self, files: Files, view: View, name: str | None = None) -> None:
        """Look at the files.

        Args:
            name: for messages, of what the one file was made of.
        """
        self._view, self._filesystem, self._name = view, files.filesystem, name
        paths = paths_of(files, f"view {view.name}")
        self._footers = [footer_of(path, files.filesystem, view.name) for path in paths]
        self.schema = taken(self._footers[0].schema)
        self.total = sum(footer.total for footer in self._footers)
        identities = tuple(footer.identity for footer in self._footers)
        self.identity: tuple[object, ...] | None = None if None in identities else identities
        for footer in self._footers:
            checked(footer.schema, view, f"the file {footer.path}")

    def spans(self, window: Window) -> list[Span]:
        """Runs of row groups whose statistics leave it open that a row matters."""
        found: list[Span] = []
        first = 0
        for number, footer in enumerate(self._footers):
            wanted = footer.matching(window.timestamp, window.unit, window.earliest, window.latest, window.keys or {})
            known = footer.limits(window.timestamp, window.unit)
            found += [
                run if known is None else replace(run, latest=int(known[1][list(run.groups)].max()))
                for run in _runs(footer, wanted, number, first)
            ]
            first += footer.total
        return found

    def place(self, span: Span, row: int | None) -> str:
        """The file, and which of its rows."""
        name = self._name or self._footers[span.file].path
        if row is None:
            return name
        return f"{name}, row {row - sum(footer.total for footer in self._footers[: span.file]) + 1:,}"

    def read(self, span: Span, columns: Sequence[str], as_they_are: Collection[str] = ()) -> Iterator[pa.Table]:
        """The runs' columns, decoded.

        Raises:
            FeatureError: the file is damaged, or a value does not fit the first file's type.
        """
        import pyarrow as pa

        footer = self._footers[span.file]
        fields = [(footer.schema if name in as_they_are else self.schema).field(name) for name in columns]
        wanted = taken(pa.schema(fields))
        try:
            for table in _decoded(footer, self._filesystem, span, list(columns)):
                if footer.changed:  # rows are known by number: those of another file have others
                    raise FilesChanged(
                        f"view {self._view.name}: {footer.path} was written anew while it was read: ask again"
                    )
                table = table.select(list(columns))
                yield table if table.schema.equals(wanted) else table.cast(wanted)
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            name = self._view.name
            raise FeatureError(f"view {name}: {footer.path} cannot be read ({reason}): write it again") from error


def _runs(footer: Footer, wanted: Iterable[int], number: int, first: int) -> Iterator[Span]:
    """Neighbouring row groups together, up to `BATCH_ROWS_MAX` rows; larger ones by themselves."""
    groups: list[int] = []
    rows = 0
    for group in wanted:
        size = int(footer.rows[group])
        if groups and (group != groups[-1] + 1 or rows + size > BATCH_ROWS_MAX):
            yield Span(first=first + int(footer.starts[groups[0]]), rows=rows, file=number, groups=tuple(groups))
            groups, rows = [], 0
        groups.append(group)
        rows += size
    if rows:
        yield Span(first=first + int(footer.starts[groups[0]]), rows=rows, file=number, groups=tuple(groups))


def _decoded(footer: Footer, filesystem: object, span: Span, columns: list[str]) -> Iterator[pa.Table]:
    return parquet_files.tables(
        footer.path, columns, BATCH_ROWS_MAX, groups=span.groups, filesystem=filesystem, metadata=footer.metadata
    )
