"""Offline features, point in time: what was known of each entity at each moment, through the FeatureService.

The way of the jobs: the registry says which views a service has, and the engine
joins them, entities in, Arrow out. Feast's `get_historical_features` gives the
same with our store, and takes pandas in between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from almanac.errors import FeatureError, FilesChanged
from almanac.pipeline import Interactions, Pipeline
from almanac.settings import Settings
from features.layout import EVENT_TIMESTAMP
from features.store import open_service, registry_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureService, FeatureStore, FeatureView


def historical(pipeline: Pipeline, settings: Settings, entities: pa.Table) -> pa.Table:
    """The features of each entity as they were at its moment: nothing later is seen.

    Args:
        pipeline: names entity and FeatureService.
        settings: where the offline files and the registry are.
        entities: columns `<entity>` and `event_timestamp` (with a time zone); more columns are kept.

    Returns:
        The rows of `entities` in their order, and the service's columns by plain
        name, numbers as float32 (of interactions whole ones as they are); null where
        nothing was known at that moment, or only what is older than the view's TTL.

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
    from features.offline.retrieval import Entities, retrieved, views_of

    store, service = open_service(pipeline, settings)
    place = entities.column_names.index(EVENT_TIMESTAMP)
    table = entities.set_column(place, EVENT_TIMESTAMP, moments.cast(pa.timestamp("us", tz="UTC"), safe=False))
    asked = Entities.of(table, EVENT_TIMESTAMP)
    with registry_errors():
        views, refs = views_and_refs(store, service)
    with file_errors(pipeline):
        known = views_of(store.config, views, refs, False, (asked.earliest, asked.latest))
        found = retrieved(asked, known)
    if isinstance(pipeline.source, Interactions):  # moments, to the microsecond: no float32 holds them
        return found.combine_chunks()
    return as_numbers(found, entities.column_names).combine_chunks()


def views_and_refs(store: FeatureStore, service: FeatureService) -> tuple[list[FeatureView], list[str]]:
    """The feature views of a service as it projects them, and `view:feature` of each of its columns."""
    from feast.utils import _get_feature_views_to_use, _get_features

    refs: list[str] = _get_features(store.registry, store.project, service, allow_cache=True)
    views, _ = _get_feature_views_to_use(store.registry, store.project, service, allow_cache=True)
    return list(views), refs


def as_numbers(table: pa.Table, but: Collection[str]) -> pa.Table:
    """Whole numbers and truth values as float32, which is what models take; 1 is yes. Other columns stay.

    Args:
        table: features beside other columns.
        but: names of the other columns.
    """
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if field.name not in but and (pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
            # Through doubles, as online: of a large whole number the nearest float is another one without them.
            cast = table.column(place).cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)
            table = table.set_column(place, field.name, cast)
    return table


@contextmanager
def file_errors(pipeline: Pipeline) -> Iterator[None]:
    """Say of what cannot be read how the pipeline's files come to be."""
    try:
        yield
    except FilesChanged as error:
        raise FilesChanged(f"pipeline {pipeline.name}: {error}") from error
    except FeatureError as error:
        if pipeline.source is None:
            raise
        raise FeatureError(
            f"pipeline {pipeline.name} has no readable offline features ({error}): run its ingest step first"
        ) from error
