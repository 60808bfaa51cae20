"""Parts `online_100`, `online_1000` and `redis_memory_ratio`: 20 online features of many entities below Feast's SDK.

One feature view of 20 floats, 50,000 entities, in Feast's Redis store and packed in ours, on one server. Ours is what
stream and lookups read by: entities as an array in, NumPy columns and a status for each row out, the view's ttl
honoured. The peer is `FeatureStore.get_online_features(…).to_dict()`, the only way that Feast has. The floor is one
MGET of the same values, its keys made beforehand, nothing done with the answer. Memory is Redis's `used_memory`, less
what it was before the rows came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.errors import StackError
from benchmarks.features_parts import Bench, Part, beside
from benchmarks.features_sdk import FEATURES, KEY, STORES, VIEW, open_store, to_dict, write
from benchmarks.measuring import say

if TYPE_CHECKING:
    from feast import FeatureStore

    from features.online_reading import Features, Reader

ENTITIES, ENTITIES_QUICK = 50_000, 500
UNKNOWN = 20  # one entity of so many is not there
SEED = 31
REQUESTS = 200  # unlike ones, asked in turn
SECONDS = 2.0  # of each turn
CHECKED = 10  # requests whose answers are compared
SETTLED_SECONDS = 0.3  # Redis moves its table of keys bit by bit
SETTLED_TRIES_MAX = 50

Entities = NDArray[np.int64]


def reader_of(store: FeatureStore) -> Reader:
    """What the columnar path reads the view by."""
    from feast import FeatureService

    from features.online_reading import Reader
    from features.reading_plans import plan_of

    return Reader(plan_of(store, FeatureService(name="online", features=[store.get_feature_view(VIEW)])))


def read_ours(client: Any, reader: Reader, entities: Entities) -> Features:
    """What is measured."""
    from features.online_reading import read

    return read(client, reader, entities, datetime.now(UTC))


def read_feasts(store: FeatureStore, entities: Entities) -> dict[str, list[Any]]:
    """The same by Feast."""
    found: dict[str, list[Any]] = to_dict(store, [{KEY: key} for key in entities.tolist()])
    return found


def measured(call: Callable[[Any], Any], requests: Iterator[Any]) -> dict[str, float]:
    """Rows a second and the time of a request, over some seconds."""
    call(next(requests))
    began = time.perf_counter()
    reads = rows = 0
    while (taken := time.perf_counter() - began) < SECONDS:
        asked = next(requests)
        call(asked)
        reads += 1
        rows += len(asked)
    return {"rate": rows / taken, "request_ms": 1_000 * taken / reads}


def check(client: Any, reader: Reader, store: FeatureStore, requests: list[Entities]) -> None:
    """The answers of both are equal, value for value; who is not there is null in both.

    Raises:
        StackError: they are not.
    """
    for asked in requests[:CHECKED]:
        ours, theirs = read_ours(client, reader, asked), read_feasts(store, asked)
        for name in FEATURES:
            expected = np.array([np.nan if value is None else value for value in theirs[name]], dtype=np.float64)
            if not np.array_equal(ours.columns[name], expected, equal_nan=True):
                raise StackError(f"the two stores give unlike values of {name}: the benchmark measures nothing")


def settled_bytes(client: Any) -> int:
    """Redis's memory once it no longer changes."""
    before = -1
    for _ in range(SETTLED_TRIES_MAX):
        now = int(client.info("memory")["used_memory"])
        if abs(now - before) < 1_024:
            break
        before = now
        time.sleep(SETTLED_SECONDS)
    return now


def read_part(bench: Bench) -> dict[str, Any]:
    """All three objects, on one pair of stores."""
    import redis

    entities = bench.size(ENTITIES, ENTITIES_QUICK)
    objects: dict[str, Any] = {}
    with redis.Redis.from_url(bench.servers().need("redis_url")) as client:
        stores, memory = {}, {}
        for who in STORES:
            stores[who] = open_store(bench, who, "online")
            before = settled_bytes(client)
            say(f"writing {entities} rows with {STORES[who]}")
            write(stores[who], entities)
            memory[who] = (settled_bytes(client) - before) / entities
        reader = reader_of(stores["ours"])
        random = np.random.default_rng(SEED)
        for rows in (100, 1_000):
            among = entities + entities // UNKNOWN
            requests = [random.integers(0, among, rows, dtype=np.int64) for _ in range(REQUESTS)]
            check(client, reader, stores["peer"], requests)
            if bench.asked.profile:
                with bench.profiling(f"columnar read of {rows}"):
                    measured(partial(read_ours, client, reader), cycle(requests))
                continue
            named = [reader.keys(asked) for asked in requests]
            contenders = {
                "ours": partial(measured, partial(read_ours, client, reader), cycle(requests)),
                "peer": partial(measured, partial(read_feasts, stores["peer"]), cycle(requests)),
                "floor": partial(measured, client.mget, cycle(named)),
            }
            objects[f"online_{rows}"] = beside(bench.turns(contenders), entities=entities)
    if not bench.asked.profile:
        objects["redis_memory_ratio"] = memory["ours"] / memory["peer"]
        objects["redis_memory"] = {f"{who}_bytes_per_entity": taken for who, taken in memory.items()}
    return objects


PARTS = (Part(names=("online_100", "online_1000", "redis_memory_ratio"), run=read_part),)
