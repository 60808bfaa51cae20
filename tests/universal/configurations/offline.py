"""Our offline store for Feast's tests: over files, over folders of files, and over Postgres.

Feast runs some tests with "file" alone, and with files where a test does not ask for an offline store: those get our
store too.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
from feast import FileSource
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import PostgreSQLOfflineStoreConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.infra.utils.postgres.connection_utils import df_to_postgres_table

from features.offline_store import AlmanacOfflineStoreConfig
from tests.universal.feature_repos.universal.data_sources.file import (
    FileDataSourceCreator,
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
    return AlmanacOfflineStoreConfig(**_server())


FileDataSourceCreator.create_offline_store_config = _ours


class FolderDataSourceCreator(FileDataSourceCreator):
    """Folders of Parquet files, one of them in a folder within. (Feast's own creator of folders asks pyarrow for what
    it no longer has.)
    """

    def create_data_source(self, df, destination_name, *args, **kwargs):
        source = super().create_data_source(df, destination_name, *args, **kwargs)
        folder = Path(tempfile.mkdtemp(prefix=self.project_name))
        self.dirs.append(str(folder))
        table = pq.read_table(source.path)
        (folder / "later").mkdir()
        pq.write_table(table.slice(0, len(table) // 2), folder / "first.parquet")
        pq.write_table(table.slice(len(table) // 2), folder / "later" / "second.parquet")
        return FileSource(
            path=str(folder),
            file_format=source.file_format,
            timestamp_field=source.timestamp_field,
            created_timestamp_column=source.created_timestamp_column,
            field_mapping=source.field_mapping,
        )


class PostgresDataSourceCreator(FileDataSourceCreator):
    """Tables of a Postgres; what is kept (saved datasets, logs) goes to files."""

    def create_data_source(
        self, df, destination_name, created_timestamp_column="created_ts", field_mapping=None, timestamp_field="ts"
    ):
        table = self.get_prefixed_table_name(destination_name)
        plain = self.serialize_complex_columns(df)
        df_to_postgres_table(PostgreSQLOfflineStoreConfig(**_server()), plain, table)
        source = PostgreSQLSource(
            name=table,
            table=table,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping or {"ts_1": "ts"},
        )
        source.table = table  # by this Feast's tests of entities given as SQL know a source that SQL can ask
        return source

    def get_prefixed_table_name(self, suffix):
        return f"{self.project_name}_{suffix}"


AVAILABLE_OFFLINE_STORES = [
    ("local", FileDataSourceCreator),
    ("local", FolderDataSourceCreator),
    ("local", PostgresDataSourceCreator),
]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
