"""The one door through which Parquet files are opened, whoever wrote them: columns by name, within a budget of memory.

Errors of a file that is damaged are Arrow's (`pyarrow.ArrowException`, `OSError`), as if it were opened without
this; a file that would take too much memory is refused by an error of ours, which names file and column.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac.errors import AlmanacError, FeatureError
from features.parquet_budget import over_budget
from features.parquet_footers import check_footer
from features.parquet_pages import Damaged

if TYPE_CHECKING:
    import pyarrow as pa

FOOTER_BYTES_MAX = 64 << 20
"""A footer takes a multiple of its size in memory."""
TAIL_BYTES = 8
"""At the end of a file: the footer's length, and the sign of the format."""
WINDOW_BYTES = 1 << 10
WINDOW_BYTES_ELSEWHERE = 1 << 20
"""How much is read at once where headers of pages are looked for, here and on another machine."""
VERDICTS_MAX = 4_096
"""Files of which it is kept that their footers are sound, and columns that are within the budget."""

_seen: OrderedDict[tuple[Any, ...], None] = OrderedDict()


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file that is open.

    Args:
        name: for messages.
        raw: its bytes, an Arrow file.
        metadata: its footer.
        window: bytes to read at once where headers are looked for.
        identity: changes with its bytes; None where that is not known.
    """

    name: str
    raw: Any
    metadata: Any
    window: int
    identity: tuple[Any, ...] | None

    def batches(self, rows: int, group: int, path: str, dictionaries: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """A column of a row group, so many rows at a time; see `features.parquet_budget.Input`."""
        return iter(
            self.parquet(dictionaries).iter_batches(rows, row_groups=[group], columns=[path], use_threads=False)
        )

    def parquet(self, dictionaries: Collection[str] = ()) -> Any:
        """It as pyarrow's `ParquetFile`."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.raw, metadata=self.metadata, read_dictionary=list(dictionaries) or None)

    def need_room(self, columns: Collection[str] | None, groups: Sequence[int] | None, whole: bool, error: Any) -> None:
        """Refuse it if columns of row groups take too much memory."""
        numbers = range(self.metadata.num_row_groups) if groups is None else groups
        asked = (self.identity, None if columns is None else frozenset(columns), tuple(numbers), whole)
        if self.identity is not None and asked in _seen:
            return
        if why := over_budget(self, columns, numbers, whole=whole):
            raise error(f"{self.name}: {why}")
        if self.identity is not None:
            _keep(asked)


@contextmanager
def opened(path: str | Path | bytes, filesystem: Any = None, metadata: Any = None) -> Iterator[Opened]:
    """Open a file and read its footer.

    Args:
        path: of the file, or all its bytes.
        filesystem: where it lies, if not on this machine.
        metadata: its footer, if it was read before.

    Raises:
        pyarrow.ArrowInvalid: it is no Parquet file, or its footer is larger than `FOOTER_BYTES_MAX`.
    """
    import pyarrow as pa

    name, identity = "the Parquet data" if isinstance(path, bytes) else str(path), None
    if isinstance(path, bytes):
        source = pa.BufferReader(path)
    elif filesystem is None:
        status = Path(path).stat()
        identity = (name, status.st_ino, status.st_size, status.st_mtime_ns)
        source = pa.OSFile(name)
    else:
        source = filesystem.open_input_file(name)
    with source as raw:
        if metadata is None:
            metadata = _footer(raw, identity)
        window = WINDOW_BYTES if filesystem is None else WINDOW_BYTES_ELSEWHERE
        yield Opened(name=name, raw=raw, metadata=metadata, window=window, identity=identity)


def _footer(raw: Any, identity: tuple[Any, ...] | None) -> Any:
    """The footer of an open file, of whose columns pyarrow can be asked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = raw.size()
    tail = raw.read_at(TAIL_BYTES, max(size - TAIL_BYTES, 0))
    length = int.from_bytes(tail[:4], "little")
    if len(tail) == TAIL_BYTES and length > FOOTER_BYTES_MAX and length < size:
        raise pa.ArrowInvalid(f"its footer has {length:,} bytes, more than {FOOTER_BYTES_MAX:,}")
    try:
        metadata = pq.read_metadata(raw)
        for field in metadata.schema.to_arrow_schema():
            _ = field.name, str(field.type), getattr(field.type, "tz", None)
        if identity is None or identity not in _seen:
            check_footer(raw.read_at(length, size - TAIL_BYTES - length), metadata.schema)
    except UnicodeDecodeError:
        raise pa.ArrowInvalid("its footer has a name or time zone that is no UTF-8") from None
    except Damaged as damaged:
        raise pa.ArrowInvalid(str(damaged)) from None
    if identity is not None:
        _keep(identity)
    return metadata


def _keep(verdict: tuple[Any, ...]) -> None:
    _seen[verdict] = None
    while len(_seen) > VERDICTS_MAX:
        _seen.popitem(last=False)


def footer(path: str | Path, filesystem: Any = None) -> Any:
    """A file's footer, as pyarrow has it."""
    with opened(path, filesystem) as file:
        return file.metadata


def schema(path: str | Path, filesystem: Any = None) -> pa.Schema:
    """A file's schema, with what its writer put beside it."""
    return footer(path, filesystem).schema.to_arrow_schema()


def read(
    path: str | Path | bytes,
    columns: Sequence[str] | None = None,
    *,
    dictionaries: Collection[str] = (),
    error: type[AlmanacError] = FeatureError,
    filesystem: Any = None,
) -> pa.Table:
    """Columns of a file, whole; a folder above it whose name looks like `key=value` adds none.

    Args:
        columns: None for all.
        dictionaries: columns of text to give as dictionaries.
        error: what to raise if they take too much memory.
    """
    with opened(path, filesystem) as file:
        file.need_room(columns, None, True, error)
        return _text(file.parquet(dictionaries).read(columns=None if columns is None else list(columns)))


def _text(table: pa.Table) -> pa.Table:
    """The same table, whose texts are UTF-8: pages of a file that is damaged may hold any bytes.

    Raises:
        pyarrow.ArrowInvalid: a text is not; names the column.
    """
    import pyarrow as pa

    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                raise pa.ArrowInvalid(f"column {name}: {error}") from None
    return table


def tables(
    path: str | Path,
    columns: Sequence[str],
    rows: int,
    *,
    groups: Sequence[int] | None = None,
    filesystem: Any = None,
    metadata: Any = None,
    error: type[AlmanacError] = FeatureError,
) -> Iterator[pa.Table]:
    """Columns of row groups in order, at most so many rows at a time; one table if that is enough.

    Args:
        groups: numbers of the row groups; None for all.
        metadata: the footer, if it was read before.
        error: what to raise if a row group takes too much memory.
    """
    import pyarrow as pa

    with opened(path, filesystem, metadata) as file:
        numbers = list(range(file.metadata.num_row_groups) if groups is None else groups)
        at_once = sum(file.metadata.row_group(number).num_rows for number in numbers) <= rows
        file.need_room(columns, numbers, at_once, error)
        if at_once:
            yield _text(file.parquet().read_row_groups(numbers, columns=list(columns)))
            return
        for batch in file.parquet().iter_batches(rows, row_groups=numbers, columns=list(columns)):
            yield _text(pa.Table.from_batches([batch]))


def need_room(
    paths: Iterable[str | Path],
    columns: Collection[str] | None,
    *,
    error: type[AlmanacError] = FeatureError,
    filesystem: Any = None,
) -> None:
    """Refuse files of which a row group takes too much memory: before a reader opens them that is not of this module.

    Args:
        columns: that will be read, where a file has them; None for all.
    """
    for path in paths:
        with opened(path, filesystem) as file:
            file.need_room(columns, None, False, error)


def dataset(paths: Sequence[str], columns: Collection[str] | None = None, filesystem: Any = None) -> Any:
    """Files as a dataset of pyarrow's, of which these columns may be read.

    Raises:
        FeatureError: a row group takes too much memory.
    """
    import pyarrow.dataset as ds

    need_room(paths, columns, filesystem=filesystem)
    return ds.dataset(list(paths), format="parquet", filesystem=filesystem)


def relation(paths: Sequence[str | Path], columns: Collection[str] | None = None) -> str:
    """Files as what stands in DuckDB's FROM, of which these columns may be read.

    Raises:
        FeatureError: a row group takes too much memory.
        pyarrow.ArrowException, OSError: a file is damaged.
    """
    need_room(paths, columns)
    names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{names}], union_by_name => true, hive_partitioning => false)"
