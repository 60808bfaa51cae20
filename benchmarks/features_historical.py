"""Parts `historical_300k` and `historical_10m` of `make bench NAME=features`: point-in-time retrieval of 20 features.

One feature view over one Parquet file: an hourly row of every key, in the order
of time; entity rows are random keys at random moments; a TTL of a day. Ours and
peer are `get_historical_features(entity_df=<pandas>).to_df()` of two Feast
repositories that differ in their offline store alone; `columnar` is the engine
below, Arrow in and out. Warm: from the third retrieval of a process on (at the
second, ours keeps an index of keys and times). Cold: the first one of a process
that has imported Feast and applied its definitions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import micros_of
from almanac.errors import StackError
from benchmarks.features_parts import Bench, Part, beside
from benchmarks.measuring import median, ratio, say

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast import FeatureStore

FEATURES = tuple(f"feature_{number:02}" for number in range(20))
KEY, MOMENT, CREATED, VIEW, ROW = "entity_id", "event_timestamp", "created", "history", "row"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000
TTL = timedelta(hours=24)
SEED = 20
COLD_ROUNDS_MAX = 3
COLD_SECONDS_MAX = 600
STORES = {"ours": "features.offline_store.AlmanacOfflineStore", "peer": "duckdb"}


def write_source(path: Path, keys: int, hours: int, features: tuple[str, ...] = FEATURES) -> None:
    """Hourly rows of every key: each hour once in another order, at a random moment of the hour; float32 features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(SEED)
    stamp = pa.timestamp("us", tz="UTC")
    began = micros_of(BEGAN)
    writer = None
    for hour in range(hours):
        times = began + hour * HOUR_US + np.sort(random.integers(0, HOUR_US, keys))
        values = {name: random.random(keys, dtype=np.float32) for name in features}
        stamps = {MOMENT: pa.array(times).cast(stamp), CREATED: pa.array(times + 1_000_000).cast(stamp)}
        table = pa.table({KEY: random.permutation(keys), **stamps, **values})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def entity_rows(rows: int, keys: int, hours: int) -> pa.Table:
    """Random keys at random moments, numbered."""
    import pyarrow as pa

    random = np.random.default_rng(SEED + 1)
    moments = micros_of(BEGAN) + random.integers(0, hours * HOUR_US, rows)
    stamps = pa.array(moments).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({KEY: random.integers(0, keys, rows), MOMENT: stamps, ROW: np.arange(rows)})


def open_store(folder: Path, path: Path, who: str) -> FeatureStore:
    """A Feast repository of its own over the file, with one of the offline stores."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float32

    settings = {
        "project": who,
        "provider": "local",
        "registry": str(folder / f"{who}.db"),
        "offline_store": {"type": STORES[who]},
        "online_store": None,
        "entity_key_serialization_version": 3,
    }
    store = FeatureStore(config=RepoConfig(**settings, repo_path=folder))
    entity = Entity(name="entity", join_keys=[KEY], value_type=ValueType.INT64)
    source = FileSource(
        name="file", path=str(path), file_format=ParquetFormat(), timestamp_field=MOMENT,
        created_timestamp_column=CREATED,
    )  # fmt: skip
    fields = [Field(name=name, dtype=Float32) for name in FEATURES]
    store.apply([entity, FeatureView(name=VIEW, entities=[entity], schema=fields, source=source, ttl=TTL)])
    return store


def retrieved(store: FeatureStore, entities: pd.DataFrame) -> pd.DataFrame:
    """What a user of Feast calls."""
    asked = [f"{VIEW}:{name}" for name in FEATURES]
    found: pd.DataFrame = store.get_historical_features(entity_df=entities, features=asked).to_df()
    return found


def columnar(path: Path, entities: pa.Table) -> pa.Table:
    """The engine below the SDK."""
    from features.asof import Files, View, join

    features = {name: name for name in FEATURES}
    view = View(
        name=VIEW, source=Files(paths=(str(path),)), keys={KEY: KEY}, timestamp=MOMENT, created=CREATED,
        features=features, ttl=TTL,
    )  # fmt: skip
    return join(entities, [view])


def check_same(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Refuse to compare two stores that answer differently, in any value of any row.

    Raises:
        StackError: names the column.
    """
    sorted_ = [frame.sort_values(ROW) for frame in (ours, theirs)]
    for name in (ROW, KEY, *FEATURES):
        one, other = (frame[name].to_numpy() for frame in sorted_)
        if len(one) != len(other) or not np.array_equal(one, other, equal_nan=True):
            raise StackError(f"ours and the peer differ in {name}: look at features/asof.py")


def timed(call: Callable[[], Any], rows: int) -> Callable[[], Mapping[str, Any]]:
    """A contender whose rate is rows a second."""

    def measure() -> Mapping[str, Any]:
        began = time.perf_counter()
        call()
        return {"rate": rows / (time.perf_counter() - began)}

    return measure


def historical(bench: Bench, name: str, rows: int, keys: int, hours: int) -> dict[str, Any]:
    """One part: `rows` entity rows over `keys` times `hours` source rows."""
    folder = bench.folder / name
    folder.mkdir()
    path = folder / "history.parquet"
    say(f"writing {keys * hours:,} source rows")
    write_source(path, keys, hours)
    table = entity_rows(rows, keys, hours)
    frame = table.to_pandas()
    ours = open_store(folder, path, "ours")
    mine = retrieved(ours, frame)
    retrieved(ours, frame)  # warm from here on
    if bench.asked.profile:
        with bench.profiling(f"{name}: get_historical_features"):
            retrieved(ours, frame)
        return {}
    peer = open_store(folder, path, "peer")
    check_same(mine, retrieved(peer, frame))
    del mine
    contenders = {
        "ours": timed(lambda: retrieved(ours, frame), rows),
        "columnar": timed(lambda: columnar(path, table), rows),
        "peer": timed(lambda: retrieved(peer, frame), rows),
    }
    found = beside(bench.turns(contenders), rows=rows, source_rows=keys * hours, features=len(FEATURES))
    found["ratio_peer_columnar"] = ratio(found["columnar"], found["peer"])
    return {name: found | {"cold": cold(bench, folder, (rows, keys, hours))}}


def cold(bench: Bench, folder: Path, world: tuple[int, int, int]) -> dict[str, Any]:
    """The first retrieval of new processes."""
    found: dict[str, list[Mapping[str, Any]]] = {who: [] for who in STORES}
    for _ in range(min(bench.asked.rounds, COLD_ROUNDS_MAX)):
        for who, results in found.items():
            command = [sys.executable, "-m", "benchmarks.features_historical", str(folder), who, *map(str, world)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COLD_SECONDS_MAX)
            if done.returncode != 0:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise StackError(f"a cold retrieval ended ({reason}): run the command {' '.join(command)}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            say(f"cold  {who:<16} rate {results[-1]['rate']:.0f}")
    ours, peer = (median(found[who], "rate") for who in ("ours", "peer"))
    return {"ours": ours, "peer": peer, "ratio_peer": ratio(ours, peer)}


def one_cold() -> None:
    """The process that `cold` starts: a retrieval, its rate as JSON."""
    folder, who, rows, keys, hours = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    store = open_store(folder, folder / "history.parquet", who)
    frame = entity_rows(rows, keys, hours).to_pandas()
    print(json.dumps(timed(lambda: retrieved(store, frame), rows)()))


def historical_300k(bench: Bench) -> Mapping[str, Any]:
    """300,000 entity rows over 50,000 keys of a day."""
    rows = bench.size(300_000, 3_000)
    return historical(bench, "historical_300k", rows, max(1, rows // 6), 24)


def historical_10m(bench: Bench) -> Mapping[str, Any]:
    """1 million entity rows over 10 million source rows: 100,000 keys of 100 hours."""
    rows = bench.size(1_000_000, 3_000)
    return historical(bench, "historical_10m", rows, max(1, rows // 10), 100)


PARTS: tuple[Part, ...] = (
    Part(names=("historical_300k",), run=historical_300k),
    Part(names=("historical_10m",), run=historical_10m),
)

if __name__ == "__main__":
    one_cold()
