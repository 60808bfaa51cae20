"""Two Feast repositories with the same definitions and the same rows: one on Feast's own Redis store, one on ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, Json, String, UnixTimestamp

OURS = "features.online_store.AlmanacOnlineStore"
NOW = datetime.now(UTC).replace(microsecond=250_000)
TTL = timedelta(hours=2)
ROWS = 40

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
shop = Entity(name="shop", join_keys=["shop_name"], value_type=ValueType.STRING)


def file_source(folder: Path, name: str) -> FileSource:
    """A file that the online side never reads."""
    return FileSource(
        name=f"{name}_file", path=str(folder / f"{name}.parquet"), timestamp_field="ts", created_timestamp_column="made"
    )


def driver_view(folder: Path, *more: Field) -> FeatureView:
    """Features of every plain type, a list among them."""
    return FeatureView(
        name="driver_stats",
        entities=[driver],
        ttl=TTL,
        schema=[
            Field(name="rate", dtype=Float32),
            Field(name="exact", dtype=Float64),
            Field(name="trips", dtype=Int64),
            Field(name="stars", dtype=Int32),
            Field(name="busy", dtype=Bool),
            Field(name="name", dtype=String),
            Field(name="photo", dtype=Bytes),
            Field(name="since", dtype=UnixTimestamp),
            Field(name="last_rates", dtype=Array(Float32)),
            Field(name="words", dtype=Array(String)),
            Field(name="note", dtype=Json),
            *more,
        ],
        source=PushSource(name="driver_push", batch_source=file_source(folder, "driver")),
    )


def definitions(folder: Path) -> list[Any]:
    """Views with one, with two and with no join keys, one computed on demand, and services that rename them."""
    stats = driver_view(folder)
    pairs = FeatureView(
        name="driver_shop",
        entities=[driver, shop],
        schema=[Field(name="visits", dtype=Int64)],
        source=file_source(folder, "pairs"),
    )
    world = FeatureView(
        name="world",
        entities=[],
        schema=[Field(name="temperature", dtype=Float32)],
        source=file_source(folder, "world"),
    )
    asked = RequestSource(name="asked", schema=[Field(name="factor", dtype=Int64)])

    @on_demand_feature_view(  # type: ignore[untyped-decorator]
        sources=[stats[["exact"]], asked], schema=[Field(name="scaled", dtype=Float64)], mode="python", singleton=True
    )
    def scaled(inputs: dict[str, Any]) -> dict[str, Any]:
        exact, factor = inputs["exact"], inputs["factor"]
        return {"scaled": None if exact is None else exact * factor}

    service = FeatureService(name="all", features=[stats[["rate", "name"]], pairs, world, scaled])
    joined = FeatureService(
        name="two_drivers",
        features=[
            stats[["trips"]].with_name("first").with_join_key_map({"driver_id": "first_id"}),
            stats[["trips"]].with_name("second").with_join_key_map({"driver_id": "second_id"}),
        ],
    )
    return [driver, shop, stats, pairs, world, scaled, service, joined]


def driver_rows(first: int = ROWS) -> pd.DataFrame:
    """Rows with NaN, infinities and nulls in them; the last of all is beyond the view's ttl."""
    random, rows = np.random.default_rng(3), ROWS
    frame = pd.DataFrame(
        {
            "driver_id": np.arange(rows),
            "rate": random.random(rows, dtype=np.float32),
            "exact": random.random(rows),
            "trips": random.integers(-(2**62), 2**62, rows),
            "stars": random.integers(-5, 6, rows).astype(np.int32),
            "busy": random.random(rows) < 0.5,
            "name": [f"driver {number} é" for number in range(rows)],
            "photo": [bytes([number, 0, 255]) for number in range(rows)],
            "since": [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(rows)],
            "last_rates": [[float(number), 0.5] for number in range(rows)],
            "words": [["a", "é" * number] for number in range(rows)],
            "note": [f'{{"of": {number}}}' for number in range(rows)],
            "ts": [NOW - timedelta(minutes=number) for number in range(rows)],
            "made": [NOW] * rows,
        }
    )
    frame.loc[3, "exact"], frame.loc[4, "exact"], frame.loc[5, "exact"] = np.nan, np.inf, -np.inf
    frame.loc[6, ["name", "photo", "last_rates", "note"]] = None
    frame.loc[rows - 1, "ts"] = NOW - 2 * TTL
    return frame.head(first)


@dataclass(frozen=True)
class Pair:
    """The two stores."""

    feasts: FeatureStore
    ours: FeatureStore

    def both(self) -> tuple[FeatureStore, FeatureStore]:
        """Feast's, then ours."""
        return self.feasts, self.ours


def open_store(folder: Path, kind: str, **online: Any) -> FeatureStore:
    """An empty Feast repository of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = online.pop("versions", False)
    config = RepoConfig(
        project=f"p{abs(hash(folder)) % 10**9}",
        provider="local",
        registry={
            "path": str(folder / f"{kind.rsplit('.')[-1]}.db"),
            "enable_online_feature_view_versioning": versions,
        },
        online_store={"type": kind, **online},
        entity_key_serialization_version=3,
    )
    return FeatureStore(config=config)


def open_pair(folder: Path, **online: Any) -> Pair:
    """Both stores, with the definitions and rows of all views."""
    pair = Pair(
        feasts=open_store(folder / "feasts", "redis", **online), ours=open_store(folder / "ours", OURS, **online)
    )
    for store in pair.both():
        store.apply(definitions(folder))
        store.push("driver_push", driver_rows())
        times = {"ts": [NOW] * 3, "made": [NOW] * 3}
        pairs = {"driver_id": [1, 1, 2], "shop_name": ["a", "b", "a"], "visits": [11, 12, 21], **times}
        store.write_to_online_store("driver_shop", pd.DataFrame(pairs))
        write_world(store)
    return pair


def write_world(store: FeatureStore) -> None:
    """The row of the view without entities, as materialization writes it: `write_to_online_store` leaves out the name
    for no entity, by which Feast's own store then does not find it."""
    key = EntityKey(join_keys=[DUMMY_ENTITY_ID], entity_values=[Value(string_val=DUMMY_ENTITY_VAL)])
    row = (key, {"temperature": Value(float_val=280.5)}, NOW, NOW)
    store._get_provider().online_write_batch(store.config, store.get_feature_view("world"), [row], None)
