"""A Feast repository for tests of stores: `trips` in Parquet files, `city` in a Postgres table, a service of both."""

from __future__ import annotations

import math
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, RequestSource
from feast.data_format import ParquetFormat
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, String
from feast.value_type import ValueType

from almanac.clock import HOUR

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
UTC_TIMES = pa.timestamp("us", "UTC")


def at(*hours: float) -> pa.Array:
    """Times, in hours from noon."""
    return pa.array([NOON + hour * HOUR for hour in hours], UTC_TIMES)


TRIPS = pa.table(
    {  # of driver 1 two rows speak of one moment; the second was written later
        "driver_id": pa.array([1, 1, 1, 2], pa.int64()),
        "event_timestamp": at(-5, -2, -2, -1),
        "created": at(-5, -2, -1, -1),
        "trips": pa.array([1.0, 2.0, 3.0, math.nan]),
        "raw_rate": pa.array([0.1, 0.2, 0.3, None]),
    }
)
CITIES = [("york", -24, 10, "north"), ("york", -3, 11, "north"), ("bath", -30, 20, None)]


class World:
    """A Feast repository with our store: `trips` in files, `city` in a Postgres table."""

    def __init__(self, folder: Path, postgres_url: str) -> None:
        self.folder, self.postgres_url = folder, postgres_url
        (folder / "trips").mkdir()
        pq.write_table(TRIPS.slice(0, 2), folder / "trips" / "a.parquet")
        pq.write_table(TRIPS.slice(2), folder / "trips" / "b.parquet")
        self.table = f"city_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"CREATE TABLE {self.table} (town text, seen timestamptz, people numeric, region text)")
            for town, hours, people, region in CITIES:
                connection.execute(
                    f"INSERT INTO {self.table} VALUES (%s, %s, %s, %s)", (town, NOON + hours * HOUR, people, region)
                )
        parts = urlsplit(postgres_url)
        self.options = {
            "type": "features.offline_store.AlmanacOfflineStore",
            "host": parts.hostname,
            "port": parts.port,
            "database": parts.path.strip("/"),
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "staging_location": str(folder / "exports"),
        }
        self.store = self.open(self.options)
        self.driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        self.town = Entity(name="town", join_keys=["town"], value_type=ValueType.STRING)
        self.trips = FeatureView(
            name="trips",
            entities=[self.driver],
            ttl=4 * HOUR,
            schema=[Field(name="trips", dtype=Float64), Field(name="rate", dtype=Float64)],
            source=FileSource(
                name="trips_files",
                path=str(folder / "trips"),
                file_format=ParquetFormat(),
                timestamp_field="event_timestamp",
                created_timestamp_column="created",
                field_mapping={"raw_rate": "rate"},
            ),
        )
        self.city = FeatureView(
            name="city",
            entities=[self.town],
            ttl=timedelta(0),
            schema=[Field(name="people", dtype=Float64), Field(name="region", dtype=String)],
            source=PostgreSQLSource(name="city_table", table=self.table, timestamp_field="seen"),
        )
        asked = RequestSource(name="asked", schema=[Field(name="bonus", dtype=Float64)])

        @on_demand_feature_view(
            sources=[self.trips, asked], schema=[Field(name="trips_and_bonus", dtype=Float64)], mode="pandas"
        )
        def with_bonus(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"trips_and_bonus": inputs["trips"] + inputs["bonus"]})

        self.service = FeatureService(
            name="everything",
            features=[self.trips, self.city],
            logging_config=LoggingConfig(destination=FileLoggingDestination(path=str(folder / "logs"))),
        )
        self.store.apply([self.driver, self.town, self.trips, self.city, with_bonus, self.service])

    def open(self, options: dict[str, Any]) -> FeatureStore:
        """The repository with other options of the offline store."""
        return FeatureStore(
            config=RepoConfig(
                project="world",
                provider="local",
                registry=str(self.folder / "registry.db"),
                repo_path=self.folder,
                offline_store=options,
                online_store={"type": "sqlite", "path": str(self.folder / "online.db")},
                entity_key_serialization_version=3,
            )
        )

    def asked(self) -> pa.Table:
        """Entities: driver 1 at noon and when both rows have expired, driver 2, and one that nobody knows."""
        return pa.table(
            {
                "driver_id": pa.array([1, 1, 2, 9], pa.int64()),
                "town": pa.array(["york", "bath", "york", None]),
                "event_timestamp": at(0, 3, 0, 0),
                "label": pa.array([1, 2, 3, 4], pa.int8()),
            }
        )
