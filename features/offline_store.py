"""A Feast offline store on columns: Parquet files and Postgres, joined point in time by `features.asof`.

Chosen in `feature_store.yaml`, without anything else of this project:

    offline_store:
      type: features.offline_store.AlmanacOfflineStore
      host: db.example.org      # this and the following only for PostgreSQLSource and entities given as SQL;
      database: features        # the options are those of Feast's own postgres store
      user: feast
      password: ${FEAST_PASSWORD}
      staging_location: /exports  # where `to_remote_storage` writes; or s3://…

Views of one retrieval may stand on files and on Postgres at once. Entities are
a pandas DataFrame, an Arrow table, SQL for Postgres, or none (every row between
`start_date` and `end_date`). A retrieval reads nothing before it is evaluated,
and its `to_arrow` goes through no pandas.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.utils import compute_non_entity_date_range
from typing_extensions import override

from almanac.errors import FeatureError
from features import parquet_files
from features.asof import Files, View, latest, paths_of
from features.offline.job import ArrowRetrievalJob, metadata_of
from features.offline.kinds import agreed, as_declared, kinds_of, typed
from features.offline.retrieval import (
    Entities,
    check_keys,
    entities_between,
    entities_of,
    keys_of,
    retrieved,
    views_of,
    widened,
)
from features.offline.sources import append, opened, readable, rows
from features.schemas import as_declared as as_declared_rows

if TYPE_CHECKING:
    import pyarrow as pa


class AlmanacOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Options below `offline_store`; all may be left out.

    Attributes:
        type: this store's class path.
        staging_location, staging_location_endpoint_override: where exports go.
        more_files: dotted path of a function (folder of a FileSource, earliest, latest) -> paths of further Parquet
            files whose rows belong to the source; either time may be None.
        host, port, database, …: Postgres, as for Feast's own postgres store.
    """

    type: str = "features.offline_store.AlmanacOfflineStore"
    more_files: str | None = None
    host: str | None = None
    port: int = 5432
    database: str | None = None
    db_schema: str = "public"
    user: str | None = None
    password: str | None = None
    sslmode: str | None = "prefer"
    sslkey_path: str | None = None
    sslcert_path: str | None = None
    sslrootcert_path: str | None = None
    keepalives_idle: int | None = None


class AlmanacOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's contract for offline stores; what Feast monitors of features is kept as its DuckDB store keeps it."""

    supports_filter_by_created_timestamp = True

    @override
    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The features of entities as they were at their moments.

        Args:
            entity_df: pandas DataFrame, Arrow table, SQL for Postgres; None: what the views have in a time.
            filter_by_created_timestamp: a row counts only if it was also written by the moment.
            start_date, end_date: of that time; by default the longest TTL (or 30 days) before now, and now.

        Raises:
            FeastEntityDFMissingColumnsError, EntityTimestampInferenceException: the entities lack a column.
            FeatureError: when evaluated, a source cannot be read or does not have what its view says.
        """
        if entity_df is None:
            start, end = compute_non_entity_date_range(feature_views, start_date, end_date)
            ask: Callable[[], Entities] = partial(entities_between, config, feature_views, start, end)
            keys = sorted({name for view in feature_views for name in keys_of(view).values()})
            bounds: tuple[datetime | None, datetime | None] = (start, end)
        else:
            given = entities_of(config, entity_df)
            check_keys(given, feature_views)
            ask, keys, bounds = (lambda: given), given.keys, (given.earliest, given.latest)

        def read() -> pa.RecordBatchReader:
            views = views_of(config, feature_views, feature_refs, full_feature_names, bounds)
            return widened(retrieved(ask(), views, filter_by_created_timestamp), views).to_reader()

        return ArrowRetrievalJob(
            config=config,
            read=read,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=metadata_of(feature_refs, keys, *bounds),
            explained=lambda: [
                explained(view) for view in views_of(config, feature_views, feature_refs, full_feature_names, bounds)
            ],
        )

    @override
    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity in a time, ends included; columns by the source's names, as views declare them.

        Without feature columns all of the source's are given.
        """

        def read() -> pa.RecordBatchReader:
            source = opened(config, data_source, earliest=start_date, latest=end_date)
            kinds = kinds_of(config, data_source)
            known = {*join_key_columns, timestamp_field, created_timestamp_column}
            features = feature_name_columns or [name for name in source.schema.names if name not in known]
            view = View(
                name=data_source.name,
                source=source.rows,
                keys={name: name for name in join_key_columns},
                timestamp=timestamp_field,
                created=created_timestamp_column or None,
                features={name: name for name in features},
                kinds=agreed(kinds),
            )
            order = [*join_key_columns, *features, timestamp_field]
            order += [created_timestamp_column] if created_timestamp_column else []
            found = as_declared(source, kinds, latest(view, _aware(start_date), _aware(end_date)))
            return _ordered(found, order, typed(source.schema, kinds), join_key_columns)

        return ArrowRetrievalJob(config=config, read=read)

    @override
    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows of a time, ends included; columns by the source's names, as views declare them."""

        def read() -> pa.RecordBatchReader:
            source = opened(config, data_source, earliest=start_date, latest=end_date)
            named = [*join_key_columns, *feature_name_columns, timestamp_field]
            named += [created_timestamp_column] if created_timestamp_column else []
            order = list(dict.fromkeys(named if feature_name_columns else [*named, *source.schema.names]))
            start, end = (moment and _aware(moment) for moment in (start_date, end_date))
            kinds = kinds_of(config, data_source)
            found = as_declared(source, kinds, rows(source, order, timestamp_field, start, end))
            return _ordered(found, order, typed(source.schema, kinds), join_key_columns)

        return ArrowRetrievalJob(config=config, read=read)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Add rows to a view's batch source: to its table or file, or as one more file of its folder.

        Raises:
            ValueError: the columns are not those of the source, in its order.
            FeatureError: a column cannot be of the source's type, or a value is not what the view declares, so that
                nobody could read it; nothing was written.
        """
        if feature_view.batch_source is None:
            raise ValueError(f"feature view {feature_view.name} has no batch source: give it one to write to")
        names = opened(config, feature_view.batch_source).schema.names
        if names != table.column_names:
            raise ValueError(f"rows of {feature_view.name} have columns {table.column_names}, its source has {names}")
        own = {name: column for column, name in (feature_view.batch_source.field_mapping or {}).items()}
        kinds = {own.get(each.name, each.name): each.dtype.to_value_type().name for each in feature_view.features}
        as_declared_rows(table, kinds, f"the rows for view {feature_view.name}", ())
        append(config, feature_view.batch_source, table)
        if progress is not None:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add served features to the destination's folder as further files, partitioned as it says.

        Raises:
            FeatureError: the destination is no folder of files.
        """
        import pyarrow.dataset as ds

        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise FeatureError(
                f"logs go to a FileLoggingDestination here, not to a {type(destination).__name__}: name a folder"
            )
        place = FileSource.get_uri_for_file_path(config.repo_path, destination.path)
        filesystem, path = FileSource.create_filesystem_and_path(place, destination.s3_endpoint_override)
        ds.write_dataset(
            parquet_files.dataset(_written(data)) if isinstance(data, Path) else data,
            path,
            filesystem=filesystem,
            format="parquet",
            basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
            partitioning=destination.partition_by or None,
            existing_data_behavior="overwrite_or_ignore",
        )

    @staticmethod
    def compute_monitoring_metrics(config: RepoConfig, data_source: DataSource, *asked: Any, **options: Any) -> Any:
        """Feast's statistics of columns: by its DuckDB code over a file or a pattern.

        Raises:
            NotImplementedError: of other sources; Feast then computes them from what `pull_all…` gives.
        """
        _need_monitored_by_duckdb(config, data_source)
        return DuckDBOfflineStore.compute_monitoring_metrics(config, data_source, *asked, **options)

    @staticmethod
    def get_monitoring_max_timestamp(config: RepoConfig, data_source: DataSource, timestamp_field: str) -> Any:
        """The newest event time of a file or a pattern, by Feast's DuckDB code.

        Raises:
            NotImplementedError: of other sources; Feast then looks for it in what `pull_all…` gives.
        """
        _need_monitored_by_duckdb(config, data_source)
        return DuckDBOfflineStore.get_monitoring_max_timestamp(config, data_source, timestamp_field)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Names and types of a source's columns; of a pattern or folder those of its first file."""
        if isinstance(data_source, FileSource):
            return [(field.name, str(field.type)) for field in opened(config, data_source).schema]
        found: Iterable[tuple[str, str]] = data_source.get_table_column_names_and_types(config)
        return found


def explained(view: View) -> str:
    """What a retrieval reads of a view, in a line."""
    if isinstance(view.source, Files):
        files = paths_of(view.source, f"view {view.name}")
        what = files[0] if len(files) == 1 else f"{len(files)} Parquet files"
    else:
        what = "Postgres"
    ttl = f"at most {view.ttl} old" if view.ttl else "of any age"
    keys = ", ".join(view.keys.values()) or "nothing: it holds for all"
    return f"{view.name}: {len(view.features)} columns of {what}, joined on {keys}, {ttl}"


def _written(data: Path) -> list[str]:
    """The Parquet files of a path."""
    return sorted(map(str, data.rglob("*.parquet"))) if data.is_dir() else [str(data)]


def _need_monitored_by_duckdb(config: RepoConfig, source: DataSource) -> None:
    """Refuse a source that Feast's code over DuckDB cannot read, or that takes too much memory."""
    path = FileSource.get_uri_for_file_path(config.repo_path, source.path) if isinstance(source, FileSource) else ""
    if not path or Path(path).is_dir():
        raise NotImplementedError(f"source {source.name} is not one Parquet file or a pattern of them")
    files = opened(config, source).rows
    assert isinstance(files, Files)  # noqa: S101  it is a FileSource
    what = f"source {source.name}"
    with readable(source.name):
        parquet_files.need_room(paths_of(files, what), None, filesystem=files.filesystem)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _ordered(
    batches: Iterable[pa.RecordBatch], order: list[str], schema: pa.Schema, join_keys: list[str]
) -> pa.RecordBatchReader:
    """Batches with columns in an order and of the source's types; without join keys, Feast's stand-in for one."""
    import pyarrow as pa

    fields = [schema.field(name).remove_metadata() for name in dict.fromkeys(order)]
    whole = pa.schema(fields if join_keys else [*fields, pa.field(DUMMY_ENTITY_ID, pa.string())])

    def parts() -> Iterable[pa.RecordBatch]:
        for batch in batches:
            columns = [batch.column(field.name).cast(field.type, safe=False) for field in fields]
            stand_in = [] if join_keys else [pa.array([DUMMY_ENTITY_VAL] * batch.num_rows, pa.string())]
            yield pa.RecordBatch.from_arrays([*columns, *stand_in], schema=whole)

    return pa.RecordBatchReader.from_batches(whole, parts())
