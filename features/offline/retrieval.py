"""Feast's question for historical features as the engine understands it: entities in Arrow, views, their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL as EVENT_TIMESTAMP
from feast.repo_config import RepoConfig

from almanac.clock import MICROSECOND
from almanac.errors import FeatureError
from features.asof import View, join
from features.asof.chunks import schema_of
from features.offline.postgres import query
from features.offline.sources import opened, rows

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Who is asked about, and when.

    Attributes:
        table: as given, in Arrow.
        moment: name of its time column.
        earliest, latest: of its times; None without rows.
    """

    table: pa.Table
    moment: str
    earliest: datetime | None
    latest: datetime | None

    @classmethod
    def of(cls, table: pa.Table, moment: str) -> Entities:
        """Entities of a table whose column `moment` has timestamps."""
        earliest, latest = _bounds(table[moment])
        return cls(table=table, moment=moment, earliest=earliest, latest=latest)

    @property
    def keys(self) -> list[str]:
        """All columns but the time."""
        return [name for name in self.table.column_names if name != self.moment]


def entities_of(config: RepoConfig, given: Any) -> Entities:
    """Entities as Feast takes them: a pandas DataFrame, an Arrow table, or a query to Postgres.

    Raises:
        EntityTimestampInferenceException: no column is the time.
        FeatureError: of another type, or its time column has none.
    """
    import pandas as pd
    import pyarrow as pa

    if isinstance(given, str):
        table = query(config.offline_store, given.strip().rstrip(";"), "the entities' query")
    elif isinstance(given, pa.Table):
        table = given
    elif isinstance(given, pd.DataFrame):
        table = pa.Table.from_pandas(given, preserve_index=False)
    else:
        raise FeatureError(
            f"entities are a {type(given).__name__}: give a pandas DataFrame, an Arrow table or a query as text"
        )
    moment = _moment_column(table)
    table = table.set_column(table.column_names.index(moment), moment, _as_times(table[moment]))
    return Entities.of(table, moment)


def check_keys(entities: Entities, views: Sequence[FeatureView]) -> None:
    """Refuse entities that lack a view's join key.

    Raises:
        FeastEntityDFMissingColumnsError: names them.
    """
    expected = {mapped for view in views for mapped in keys_of(view).values()}
    missing = expected - set(entities.table.column_names)
    if missing:
        raise FeastEntityDFMissingColumnsError(expected | {entities.moment}, missing)


def keys_of(view: FeatureView) -> dict[str, str]:
    """Join key of a view -> column of the entities."""
    aliases = view.projection.join_key_map or {}
    return {
        field.name: aliases.get(field.name, field.name)
        for field in view.entity_columns
        if field.name != DUMMY_ENTITY_ID
    }


def views_of(
    config: RepoConfig,
    views: Sequence[FeatureView],
    refs: Sequence[str],
    full_names: bool,
    bounds: tuple[datetime | None, datetime | None],
) -> list[View]:
    """Feast's views as the engine's; their sources are looked at, and refused if they do not have what is asked.

    Raises:
        FeatureError: a source cannot be read, or lacks a column; a name is asked for twice.
    """
    return [_view(config, view, refs, full_names, bounds) for view in views]


def _view(
    config: RepoConfig,
    view: FeatureView,
    refs: Sequence[str],
    full_names: bool,
    bounds: tuple[datetime | None, datetime | None],
) -> View:
    if view.batch_source is None:
        raise FeatureError(f"view {view.name} has no batch source: give it one to ask for its history")
    earliest, latest = bounds
    since = earliest - view.ttl if earliest is not None and view.ttl else None
    source = opened(config, view.batch_source, earliest=since, latest=latest)
    prefix = view.projection.name_to_use()
    names = dict.fromkeys(ref.split(":", 1)[1] for ref in refs if ref.split(":", 1)[0] == prefix)
    base = view.projection.name_alias or view.name
    created = view.batch_source.created_timestamp_column
    types = {field.name: field.dtype.to_value_type().name for field in view.features}
    return View(
        name=prefix,
        source=source.rows,
        keys={source.column(own): mapped for own, mapped in keys_of(view).items()},
        timestamp=source.column(view.batch_source.timestamp_field),
        created=source.column(created) if created else None,
        features={source.column(name): f"{base}__{name}" if full_names else name for name in names},
        ttl=view.ttl or None,
        kinds={source.column(name): types[name] for name in names if name in types},
    )


def retrieved(entities: Entities, views: Sequence[View], created_by_moment: bool = False) -> pa.Table:
    """The entities' rows with the views' features, point in time."""
    return join(entities.table, views, moment=entities.moment, created_by_moment=created_by_moment)


def widened(table: pa.Table, views: Sequence[View]) -> pa.Table:
    """The table with doubles where a source has them and its view declares Float32: rounded, and as wide as the file.

    Feast materializes on-demand views of what it is given here, and takes no float32 for a Float64 that they compute.
    """
    import pyarrow as pa

    for view in views:
        for own, shown in view.features.items():
            if view.kinds.get(own) == "FLOAT" and schema_of(view).field(own).type == pa.float64():
                place = table.schema.get_field_index(shown)
                table = table.set_column(place, shown, table[shown].cast(pa.float64()))
    return table


def entities_between(config: RepoConfig, views: Sequence[FeatureView], start: datetime, end: datetime) -> Entities:
    """Every entity at each moment between two times at which one of the views has a row of it: each once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts: list[pa.Table] = []
    for view in views:
        if view.batch_source is None:
            continue
        source = opened(config, view.batch_source, earliest=start, latest=end)
        keys = keys_of(view)
        timestamp = source.column(view.batch_source.timestamp_field)
        names = {source.column(own): mapped for own, mapped in keys.items()}
        found = rows(source, [*names, timestamp], timestamp, start, end).read_all()
        found = found.set_column(len(names), timestamp, _microseconds(found[timestamp]))
        found = found.rename_columns([*names.values(), EVENT_TIMESTAMP])
        parts.append(found.group_by(found.column_names).aggregate([]))
    kind = pa.timestamp("us", "UTC")
    table = (
        pa.concat_tables(parts, promote_options="default") if parts else pa.table({EVENT_TIMESTAMP: pa.array([], kind)})
    )
    table = table.group_by(table.column_names).aggregate([])
    table = table.filter(pc.is_valid(table[EVENT_TIMESTAMP])).sort_by(EVENT_TIMESTAMP)
    return Entities(table=table, moment=EVENT_TIMESTAMP, earliest=start, latest=end)


def _moment_column(table: pa.Table) -> str:
    import pyarrow as pa

    if EVENT_TIMESTAMP in table.column_names:
        return str(EVENT_TIMESTAMP)
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if len(times) != 1:
        raise EntityTimestampInferenceException(EVENT_TIMESTAMP)
    return str(times[0])


def _as_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times given as text or dates become timestamps in UTC; timestamps stay."""
    import pandas as pd
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        return column
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_date(column.type)):
        raise FeatureError(f"the entities' times are {column.type}: give timestamps")
    try:
        parsed = pd.to_datetime(column.to_pandas(), utc=True)
    except (ValueError, TypeError) as error:
        raise FeatureError(f"the entities' times cannot be read ({error}): give timestamps") from None
    return pa.chunked_array([pa.Array.from_pandas(parsed)])


def _microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times in UTC and microseconds, rounded down; without a time zone they are UTC, as everywhere in Feast."""
    import pyarrow as pa
    import pyarrow.compute as pc

    aware = column if column.type.tz is not None else pc.assume_timezone(column, "UTC")
    if aware.type.unit == "ns":
        aware = pc.floor_temporal(aware, unit="microsecond")
    return aware.cast(pa.timestamp("us", "UTC"), safe=False)


def _bounds(column: pa.ChunkedArray) -> tuple[datetime | None, datetime | None]:
    import pyarrow.compute as pc

    found = pc.min_max(_microseconds(column)).as_py()
    earliest, latest = found["min"], found["max"]
    if earliest is None:
        return None, None
    return earliest.astimezone(UTC), latest.astimezone(UTC) + MICROSECOND
