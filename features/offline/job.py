"""Feast's retrieval job over Arrow: nothing is read before it is asked for, and then no row becomes a Python object."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from almanac.errors import FeatureError
from features.offline.sources import replace

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

EXPORT_ROWS_MAX = 1_000_000
"""Rows of one file of an export."""


class ArrowRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """What a question to the store will give.

    Args:
        config: Feast's, with our store's options.
        read: gives the result in batches; called for each evaluation.
        on_demand_feature_views: whose columns are computed from the result.
        full_feature_names: whether columns begin with their view's name.
        metadata: of the question, where it has some.
        explained: what will be read, a line each.
    """

    def __init__(
        self,
        *,
        config: RepoConfig,
        read: Callable[[], pa.RecordBatchReader],
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
        explained: Callable[[], list[str]] = list,
    ) -> None:
        self._config, self._read = config, read
        self._views = list(on_demand_feature_views or [])
        self._full, self._metadata, self._explained = full_feature_names, metadata, explained

    @property
    def full_feature_names(self) -> bool:
        """Whether columns begin with their view's name."""
        return self._full

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Whose columns Feast computes from the result."""
        return self._views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Features, keys and times of the question."""
        return self._metadata

    def explain(self) -> str:
        """What will be read of which source, for people."""
        return "\n".join(self._explained())

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """The result without on-demand columns, some rows at a time: memory stays bounded where the source allows."""
        yield from self._read()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._read().read_all()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Keep the result, on-demand columns included, in a file, a folder or a Postgres table.

        Raises:
            SavedDatasetLocationAlreadyExists: something is there, and may not be replaced.
        """
        replace(self._config, storage.to_data_source(), self.to_arrow(timeout=timeout), allow_overwrite)

    def supports_remote_storage_export(self) -> bool:
        """Whether `staging_location` is configured."""
        return bool(getattr(self._config.offline_store, "staging_location", None))

    def to_remote_storage(self) -> list[str]:
        """Write the result below `staging_location` as Parquet files; gives their paths.

        Raises:
            FeatureError: no such location is configured.
        """
        import pyarrow.dataset as ds

        place = getattr(self._config.offline_store, "staging_location", None)
        if not place:
            raise FeatureError("the result has nowhere to go: set staging_location below offline_store")
        override = getattr(self._config.offline_store, "staging_location_endpoint_override", None)
        filesystem, path = FileSource.create_filesystem_and_path(place, override or "")
        written: list[str] = []
        ds.write_dataset(
            self.to_arrow(),
            f"{path.rstrip('/')}/{uuid.uuid4().hex}",
            filesystem=filesystem,
            format="parquet",
            max_rows_per_file=EXPORT_ROWS_MAX,
            max_rows_per_group=EXPORT_ROWS_MAX,
            file_visitor=lambda file: written.append(file.path),
        )
        scheme = "s3://" if place.startswith("s3://") else ""
        return [f"{scheme}{name}" for name in sorted(written)]


def metadata_of(
    feature_refs: list[str], keys: list[str], earliest: datetime | None, latest: datetime | None
) -> RetrievalMetadata:
    """Feast's description of a question."""
    return RetrievalMetadata(features=feature_refs, keys=keys, min_event_timestamp=earliest, max_event_timestamp=latest)
