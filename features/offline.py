"""Offline features, point in time: what was known of each entity at each moment, through the FeatureService."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from almanac.errors import FeatureError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.layout import EVENT_TIMESTAMP
from features.store import open_service, registry_errors

if TYPE_CHECKING:
    import pyarrow as pa

ORDER = "__order"  # carried through Feast's joins, which return rows in any order


def historical(pipeline: Pipeline, settings: Settings, entities: pa.Table) -> pa.Table:
    """The features of each entity as they were at its moment: nothing later is seen.

    Args:
        pipeline: names entity and FeatureService.
        settings: where the offline files and the registry are.
        entities: columns `<entity>` and `event_timestamp` (with a time zone); more columns are kept.

    Returns:
        The rows of `entities` in their order, and the service's columns by plain
        name; null where nothing was known at that moment, or only what is older
        than the view's TTL.

    Raises:
        FeatureError: no features were ingested, or the service is not registered.
        Unavailable: the registry does not answer.
    """
    import pyarrow as pa

    for name in (pipeline.entity, EVENT_TIMESTAMP):
        if name not in entities.column_names:
            raise FeatureError(f"entities have no column {name} (found: {', '.join(entities.column_names)}): give it")
    moments = entities[EVENT_TIMESTAMP]
    if not pa.types.is_timestamp(moments.type) or moments.type.tz is None:
        raise FeatureError(f"{EVENT_TIMESTAMP} is {moments.type}: give timestamps with a time zone")
    place = entities.column_names.index(EVENT_TIMESTAMP)
    # Microseconds, as in the files: DuckDB 2 does not cast nanoseconds here.
    table = entities.set_column(place, EVENT_TIMESTAMP, moments.cast(pa.timestamp("us", tz="UTC")))
    table = table.append_column(ORDER, pa.array(range(len(table)), pa.int64()))
    store, service = open_service(pipeline, settings)
    with registry_errors(), file_errors(pipeline):
        found = store.get_historical_features(entity_df=table.to_pandas(), features=service).to_arrow()
    found = as_numbers(found.sort_by(ORDER).drop_columns([ORDER]), entities.column_names)
    return found.set_column(place, EVENT_TIMESTAMP, table[EVENT_TIMESTAMP]).combine_chunks()


def as_numbers(table: pa.Table, but: Collection[str]) -> pa.Table:
    """Whole numbers and truth values as float32, which is what models take; 1 is yes. Other columns stay.

    Args:
        table: features beside other columns.
        but: names of the other columns.
    """
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if field.name not in but and (pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
            cast = table.column(place).cast(pa.float32(), safe=False)
            table = table.set_column(place, field.name, cast)
    return table


@contextmanager
def file_errors(pipeline: Pipeline) -> Iterator[None]:
    """Map what DuckDB raises when the Parquet files are absent or damaged onto the project's errors."""
    import duckdb

    try:
        yield
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise FeatureError(
            f"pipeline {pipeline.name} has no readable offline features ({reason}): run its ingest step first"
        ) from error
