"""The point-in-time join: what was known of each entity at its moment; and the newest row of every entity.

Entities in, Arrow out; nothing here knows Feast. `join` gives each row of the
entities, for each view, the row of the view's source that has the same key and
the newest event time at or before the row's moment, and not older than the
view's TTL; of two rows with one key and event time the one created later. No
key (null) never meets a row. `latest` gives the newest row of each key within
a time, for materialization. A source is Parquet files or anything that gives
record batches; only the columns that a view names are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from glob import has_magic, iglob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac.errors import FeatureError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.fs

BATCH_ROWS_MAX = 131_072
MOMENT = "event_timestamp"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a `Rows` source is asked for. It may give more rows than these, never fewer.

    Args:
        columns: to read, by their names in the source.
        earliest: rows before it do not matter; aware, or None for no limit.
        latest: rows after it do not matter; aware, or None for no limit.
    """

    columns: tuple[str, ...]
    earliest: datetime | None
    latest: datetime | None


@dataclass(frozen=True, kw_only=True)
class Files:
    """Parquet files: paths of files, of folders (their `*.parquet`, at any depth), or patterns.

    Args:
        paths: as text; with a `filesystem` they are paths of that one, and no patterns.
        filesystem: where they lie, if not on this machine.
    """

    paths: tuple[str, ...]
    filesystem: pyarrow.fs.FileSystem | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Anything else that gives rows: a table, a database.

    Args:
        schema: of the rows, before columns are chosen.
        read: gives record batches with `Wanted.columns`.
    """

    schema: pa.Schema
    read: Callable[[Wanted], Iterable[pa.RecordBatch]]

    @classmethod
    def of_table(cls, table: pa.Table) -> Rows:
        """The rows of a table in memory."""
        return cls(schema=table.schema, read=lambda wanted: table.select(list(wanted.columns)).to_batches())


@dataclass(frozen=True, kw_only=True)
class View:
    """A feature view as the engine sees it.

    Args:
        name: for messages.
        source: where its rows are.
        keys: column of the source -> column of the entities; none: every row is about every entity.
        timestamp: the source's column of event times. Without a time zone they count as UTC.
        features: column of the source -> column of the result.
        created: the source's column that decides between rows of one key and event time; none (or null) loses.
        ttl: a row older than this at the moment is not known any more; None or zero: rows are known for ever.
    """

    name: str
    source: Files | Rows
    keys: Mapping[str, str]
    timestamp: str
    features: Mapping[str, str]
    created: str | None = None
    ttl: timedelta | None = field(default=None)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the source that matter, each once."""
        named = [*self.keys, self.timestamp, *([self.created] if self.created else []), *self.features]
        return tuple(dict.fromkeys(named))


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
    import pyarrow as pa

    table = entities
    row = pa.array(range(len(entities)), pa.int64())
    for view in views:
        _check(view, entities, moment)
        keyed = entities.select([*dict.fromkeys(view.keys.values()), moment]).append_column("__row", row)
        found = _joined(keyed, view, moment, created_by_moment)
        for name in view.features.values():
            if name in table.column_names:
                raise FeatureError(f"view {view.name}: the result has a column {name} already: use full feature names")
            table = table.append_column(name, found[name])
    return table


def latest(view: View, start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
    """The newest row of each key with an event time from `start` to `end`, both included.

    Returns:
        Batches with the keys by the entities' names, the features by the
        result's, event time and created time by the source's. A key that is
        null counts as a key.
    """
    names = {**view.keys, view.timestamp: view.timestamp, **({view.created: view.created} if view.created else {})}
    chosen = ", ".join(f"{_quoted(old)} AS {_quoted(new)}" for old, new in {**names, **view.features}.items())
    with _connection() as connection:
        _register(connection, view, start, end)
        keys = ", ".join(map(_quoted, view.keys)) or "true"
        query = (
            f"SELECT {chosen} FROM source WHERE {_utc(view.timestamp)} BETWEEN $1 AND $2 "  # noqa: S608
            f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {_newest(view)}) = 1"
        )
        yield from connection.sql(query, params=[start, end]).to_arrow_reader(BATCH_ROWS_MAX)


def paths_of(files: Files, view: str) -> list[str]:
    """Every Parquet file that a source names, in order.

    Raises:
        FeatureError: there is none.
    """
    import pyarrow.fs

    found: list[str] = []
    for path in files.paths:
        if files.filesystem is not None:
            info = files.filesystem.get_file_info(path)
            selector = pyarrow.fs.FileSelector(path, recursive=True)
            folder = info.type == pyarrow.fs.FileType.Directory
            inside = files.filesystem.get_file_info(selector) if folder else [info]
            found += sorted(one.path for one in inside if one.is_file and (not folder or one.path.endswith(".parquet")))
        elif has_magic(path):
            found += sorted(iglob(path, recursive=True))
        elif Path(path).is_dir():
            found += sorted(map(str, Path(path).rglob("*.parquet")))
        elif Path(path).is_file():
            found.append(path)
    if not found:
        raise FeatureError(f"view {view} has no Parquet files ({', '.join(files.paths)}): write them, or mend its path")
    return found


def _check(view: View, entities: pa.Table, moment: str) -> None:
    missing = [name for name in (*view.keys.values(), moment) if name not in entities.column_names]
    if missing:
        have = ", ".join(entities.column_names)
        raise FeatureError(f"view {view.name}: the entities have no column {missing[0]} (found: {have}): give it")


def _connection() -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _register(connection: duckdb.DuckDBPyConnection, view: View, start: datetime | None, end: datetime | None) -> None:
    import pyarrow as pa
    import pyarrow.dataset as ds

    columns = list(view.columns)
    if isinstance(view.source, Files):
        dataset = ds.dataset(paths_of(view.source, view.name), format="parquet", filesystem=view.source.filesystem)
        connection.register("source", dataset.scanner(columns=columns).to_table())
        return
    batches = view.source.read(Wanted(columns=tuple(columns), earliest=start, latest=end))
    schema = pa.schema([view.source.schema.field(name) for name in columns])
    connection.register("source", pa.Table.from_batches(batches, schema=schema))


def _joined(entities: pa.Table, view: View, moment: str, created_by_moment: bool) -> pa.Table:
    at = _utc(moment, "e")
    on = [f"e.{_quoted(new)} = s.{_quoted(old)}" for old, new in view.keys.items()]
    on.append(f"{_utc(view.timestamp, 's')} <= {at}")
    if view.ttl:
        on.append(f"{_utc(view.timestamp, 's')} + to_microseconds({view.ttl // timedelta(microseconds=1)}) >= {at}")
    if created_by_moment and view.created:
        on.append(f"{_utc(view.created, 's')} <= {at}")
    chosen = ", ".join(f"s.{_quoted(old)} AS {_quoted(new)}" for old, new in view.features.items())
    with _connection() as connection:
        _register(connection, view, None, None)
        connection.register("entities", entities)
        query = (
            f"SELECT e.__row AS __row, {chosen} FROM entities e LEFT JOIN source s ON {' AND '.join(on)} "  # noqa: S608
            f"QUALIFY row_number() OVER (PARTITION BY e.__row ORDER BY {_newest(view, 's')}) = 1 ORDER BY e.__row"
        )
        return connection.sql(query).to_arrow_table()


def _newest(view: View, table: str = "source") -> str:
    order = f"{_utc(view.timestamp, table)} DESC NULLS LAST"
    return f"{order}, {_utc(view.created, table)} DESC NULLS LAST" if view.created else order


def _utc(column: str, table: str = "source") -> str:
    return f"CAST({table}.{_quoted(column)} AS TIMESTAMPTZ)"


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
