"""Feast's own DuckDB store over files: what fails with it too is not ours to mend."""

from __future__ import annotations

from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig

from tests.universal.feature_repos.universal.data_sources.file import FileDataSourceCreator


class DuckDBDataSourceCreator(FileDataSourceCreator):
    """Parquet files."""

    def create_offline_store_config(self):
        return DuckDBOfflineStoreConfig()


AVAILABLE_OFFLINE_STORES = [("local", DuckDBDataSourceCreator)]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
