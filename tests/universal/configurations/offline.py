"""Our offline store for Feast's tests: over files, over folders of files, over Postgres, and behind Feast's server.

Feast runs some tests with "file" alone, and with files where a test does not ask for an offline store: those get our
store too.
"""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import PostgreSQLOfflineStoreConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.infra.utils.postgres.connection_utils import df_to_postgres_table

from features.offline_store import AlmanacOfflineStoreConfig
from tests.universal.feature_repos.universal.data_sources.file import (
    FileDataSourceCreator,
    FileParquetDatasetSourceCreator,
    RemoteOfflineTlsStoreDataSourceCreator,
)


def _server():
    parts = urlsplit(os.environ["FEAST_TESTS_POSTGRES"])
    return {
        "host": parts.hostname,
        "port": parts.port,
        "database": parts.path.strip("/"),
        "user": unquote(parts.username),
        "password": unquote(parts.password),
        "sslmode": "disable",
    }


def _ours(creator):
    return AlmanacOfflineStoreConfig(postgres=_server())


FileDataSourceCreator.create_offline_store_config = _ours


class PostgresDataSourceCreator(FileDataSourceCreator):
    """Queries of a Postgres; what is kept (saved datasets, logs) goes to files."""

    def create_data_source(
        self, df, destination_name, created_timestamp_column="created_ts", field_mapping=None, timestamp_field="ts"
    ):
        table = self.get_prefixed_table_name(destination_name)
        df_to_postgres_table(PostgreSQLOfflineStoreConfig(**_server()), df, table)
        return PostgreSQLSource(
            name=table,
            query=f"SELECT * FROM {table}",
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping or {"ts_1": "ts"},
        )

    def get_prefixed_table_name(self, suffix):
        return f"{self.project_name}_{suffix}"


AVAILABLE_OFFLINE_STORES = [
    ("local", FileDataSourceCreator),
    ("local", FileParquetDatasetSourceCreator),
    ("local", PostgresDataSourceCreator),
    ("local", RemoteOfflineTlsStoreDataSourceCreator),
]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
