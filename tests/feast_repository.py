"""A small Feast repository on disk: a feature_store.yaml, a file of definitions and a Parquet file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STORES = {
    "ours": ("features.offline_store.AlmanacOfflineStore", "features.online_store.AlmanacOnlineStore"),
    "feasts": ("duckdb", "redis"),
}
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
HOURS = 6
DRIVERS = (1, 2, 3)
ASKED = ["driver_stats:rate", "driver_stats:trips", "scaled:doubled"]
YAML = """\
project: {project}
provider: local
registry: registry.db
entity_key_serialization_version: 3
offline_store:
  type: {offline}
online_store:
  type: {online}
  connection_string: '{connection}'
"""
DEFINITIONS = """\
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
hourly = FileSource(name="hourly", path="{path}", timestamp_field="event_timestamp", created_timestamp_column="created")
driver_stats = FeatureView(
    name="driver_stats", entities=[driver],
    schema=[Field(name="rate", dtype=Float64), Field(name="trips", dtype=Int64)],
    source=PushSource(name="driver_push", batch_source=hourly),
)


@on_demand_feature_view(sources=[driver_stats], schema=[Field(name="doubled", dtype=Float64)], mode="python")
def scaled(inputs):
    return {{"doubled": [None if rate is None else 2 * rate for rate in inputs["rate"]]}}


everything = FeatureService(name="everything", features=[driver_stats, scaled])
"""


def write_repository(folder: Path, stores: str, connection: str) -> Path:
    """Make it, for one of `STORES`; returns the folder, which is named for them."""
    made = folder / stores
    made.mkdir()
    source = made / "hourly.parquet"
    moments = [BEGAN + timedelta(hours=hour) for hour in range(HOURS)]
    rows = [(driver, moment) for moment in moments for driver in DRIVERS]
    stamp = pa.timestamp("us", tz="UTC")
    columns: dict[str, Any] = {
        "driver_id": pa.array([driver for driver, _ in rows], pa.int64()),
        "rate": pa.array([driver + moment.hour / 10 for driver, moment in rows]),
        "trips": pa.array([100 * driver + moment.hour for driver, moment in rows], pa.int64()),
        "event_timestamp": pa.array([moment for _, moment in rows], stamp),
        "created": pa.array([moment for _, moment in rows], stamp),
    }
    pq.write_table(pa.table(columns), source)
    offline, online = STORES[stores]
    text = YAML.format(project=f"drivers_{stores}", offline=offline, online=online, connection=connection)
    (made / "feature_store.yaml").write_text(text)
    # Feast imports the file by its name: two repositories of one process have two names.
    (made / f"definitions_{stores}.py").write_text(DEFINITIONS.format(path=source))
    return made


def entity_rows() -> str:
    """What `feast get-historical-features` is asked, as JSON."""
    asked = [
        {"driver_id": driver, "event_timestamp": (BEGAN + timedelta(hours=hour, minutes=30)).isoformat()}
        for driver, hour in ((1, 0), (2, 3), (3, 5), (9, 1))
    ]
    return json.dumps(asked)
