"""The Parquet files that the views of a FeatureService stand on, when somebody else keeps them up.

What a pipeline without a source needs to know of them: that they hold what the
views say (`check`), how far they reach (`watermark`), and which entities they
know (`entities`). Asked of the files directly, with DuckDB, column by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from almanac.clock import at_micros, format_time, need_utc
from almanac.errors import FeatureError, UnknownEntity
from almanac.partitioning import Buckets, EntityKey
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features import tables_footers
from features.own_files import columns_of, files_of, literal, quoted, renamed
from features.parquet_files import relation
from features.schemas import Needed, as_declared, check_schema

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from feast import FeatureService, FeatureStore, FeatureView

KEYS_AT_ONCE = 100_000
KEYS_SHOWN_MAX = 3
NUMBERS = frozenset({"FLOAT", "DOUBLE", "INT32", "INT64", "BOOL"})
"""Feast's types that a feature may have: what becomes a number without a decision."""
LISTS = frozenset({"FLOAT_LIST", "DOUBLE_LIST", "INT32_LIST", "INT64_LIST", "STRING_LIST"})
"""Types of features besides, where lists are ranked: of what, an entity's history."""
PUSHED = frozenset({"FLOAT", "DOUBLE", "BOOL"})
"""Types that a pushed column may have: an event's number need not be whole."""
KEY_TYPES = {int: ("INT64", "INT32"), str: ("STRING",)}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One view and the files below it.

    Args:
        view: the view's name.
        path: of its files, which may hold a `*`.
        key, moment, created: columns of the entity, the event time and, if there is one, the writing time.
        features: the view's columns; lists: those of them that are lists.
        ttl: for how long a row may be used; None for ever.
        kinds: Feast's value type of each feature.
        columns: the files' names of columns that have another one in the view.
    """

    view: str
    path: str
    key: str
    moment: str
    created: str | None
    features: tuple[str, ...]
    ttl: timedelta | None
    lists: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict, hash=False)
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def numbers(self) -> Table:
        """The same view with its numbers alone."""
        return replace(self, features=tuple(name for name in self.features if name not in self.lists), lists=())

    @property
    def files(self) -> list[str]:
        """The files that are there now, in order.

        Raises:
            FeatureError: none is.
        """
        return files_of(self.path, self.view)

    def column(self, name: str) -> str:
        """The files' name of a column of the view."""
        return self.columns.get(name, name)

    def relation(self, columns: Sequence[str] = (), files: Sequence[str] | None = None) -> str:
        """What stands in DuckDB's FROM: key, event time and some columns of `files`, or of the view's own."""
        names = (self.key, self.moment, *columns)
        return renamed(relation(files or self.files, [self.column(name) for name in names]), names, self.columns)

    def rows(self, columns: Sequence[str], *, since: datetime, until: datetime, rows_max: int) -> pa.Table:
        """The rows of a time, ends included, that have all of some columns, by event time and entity.

        Returns:
            The entity's column, `event_timestamp` (UTC, microseconds) and the columns.

        Raises:
            FeatureError: there are more than `rows_max`, or the files cannot be read, or a value is not as declared.
        """
        names = [f"{quoted(self.key)}", f"{quoted(self.moment)} AS event_timestamp", *map(quoted, columns)]
        whole = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in (self.key, *columns))
        when = f"{quoted(self.moment)} BETWEEN {literal(since)} AND {literal(until)}"
        with opened(self, columns) as (connection, rows):
            found: pa.Table = connection.sql(
                f"SELECT {', '.join(names)} FROM {rows} WHERE {whole} AND {when} "  # noqa: S608
                f"ORDER BY event_timestamp, {quoted(self.key)} LIMIT {rows_max + 1}",
            ).to_arrow_table()
        if len(found) > rows_max:
            many = f"view {self.view} has more than {rows_max:,} rows since {format_time(since)}"
            raise FeatureError(f"{many}: shorten Training.window")
        return as_declared(found, self.kinds, f"view {self.view}", self.files, self.columns)


def examine(pipeline: Pipeline, settings: Settings, cutoff: datetime) -> datetime:
    """Find definitions and files sound, and how far they reach; writes nothing.

    Returns:
        The newest event time at or before the cutoff, of the views that change.

    Raises:
        FeatureError: something does not fit; names view, file and column.
        Unavailable: the registry does not answer.
    """
    tables = tables_of(pipeline, settings)
    check(tables, pipeline)
    as_of = watermark(tables, pipeline, cutoff)
    check_keys(tables, as_of)
    if isinstance(pipeline.partitions, Buckets) and not next(entities(tables, pipeline, as_of), None):
        raise FeatureError(
            f"no {pipeline.entity} has a usable row in every view of {pipeline.features} at {format_time(as_of)} "
            f"({', '.join(table.view for table in tables)}): write their rows, or lengthen the views' ttl"
        )
    return as_of


def tables_of(pipeline: Pipeline, settings: Settings) -> tuple[Table, ...]:
    """The tables of a pipeline's FeatureService, after the definitions were found to fit the declaration.

    Raises:
        FeatureError: the service is not defined, or a view of it does not fit; says which and what to change.
        Unavailable: the registry does not answer.
    """
    from features.store import open_service, registry_errors

    store, service = open_service(pipeline, settings)
    with registry_errors():
        tables = tuple(_tables(pipeline, store, service))
    names = [name for table in tables for name in table.features]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise FeatureError(
            f"FeatureService {pipeline.features} has {', '.join(twice)} in two views: rename one of them"
            if twice
            else f"FeatureService {pipeline.features} has no features: give it FeatureViews"
        )
    return tables


def labels_of(pipeline: Pipeline, settings: Settings, view: str) -> Table:
    """The table of the view that holds the truth to train on: a column per output.

    Raises:
        FeatureError: no Feast file defines the view, or it lacks an output.
        Unavailable: the registry does not answer.
    """
    from feast.errors import FeastObjectNotFoundException

    from features.store import open_service, registry_errors

    store, _ = open_service(pipeline, settings)
    try:
        with registry_errors():
            found = store.get_feature_view(view)
    except (FeastObjectNotFoundException, FeatureError):
        raise FeatureError(
            f"pipeline {pipeline.name} trains on the labels {view!r}, but no Feast file defines a view of that name: "
            "add the FeatureView, or correct Training.labels"
        ) from None
    table = _table(pipeline, found, tuple(field.name for field in found.features))
    absent = [name for name in pipeline.output_names if name not in table.features]
    if absent:
        raise FeatureError(
            f"labels view {view} has no column {', '.join(absent)} (it has {', '.join(table.features)}): "
            "give it one column per output, of the output's name"
        )
    return table


def _tables(pipeline: Pipeline, store: FeatureStore, service: FeatureService) -> Iterator[Table]:
    from feast import FeatureView

    for projection in service.feature_view_projections:
        view = store.get_feature_view(projection.name)
        if not isinstance(view, FeatureView):
            raise FeatureError(f"{projection.name} is a {type(view).__name__}: make it a FeatureView over Parquet")
        yield _table(pipeline, view, tuple(field.name for field in projection.features))
        if view.stream_source is not None:
            _check_pushed(pipeline, view)


def _table(pipeline: Pipeline, view: FeatureView, features: tuple[str, ...]) -> Table:
    if tuple(view.join_keys) != (pipeline.entity,):
        keys, ours = ", ".join(view.join_keys) or "none", pipeline.entity
        remedy = f"give the view the Entity whose join key is {ours}"
        if ours in view.entities:
            remedy = f"{ours} is the Entity's name; declare entity={keys!r}, its join key"
        said = f"has the join keys {keys}, pipeline {pipeline.name} predicts for {ours}"
        raise FeatureError(f"view {view.name} {said}: {remedy}")
    kind = view.entity_columns[0].dtype.to_value_type().name
    if kind not in KEY_TYPES[pipeline.partitions.key_type]:
        wanted = KEY_TYPES[pipeline.partitions.key_type][0]
        raise FeatureError(
            f"view {view.name}: join key {pipeline.entity} is {kind} in Feast, the declaration has {wanted}: "
            "set the Entity's value_type, or Buckets(keys='string' or 'integer')"
        )
    kinds = {field.name: field.dtype.to_value_type().name for field in view.features if field.name in features}
    for name, kind in kinds.items():
        if kind not in NUMBERS and not (pipeline.ranking is not None and kind in LISTS):
            raise FeatureError(
                f"view {view.name}: feature {name} is {kind}, models take numbers: encode it as Float32, Int64 "
                "or Bool, or leave it out of the FeatureService"
            )
    source = view.batch_source
    path = str(getattr(source, "path", "") or "")
    if type(source).__name__ != "FileSource" or "://" in path:
        raise FeatureError(f"view {view.name} reads a {type(source).__name__} {path}: give it a FileSource of Parquet")
    if not path.startswith("/"):
        raise FeatureError(
            f"view {view.name} reads {path}, which means another file in each process: give the whole path, "
            f"such as str(Path(__file__).with_name({path!r}))"
        )
    if not source.timestamp_field:
        raise FeatureError(
            f"view {view.name}: its FileSource names no timestamp_field: give it the event time's column"
        )
    return Table(
        view=view.name,
        path=path,
        key=pipeline.entity,
        moment=source.timestamp_field,
        created=source.created_timestamp_column or None,
        features=features,
        ttl=view.ttl or None,
        lists=tuple(name for name, kind in kinds.items() if kind in LISTS),
        kinds=kinds,
        columns=columns_of(source),
    )


def _check_pushed(pipeline: Pipeline, view: FeatureView) -> None:
    """Events carry exactly the pushed view's columns, so that batch and stream mean the same row."""
    if pipeline.stream is None or pipeline.source is not None:
        return
    if columns_of(view.batch_source):
        raise FeatureError(
            f"pushed view {view.name} has a field_mapping, and events lie beside its files by the view's own names: "
            "rename the files' columns, and take the field_mapping off"
        )
    columns = {field.name: field.dtype.to_value_type().name for field in view.features}
    if set(columns) != set(pipeline.event_values):
        raise FeatureError(
            f"events of {pipeline.name} carry {', '.join(sorted(pipeline.event_values))}, the pushed view {view.name} "
            f"has {', '.join(sorted(columns))}: make Stream.values and the view's schema name the same columns"
        )
    said = pipeline.event_values
    wrong = [
        f"{at} ({of})" for at, of in columns.items() if of not in PUSHED or (of == "BOOL" and said[at] is not bool)
    ]
    if wrong:
        remedy = "give its columns Float32, Float64 or Bool (where Stream.values says bool)"
        raise FeatureError(f"pushed view {view.name} has {', '.join(wrong)}: {remedy}")


def check(tables: Sequence[Table], pipeline: Pipeline) -> None:
    """Read the schema of every file, and refuse one that does not hold what its view says.

    Raises:
        FeatureError: names file and column.
    """
    for table in tables:
        needed = Needed(
            view=table.view,
            key=table.column(table.key),
            whole_keys=pipeline.partitions.key_type is int,
            moments=tuple(table.column(name) for name in (table.moment, table.created) if name),
            features={table.column(name): table.kinds.get(name, "DOUBLE") for name in table.features},
        )
        for file in table.files:
            check_schema(file, needed)


def watermark(tables: Sequence[Table], pipeline: Pipeline, cutoff: datetime) -> datetime:
    """The newest event time at or before the cutoff, of the views that change; the features speak from it.

    A view changes if its rows expire (it has a TTL); where none has, all count.

    Raises:
        FeatureError: no view has a row until then.
    """
    cutoff = need_utc(cutoff)
    changing = [table for table in tables if table.ttl is not None] or list(tables)
    newest: list[int] = []
    for table in changing:
        told = tables_footers.newest(table.files, table.view, table.column(table.moment), cutoff)
        if told is not None:
            newest.append(told)
            continue
        with opened(table) as (connection, rows):
            moment = quoted(table.moment)
            query = f"SELECT epoch_us(max({moment})) FROM {rows} WHERE {moment} <= {literal(cutoff)}"  # noqa: S608
            found = connection.execute(query).fetchone()
            newest += [found[0]] if found and found[0] is not None else []
    if not newest:
        views = ", ".join(table.view for table in changing)
        raise FeatureError(
            f"no row of {views} is from {format_time(cutoff)} or before: bring the files of pipeline {pipeline.name} "
            "up to date, or ask for a later time"
        )
    return at_micros(max(newest))


def check_keys(tables: Sequence[Table], as_of: datetime) -> None:
    """Refuse rows without a key, and two rows of one key and moment of which neither is the later written one.

    Looked at are the rows that can be used at `as_of`.

    Raises:
        FeatureError: names view, files and keys.
    """
    for table in tables:
        if table.created and tables_footers.complete(table.files, table.view, table.column(table.key)):
            continue
        with opened(table) as (connection, rows):
            usable, key, moment = _usable(table, as_of), quoted(table.key), quoted(table.moment)
            query = f"SELECT count(*) FROM {rows} WHERE {key} IS NULL AND {usable}"  # noqa: S608
            nulls = connection.execute(query).fetchone()
            if nulls and nulls[0]:
                raise FeatureError(
                    f"{table.path}: {nulls[0]:,} rows of view {table.view} have no {table.key}: drop them or fill it in"
                )
            if table.created:
                continue
            twice = connection.execute(
                f"SELECT {key} FROM {rows} WHERE {usable} GROUP BY {key}, {moment} "  # noqa: S608
                f"HAVING count(*) > 1 LIMIT {KEYS_SHOWN_MAX}"
            ).fetchall()
            if twice:
                shown = ", ".join(str(row[0]) for row in twice)
                raise FeatureError(
                    f"{table.path}: view {table.view} has two rows of one {table.key} and {table.moment} ({shown}): "
                    "drop the duplicates, or name a created_timestamp_column that says which is newer"
                )


def entities(tables: Sequence[Table], pipeline: Pipeline, as_of: datetime) -> Iterator[list[EntityKey]]:
    """The entities that every view knows at `as_of`, ascending, some at a time.

    An entity without a usable row in one of the views has no prediction, as one that was never seen.

    Raises:
        FeatureError: a key cannot be an entity's.
    """
    first = tables[0]
    with opened(first) as (connection, _):
        asked = [
            f"SELECT {quoted(table.key)} AS key FROM {table.relation()} "  # noqa: S608
            f"WHERE {quoted(table.key)} IS NOT NULL AND {_usable(table, as_of)}"
            for table in tables
        ]
        every = " INTERSECT ".join(f"({part})" for part in asked)
        found = connection.execute(f"SELECT DISTINCT key FROM ({every}) ORDER BY key")  # noqa: S608
        while keys := found.fetchmany(KEYS_AT_ONCE):
            try:
                yield [pipeline.partitions.check(row[0]) for row in keys]
            except UnknownEntity as error:
                raise FeatureError(f"{first.path}: column {first.key}: {error}: correct the rows") from None


def _usable(table: Table, as_of: datetime) -> str:
    moment = quoted(table.moment)
    until = f"{moment} <= {literal(as_of)}"
    return until if table.ttl is None else f"{until} AND {moment} >= {literal(as_of - table.ttl)}"


@contextmanager
def opened(
    table: Table, columns: Sequence[str] = (), files: Sequence[str] | None = None
) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """A DuckDB of its own, and what stands in FROM: key, event time and `columns` of `files`, or of the view's own."""
    import duckdb
    import pyarrow as pa

    with duckdb.connect(":memory:") as connection:
        try:
            yield connection, table.relation(columns, files)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise FeatureError(
                f"{table.path} of view {table.view} cannot be read ({reason}): write it again"
            ) from error
