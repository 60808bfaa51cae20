"""Feast's data sources as the engine reads them: Parquet files anywhere pyarrow reaches, and Postgres.

`opened` turns a source into a `Source`: its schema, its rows, and which of its
columns a name of the feature view means (field mappings). `rows` reads it as
it is, between two times; `append` adds to it and `replace` makes it anew, whole
or not at all.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import has_magic
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from almanac.errors import FeatureError
from features import parquet_files
from features.asof import BATCH_ROWS_MAX, Files, Rows, Wanted, paths_of
from features.asof.times import unit_of
from features.files import locked, replacing
from features.offline.postgres import rows_of, schema_of
from features.offline.postgres import write as write_postgres

if TYPE_CHECKING:
    import pyarrow as pa

MoreFiles = Callable[[Path, "datetime | None", "datetime | None"], "list[str]"]
"""Of a file source's folder and a time: further Parquet files whose rows belong to the source."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data source that was looked at.

    Attributes:
        name: for messages.
        schema: of its rows, by the source's own names.
        rows: what the engine reads.
        mapping: column of the source -> the name that the feature view has for it.
    """

    name: str
    schema: pa.Schema
    rows: Files | Rows
    mapping: Mapping[str, str]

    def column(self, name: str) -> str:
        """The source's column for a name of the feature view.

        Raises:
            FeatureError: the source has no such column, or has it twice.
        """
        names = self.schema.names
        own = next((own for own, mapped in self.mapping.items() if mapped == name and own in names), name)
        if (times := names.count(own)) != 1:
            said = f"no column {own}" if times == 0 else f"the column {own} {times} times"
            raise FeatureError(
                f"source {self.name} has {said} (it has {', '.join(names) or 'none'}): "
                "write the column once, or correct the view or the source's field_mapping"
            )
        return own


def opened(
    config: RepoConfig, source: DataSource, *, earliest: datetime | None = None, latest: datetime | None = None
) -> Source:
    """Look at a data source.

    Args:
        config: Feast's, with our store's options in it.
        earliest, latest: rows of other times will not matter.

    Raises:
        FeatureError: it is of another kind, has no files, or is not readable.
    """
    mapping = dict(source.field_mapping or {})
    if isinstance(source, PostgreSQLSource):
        options, relation = config.offline_store, source.get_table_query_string_with_alias()
        timestamp = _own(mapping, source.timestamp_field)
        what = f"source {source.name}"
        schema = schema_of(options, relation, what)
        if timestamp and timestamp not in schema.names:
            timestamp = source.timestamp_field
        rows = rows_of(options, relation, timestamp, what)
        return Source(name=source.name, schema=rows.schema, rows=rows, mapping=mapping)
    if not isinstance(source, FileSource):
        raise FeatureError(
            f"source {source.name} is a {type(source).__name__}: give a FileSource (Parquet) or a PostgreSQLSource"
        )
    if source.file_format is not None and not isinstance(source.file_format, ParquetFormat):
        kind = type(source.file_format).__name__
        raise FeatureError(f"source {source.name} has {kind}: this store reads Parquet; write Parquet files")
    files = _files(config, source, earliest, latest)
    return Source(name=source.name, schema=_schema(files, source.name), rows=files, mapping=mapping)


def rows(
    source: Source, columns: list[str], timestamp: str, start: datetime | None, end: datetime | None
) -> pa.RecordBatchReader:
    """Rows of a time, ends included, as they are: some at a time, in any order.

    Args:
        columns: by the source's names.
        timestamp: the source's column of event times; without a time zone they are UTC.

    Raises:
        FeatureError: the source lacks a column, or its event times are none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in (*columns, timestamp):
        source.column(name)
    kind = source.schema.field(timestamp).type
    unit_of(kind, f"source {source.name}: {timestamp}")
    limits = [(sign, _moment(moment, kind)) for sign, moment in ((">=", start), ("<=", end)) if moment is not None]
    chosen = pa.schema([source.schema.field(name).remove_metadata() for name in columns])
    if isinstance(source.rows, Files):
        import pyarrow.dataset as ds

        paths = paths_of(source.rows, f"source {source.name}")
        with readable(source.name):
            dataset = parquet_files.dataset(paths, {*columns, timestamp}, source.rows.filesystem)
        condition = None
        for sign, moment in limits:
            one = ds.field(timestamp) >= moment if sign == ">=" else ds.field(timestamp) <= moment
            condition = one if condition is None else condition & one
        scanner = dataset.scanner(columns=columns, filter=condition, batch_size=BATCH_ROWS_MAX)

        def scanned() -> Iterator[pa.RecordBatch]:
            with readable(source.name):
                yield from scanner.to_batches()

        return pa.RecordBatchReader.from_batches(scanner.projected_schema.remove_metadata(), scanned())
    wanted = Wanted(columns=tuple(dict.fromkeys((*columns, timestamp))), earliest=start, latest=end)
    read = source.rows.read

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in read(wanted):
            kept = batch
            for sign, moment in limits:
                compare = pc.greater_equal if sign == ">=" else pc.less_equal
                kept = kept.filter(compare(kept[timestamp], moment))
            yield kept.select(columns)

    return pa.RecordBatchReader.from_batches(chosen, batches())


def append(config: RepoConfig, source: DataSource, table: pa.Table) -> None:
    """Add rows to a source: to its table, to its one file, or as one more file in its folder.

    Raises:
        FeatureError: the source is a query, or cannot be written.
    """
    import pyarrow as pa

    if isinstance(source, PostgreSQLSource):
        if not source._postgres_options._table:
            raise FeatureError(f"source {source.name} is a query, which takes no rows: name its table instead")
        schema = schema_of(config.offline_store, source.get_table_query_string(), f"source {source.name}")
        write_postgres(config.offline_store, source._postgres_options._table, fitted(table, schema, source.name))
        return
    known = opened(config, source)
    assert isinstance(known.rows, Files)  # noqa: S101  other kinds were refused
    fitting = fitted(table, known.schema, source.name)
    path, filesystem = _place(config, source)
    if has_magic(path) or _is_folder(path, filesystem):
        folder = path if not has_magic(path) else str(Path(path).parent)
        _write(fitting, f"{folder}/{uuid.uuid4().hex}.parquet", filesystem)
        return
    alone = locked(Path(path).with_name(f".{Path(path).name}.lock")) if filesystem is None else nullcontext()
    with alone:  # the file is read and written again
        with readable(source.name):
            before = parquet_files.read(path, filesystem=filesystem).replace_schema_metadata(None)
        _write(pa.concat_tables([before, fitting]), path, filesystem)


def replace(config: RepoConfig, source: DataSource, table: pa.Table, allowed: bool) -> None:
    """Make a source of some rows.

    Args:
        allowed: whether something may be there, which is replaced.

    Raises:
        SavedDatasetLocationAlreadyExists: something is there.
    """
    import pyarrow.fs
    from feast.errors import SavedDatasetLocationAlreadyExists

    from features.offline.postgres import exists

    if isinstance(source, PostgreSQLSource):
        name = source._postgres_options._table
        if not allowed and exists(config.offline_store, name):
            raise SavedDatasetLocationAlreadyExists(location=name)
        write_postgres(config.offline_store, name, table, replace=True)
        return
    path, filesystem = _place(config, source)
    system = filesystem or pyarrow.fs.LocalFileSystem()
    there = system.get_file_info(path).type != pyarrow.fs.FileType.NotFound
    if there and not allowed:
        raise SavedDatasetLocationAlreadyExists(location=source.path)
    if path.endswith(".parquet"):
        _write(table, path, filesystem)
        return
    held = Files(paths=(path,), filesystem=filesystem)
    old = paths_of(held, f"source {source.name}") if there and _any(path, system) else []
    _write(table, f"{path}/{uuid.uuid4().hex}.parquet", filesystem)
    for file in old:
        system.delete_file(file)


def fitted(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """Rows in the form of a schema: same columns in its order, its types; structures as JSON where it has text.

    Raises:
        FeatureError: a column is missing, too many, or cannot be of its type.
    """
    import pyarrow as pa

    found, wanted = set(table.column_names), set(schema.names)
    if found != wanted:
        lacking, unknown = sorted(wanted - found), sorted(found - wanted)
        raise FeatureError(f"source {name}: rows lack {lacking or 'nothing'} and have {unknown or 'nothing'} besides")
    columns = []
    for field in schema:
        try:
            columns.append(_converted(table[field.name], field.type))
        except (pa.ArrowException, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise FeatureError(
                f"source {name}: column {field.name} is {table[field.name].type}, not {field.type} ({reason})"
            ) from None
    return pa.table(columns, schema=pa.schema([field.remove_metadata() for field in schema]))


@contextmanager
def readable(name: str) -> Iterator[None]:
    """A block whose Arrow errors become a FeatureError about a source."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise FeatureError(f"source {name} cannot be read ({reason}): write it again") from None


def _converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa

    nested = pa.types.is_struct(column.type) or pa.types.is_map(column.type)
    if nested and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        texts = [None if value is None else json.dumps(dict(value)) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, kind)])
    if nested and column.type != kind:
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])
    return column.cast(kind)


def _own(mapping: Mapping[str, str], name: str) -> str:
    return next((own for own, mapped in mapping.items() if mapped == name), name)


def _moment(moment: datetime, kind: pa.DataType) -> pa.Scalar:
    """A time as a scalar of a column's type."""
    import pyarrow as pa

    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    unit = kind.unit if pa.types.is_timestamp(kind) else "us"
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.scalar(aware, pa.timestamp("us", kind.tz)).cast(pa.timestamp(unit, kind.tz), safe=False)
    return pa.scalar(aware.astimezone(UTC).replace(tzinfo=None), pa.timestamp("us")).cast(
        pa.timestamp(unit), safe=False
    )


def _place(config: RepoConfig, source: FileSource) -> tuple[str, Any]:
    """Path and filesystem (None: this machine) of a file source."""
    import pyarrow.fs

    uri = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    if uri.startswith("s3://"):
        credentials = source.resolve_credentials() if hasattr(source, "resolve_credentials") else None
        system, path = FileSource.create_filesystem_and_path(uri, source.s3_endpoint_override, credentials)
        return path, system
    if "://" in uri and not uri.startswith("file://"):
        system, path = pyarrow.fs.FileSystem.from_uri(uri)
        return path, system
    return uri.removeprefix("file://"), None


def _files(config: RepoConfig, source: FileSource, earliest: datetime | None, latest: datetime | None) -> Files:
    path, filesystem = _place(config, source)
    more = getattr(config.offline_store, "more_files", None)
    if not more or filesystem is not None:
        return Files(paths=(path,), filesystem=filesystem)
    module, _, name = more.rpartition(".")
    ask: MoreFiles = getattr(import_module(module), name)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return Files(paths=(path, *ask(folder, earliest, latest)))


def _schema(files: Files, name: str) -> pa.Schema:
    with readable(name):
        return parquet_files.schema(paths_of(files, f"source {name}")[0], files.filesystem).remove_metadata()


def _is_folder(path: str, filesystem: Any) -> bool:
    import pyarrow.fs

    system = filesystem or pyarrow.fs.LocalFileSystem()
    return bool(system.get_file_info(path).type == pyarrow.fs.FileType.Directory)


def _any(path: str, system: Any) -> bool:
    import pyarrow.fs

    if not _is_folder(path, system):
        return False
    inside = system.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    return any(one.is_file and one.path.endswith(".parquet") for one in inside)


def _write(table: pa.Table, path: str, filesystem: Any) -> None:
    import pyarrow.parquet as pq

    if filesystem is not None:
        pq.write_table(table, path, filesystem=filesystem)
        return
    with replacing(Path(path)) as temporary:
        pq.write_table(table, temporary)
