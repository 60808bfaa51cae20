"""Feast's DuckDB offline store, with two changes: it sees archived events, and reads only rows that can matter.

The rows of a view are those of its files and those of the archive beside them
(`features.archive`), if it has one. Of two rows of one entity and event time
Feast takes the one created later.

Feast joins the entities with all history and discards afterwards what is later
than the entity's moment or older than the TTL. Here each view is first cut to
the time from the earliest moment less the TTL to the latest moment, which
DuckDB turns into skipped files and row groups: an hourly run costs the same
however long the history has grown.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis  # type: ignore[import-untyped]
from feast import FeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _read_data_source,
    _write_data_source,
)
from feast.infra.offline_stores.ibis import get_historical_features_ibis, pull_latest_from_table_or_query_ibis
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig

from features.archive import archived_files

if TYPE_CHECKING:
    import pandas as pd


class PrunedDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """DuckDB's options of Feast."""

    type: str = "features.offline_store.PrunedDuckDBOfflineStore"


class PrunedDuckDBOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """`DuckDBOfflineStore` whose point-in-time retrieval skips what no entity can see."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: BaseRegistry,
        project: str,
        **options: bool,
    ) -> RetrievalJob:
        """As Feast's, on the rows from the earliest moment less the TTL to the latest moment."""
        column = offline_utils.infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        earliest, latest = entity_df[column].min().to_pydatetime(), entity_df[column].max().to_pydatetime()
        ttls: dict[str, timedelta | None] = {}
        for view in feature_views:
            known = ttls.get(view.batch_source.name, view.ttl)
            ttls[view.batch_source.name] = max(known, view.ttl) if known and view.ttl else None

        def read(source: DataSource, repo_path: str) -> Any:
            ttl = ttls.get(source.name)
            if entity_df.empty:  # there is no time then
                table = _read_data_source(source, repo_path)
            else:
                table = _with_archive(source, repo_path, earliest - ttl if ttl else None, latest)
            moment = table[source.timestamp_field]
            table = table.filter(moment <= ibis.literal(latest))
            return table.filter(moment >= ibis.literal(earliest - ttl)) if ttl else table

        return get_historical_features_ibis(
            config=config,
            feature_views=feature_views,
            feature_refs=feature_refs,
            entity_df=entity_df,
            registry=registry,
            project=project,
            data_source_reader=read,
            data_source_writer=_write_data_source,
            staging_location=config.offline_store.staging_location,
            staging_location_endpoint_override=config.offline_store.staging_location_endpoint_override,
            **options,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig, data_source: DataSource, *, start_date: datetime, end_date: datetime, **columns: Any
    ) -> RetrievalJob:
        """As Feast's, with archived events."""
        return pull_latest_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            start_date=start_date,
            end_date=end_date,
            data_source_reader=lambda source, path: _with_archive(source, path, start_date, end_date),
            data_source_writer=_write_data_source,
            staging_location=config.offline_store.staging_location,
            staging_location_endpoint_override=config.offline_store.staging_location_endpoint_override,
            **columns,
        )


def _with_archive(source: DataSource, repo_path: str, earliest: datetime | None, latest: datetime) -> Any:
    """The rows of a source, and those of its archive that can lie in a time."""
    table = _read_data_source(source, repo_path)
    archived = archived_files(Path(source.path).parent, earliest, latest)
    if not archived:
        return table
    return table.union(ibis.read_parquet(archived).select(*table.columns).cast(table.schema()))
