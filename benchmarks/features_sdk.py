"""Parts `online_sdk_100` and `online_sdk_1` of `make bench NAME=features`: 20 online features through Feast's SDK.

One feature view of 20 floats, its rows written by Feast's `write_to_online_store` into Feast's Redis store and into
ours, on one server. A read is `FeatureStore.get_online_features(…).to_dict()` for 100 random entities or for one: what
a program that uses Feast does, all its work included. `message` is the same up to Feast's protobuf message instead of
the dictionary, which is what its feature server sends on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.errors import StackError
from benchmarks.features_parts import Bench, Part, beside
from benchmarks.measuring import say

if TYPE_CHECKING:
    from feast import FeatureStore

FEATURES = tuple(f"feature_{number:02}" for number in range(20))
KEY, MOMENT, VIEW = "entity_id", "event_timestamp", "now"
REFERENCES = [f"{VIEW}:{name}" for name in FEATURES]
STORES = {"ours": "features.online_store.AlmanacOnlineStore", "peer": "redis"}
SEED = 21
WRITE_ROWS = 10_000  # of one call
REQUESTS = 500  # unlike ones, asked in turn
SECONDS = 2.0  # of each turn
CHECKED = 20  # requests whose answers are compared

Call = Callable[["FeatureStore", list[dict[str, int]]], Any]


def open_store(bench: Bench, who: str, part: str = "sdk") -> FeatureStore:
    """A Feast repository of a part's own with one of the online stores, on the benchmark's Redis."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float32

    from features.store import redis_connection

    folder = bench.folder / part / who
    folder.mkdir(parents=True)
    connection = redis_connection(bench.servers().need("redis_url"))
    config = RepoConfig(
        project=f"{part}_{who}",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": STORES[who], "connection_string": connection},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    entity = Entity(name="entity", join_keys=[KEY], value_type=ValueType.INT64)
    view = FeatureView(
        name=VIEW,
        entities=[entity],
        schema=[Field(name=name, dtype=Float32) for name in FEATURES],
        source=FileSource(path=str(folder / "nothing.parquet"), timestamp_field=MOMENT),
        ttl=timedelta(days=1),
    )
    store.apply([entity, view])
    return store


def write(store: FeatureStore, entities: int) -> None:
    """A row of every entity, by Feast's own call."""
    import pandas as pd

    random = np.random.default_rng(SEED)
    moment = datetime.now(UTC).replace(microsecond=0)
    for start in range(0, entities, WRITE_ROWS):
        keys = np.arange(start, min(start + WRITE_ROWS, entities))
        values = random.random((len(FEATURES), len(keys)), dtype=np.float32)
        columns = {KEY: keys, MOMENT: [moment] * len(keys), **dict(zip(FEATURES, values, strict=True))}
        store.write_to_online_store(VIEW, pd.DataFrame(columns))


def to_dict(store: FeatureStore, rows: list[dict[str, int]]) -> Any:
    """What is measured."""
    return store.get_online_features(features=REFERENCES, entity_rows=rows).to_dict()


def to_message(store: FeatureStore, rows: list[dict[str, int]]) -> Any:
    """The same as Feast's message."""
    return store.get_online_features(features=REFERENCES, entity_rows=rows).proto


def measured(call: Call, store: FeatureStore, requests: Iterator[list[dict[str, int]]]) -> dict[str, float]:
    """Rows a second and the time of a request, over some seconds."""
    call(store, next(requests))
    began = time.perf_counter()
    reads = rows = 0
    while (taken := time.perf_counter() - began) < SECONDS:
        asked = next(requests)
        call(store, asked)
        reads += 1
        rows += len(asked)
    return {"rate": rows / taken, "request_ms": 1_000 * taken / reads}


def check(stores: Mapping[str, FeatureStore], requests: list[list[dict[str, int]]]) -> None:
    """The answers of both are equal, value for value.

    Raises:
        StackError: they are not.
    """
    for asked in requests[:CHECKED]:
        found = {who: to_dict(store, asked) for who, store in stores.items()}
        if found["ours"] != found["peer"]:
            raise StackError("the two stores give unlike values: the benchmark measures nothing")


def read_part(bench: Bench) -> dict[str, Any]:
    """Both objects, on one pair of stores."""
    entities = bench.size(50_000, 500)
    stores = {who: open_store(bench, who) for who in STORES}
    for who, store in stores.items():
        say(f"writing {entities} rows with {STORES[who]}")
        write(store, entities)
    random = np.random.default_rng(SEED + 1)
    objects: dict[str, Any] = {}
    for rows in (100, 1):
        requests = [[{KEY: int(key)} for key in random.integers(0, entities, rows)] for _ in range(REQUESTS)]
        check(stores, requests)
        asked = cycle(requests)
        if bench.asked.profile:
            with bench.profiling(f"get_online_features of {rows}"):
                measured(to_dict, stores["ours"], asked)
            continue
        contenders = {
            name: partial(measured, call, stores[who], asked)
            for name, call, who in (
                ("ours", to_dict, "ours"),
                ("peer", to_dict, "peer"),
                ("ours_message", to_message, "ours"),
                ("peer_message", to_message, "peer"),
            )
        }
        found = bench.turns(contenders)
        objects[f"online_sdk_{rows}"] = beside(found, entities=entities)
    return objects


PARTS = (Part(names=("online_sdk_100", "online_sdk_1"), run=read_part),)
