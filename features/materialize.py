"""Materialization: the newest offline features of each entity brought into the online store."""

from __future__ import annotations

from datetime import datetime

from almanac.clock import need_utc
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.layout import STATIC_SINCE
from features.offline import file_errors
from features.online import redis_errors, views_of
from features.store import open_service, registry_errors


def materialize(pipeline: Pipeline, settings: Settings, as_of: datetime) -> int:
    """Write the latest row of each view at or before `as_of` into Redis; a newer row there stays.

    Both halves are Feast's: the offline store's latest rows, and a write to the
    online store. Its `materialize`, which also notes every run in the registry,
    is not used: a death between its two notes bars the view from materializing
    for good, and the notes grow without end.

    Returns:
        Rows handed to Redis, over all views.

    Raises:
        FeatureError: no features were ingested, or the service is not registered.
        Unavailable: Redis or the registry does not answer.
    """
    from feast.infra.provider import get_provider

    from features.reading_plans import write_plans

    as_of = need_utc(as_of)
    settings.need("redis_url")
    store, service = open_service(pipeline, settings)
    with registry_errors(), file_errors(pipeline), redis_errors():
        provider = get_provider(store.config)
        found = []
        for view in views_of(store, service):
            source = view.batch_source
            latest = provider.offline_store.pull_latest_from_table_or_query(
                config=store.config,
                data_source=source,
                join_key_columns=view.join_keys,
                feature_name_columns=[field.name for field in view.features],
                timestamp_field=source.timestamp_field,
                created_timestamp_column=source.created_timestamp_column,
                start_date=as_of - view.ttl if view.ttl else STATIC_SINCE,
                end_date=as_of,
            ).to_df()
            found.append((view, latest.sort_values(list(view.join_keys))))
        # All reading is done before the first row is written, and entities are written in order: whoever reads
        # meanwhile meets a half-filled store for a short time only, and knows it by its last entity.
        for view, latest in found:
            if len(latest):
                store.write_to_online_store(view.name, latest)
        write_plans(store, settings, [service])  # an emptied Redis has it back with the features
    return sum(len(latest) for _, latest in found)
