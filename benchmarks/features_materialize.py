"""Part `materialize` of `make bench NAME=features`: the newest row of each entity from files into Redis.

Each turn begins with an empty Redis and without watermarks. Peer: `FeatureStore.materialize` on Feast's own Redis
and DuckDB stores. Ours: a whole run from definitions that were read to moved watermarks. Floor: the newer-wins
script alone, sent keys and values that were packed before. Three rows of history for each entity lie in the files.
The peer has a sixth of the entities, for it takes a hundred times as long and is no faster with more.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Pipeline, horizons, hours, minutes
from almanac.settings import Settings
from benchmarks.features_parts import Bench, Part, beside
from benchmarks.measuring import say
from features.materialize.plan import Asked
from features.materialize.run import Materialization
from features.materialize.source import Source
from features.materialize.writer import PackedWriter, keys_of, layout_of

ENTITIES = 300_000
ENTITIES_QUICK = 6_000
PEER_SHARE = 6
"""The peer has the entities that are below the whole number divided by this."""
FEATURES = 20
HISTORY = 3
"""Rows of each entity in the files."""
COMPARED = 200
"""Entities whose values are compared between peer and ours."""
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
ROWS_PER_CALL = 1_000  # of the floor's script, as ours
CALLS_PER_TRIP = 8
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float32

measured_item = Entity(name="measured_item", join_keys=["item_id"], value_type=ValueType.INT64)
facts = FeatureView(
    name="item_facts", entities=[measured_item], ttl=timedelta(days=2),
    source=FileSource(
        name="item_file", path="{path}", file_format=ParquetFormat(), timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    ),
    schema=[Field(name=f"f{{n}}", dtype=Float32) for n in range({features})],
)
items_v1 = FeatureService(name="items_v1", features=[facts])
"""
PEER = """
project: peer
provider: local
registry: {folder}/registry.db
entity_key_serialization_version: 3
offline_store: {{type: duckdb}}
online_store: {{type: redis, connection_string: '{redis}'}}
"""


def _pipeline() -> Pipeline:
    return Pipeline(
        name="items",
        entity="item_id",
        partitions=Buckets(count=64, keys="integer"),
        outputs=horizons("f0", hours=(6,)),
        features="items_v1",
        model="items@champion",
        schedule="0 * * * *",
        freshness=Freshness(fresh_for=minutes(90), usable_for=hours(24)),
    )


def _write(folder: Path, entities: int) -> None:
    """A file for each hour of the history, entities in no order, as somebody else's job might write them."""
    rng = np.random.default_rng(7)
    for hour in range(HISTORY):
        moment = np.datetime64(NOON.replace(tzinfo=None) - timedelta(hours=hour), "us")
        times = pa.array(np.full(entities, moment)).cast(pa.timestamp("us", tz="UTC"))
        table = {"item_id": rng.permutation(entities), "event_timestamp": times, "created_timestamp": times}
        for number in range(FEATURES):
            table[f"f{number}"] = rng.standard_normal(entities, dtype=np.float32)
        every = pa.table(table)
        pq.write_table(every, folder / f"items-{hour}.parquet")
        few = every.filter(pc.less(every["item_id"], entities // PEER_SHARE))
        pq.write_table(few, folder / "peer" / f"items-{hour}.parquet")


@dataclass
class _World:
    """Files, both stores over them, and what is written of them online."""

    settings: Settings
    entities: int
    peer: Any
    run: Materialization
    client: Any

    @property
    def source(self) -> Source:
        return self.run.sources["item_facts"]

    def emptied(self) -> None:
        import psycopg

        self.client.flushdb()
        with psycopg.connect(self.settings.need("postgres_url")) as connection:
            connection.execute("DELETE FROM feature_watermarks")

    def ours(self) -> Mapping[str, Any]:
        self.emptied()
        started = time.perf_counter()
        rows = self.run.all(Asked(until=NOON)).rows
        seconds = time.perf_counter() - started
        return {"rate": rows / seconds, "seconds": seconds}

    def feast(self) -> Mapping[str, Any]:
        self.emptied()
        started = time.perf_counter()
        self.peer.materialize(start_date=NOON - timedelta(days=2), end_date=NOON, feature_views=["item_facts"])
        seconds = time.perf_counter() - started
        return {"rate": self.entities // PEER_SHARE / seconds, "seconds": seconds}

    def floor(self, keys: list[bytes], values: list[bytes]) -> Mapping[str, Any]:
        """The script of ours, and nothing else of it."""
        from features.packed.store import PUT_IF_NEWER

        self.emptied()
        sha = self.client.script_load(PUT_IF_NEWER)
        started = time.perf_counter()
        step = ROWS_PER_CALL * CALLS_PER_TRIP
        for trip in range(0, len(keys), step):
            with self.client.pipeline(transaction=False) as pipe:
                for at in range(trip, min(trip + step, len(keys)), ROWS_PER_CALL):
                    part = keys[at : at + ROWS_PER_CALL]
                    pipe.execute_command("EVALSHA", sha, len(part), *part, b"0", b"0", *values[at : at + ROWS_PER_CALL])
                pipe.execute()
        seconds = time.perf_counter() - started
        return {"rate": len(keys) / seconds, "seconds": seconds}

    def packed(self) -> tuple[list[bytes], list[bytes]]:
        """Keys and values as ours wrote them."""
        from features.packed.store import fetch

        keys = keys_of(self.source).of(np.arange(self.entities))
        values = [value for value in fetch(self.client, keys) if value is not None]
        if len(values) != self.entities:
            raise SystemExit(f"{len(values)} of {self.entities} entities are online after materialization")
        return keys, values

    def answers_of_ours(self, values: list[bytes]) -> pa.Table:
        from features.packed.arrow import decode
        from features.packed.codec import parse

        layout = layout_of(self.source)
        return decode(layout, parse(layout, values), len(values))

    def answers_of_peer(self, items: list[int]) -> pa.Table:
        found = self.peer.get_online_features(
            features=[f"item_facts:f{number}" for number in range(FEATURES)],
            entity_rows=[{"item_id": item} for item in items],
        )
        return found.to_arrow()


def _peer(folder: Path, settings: Settings, definitions: Path) -> Any:
    from feast import FeatureStore
    from feast.repo_config import load_repo_config

    from features.store import redis_connection

    config = folder / "feature_store.yaml"
    config.write_text(PEER.format(folder=folder, redis=redis_connection(settings.need("redis_url"))))
    store = FeatureStore(config=load_repo_config(folder, config))
    defined = runpy.run_path(str(definitions))
    store.apply([defined["measured_item"], defined["facts"], defined["items_v1"]])
    return store


def _same(world: _World, values: list[bytes]) -> None:
    """Peer and ours answer alike for some entities.

    Raises:
        SystemExit: they do not; nothing is measured then.
    """
    held = world.entities // PEER_SHARE
    some = list(range(0, held, max(1, held // COMPARED)))
    ours = world.answers_of_ours([values[item] for item in some])
    world.feast()
    peer = world.answers_of_peer(some)
    for name in ours.column_names:
        if ours[name].to_pylist() != peer[name].cast(pa.float32()).to_pylist():
            raise SystemExit(f"feature {name} is not the same in Feast's store and in ours")
    say(f"equal values in both stores: {len(some)} entities x {FEATURES} features")


def _run(bench: Bench) -> Mapping[str, Any]:
    import redis

    from serving_cache.migrate import migrate

    folder = bench.folder / "materialize"
    (folder / "peer").mkdir(parents=True)
    entities = bench.size(ENTITIES, ENTITIES_QUICK)
    _write(folder, entities)
    definitions, of_peer = folder / "items.py", folder / "peer" / "items.py"
    for path in (definitions, of_peer):
        path.write_text(DEFINITIONS.format(path=path.parent / "*.parquet", features=FEATURES))
    servers = bench.servers()
    settings = servers.model_copy(update={"feature_repo": str(definitions)})
    migrate(settings.need("postgres_url"), [])
    with redis.Redis.from_url(settings.need("redis_url")) as client:
        peer = _peer(folder / "peer", settings, of_peer)
        with Materialization(_pipeline(), settings, PackedWriter(client)) as run:
            world = _World(settings=settings, entities=entities, peer=peer, run=run, client=client)
            world.ours()
            if bench.asked.profile:
                with bench.profiling("materialize"):
                    world.ours()
                return {}
            keys, values = world.packed()
            _same(world, values)
            found = bench.turns({"ours": world.ours, "peer": world.feast, "floor": lambda: world.floor(keys, values)})
            client.flushdb()
    return {"materialize": beside(found, entities=entities, features=FEATURES)}


PARTS: tuple[Part, ...] = (Part(names=("materialize",), run=_run),)
