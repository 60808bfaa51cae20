"""Online features read without Feast are Feast's own, value by value; and the plans that say how to read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from string import Template
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
import redis
import yaml  # type: ignore[import-untyped]

from almanac.clock import micros_of
from almanac.partitioning import Grid
from almanac.settings import Settings, load_settings
from features.definitions import REPO
from features.ingest import refresh
from features.materialize.run import materialize
from features.offline.reading import historical
from features.online import OnlineFeatures, observation_row
from features.online_reading import (
    PLAN_TABLE,
    Features,
    Reader,
    View,
    brought_forward,
    decode_plan,
    encode_plan,
    plan_key,
)
from features.packed.arrow import encode
from features.packed.codec import Column
from features.packed.store import fetch, put_if_newer
from features.reading_plans import plan_of, write_plans
from features.store import CONFIG_FILE, apply, environment, open_service, redis_connection
from pipelines.weather import weather

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Feast's own imports

TINY = replace(weather, partitions=Grid(rows=6, cols=7, tile=4))
CELLS = 42
AS_OF = datetime(2026, 3, 10, 12, tzinfo=UTC)
PUSHED = AS_OF + timedelta(minutes=20)
FOREVER = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Stored:
    """Materialized features of AS_OF, cell 3 pushed 20 minutes later, in an otherwise empty Redis."""

    settings: Settings
    online: OnlineFeatures
    client: redis.Redis

    @property
    def reader(self) -> Reader:
        return Reader(decode_plan(self.client.get(plan_key(TINY.features))))  # type: ignore[arg-type]

    def values(self, cells: list[int]) -> list[bytes | None]:
        return fetch(self.client, self.reader.keys(cells))

    def read(self, cells: list[int], now: datetime) -> Features:
        return self.reader.decode(self.values(cells), now)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stored]:
    state = tmp_path_factory.mktemp("reading")
    settings = load_settings(state_dir=state, redis_url=redis_url, postgres_url=None, source_data="", source_seed=11)
    refresh(TINY, settings, AS_OF, window=timedelta(days=2))
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        materialize(TINY, settings, AS_OF)
        online = OnlineFeatures(TINY, settings)
        online.push(pa.Table.from_pylist([observation_row(TINY, 3, PUSHED, 285.5)]))
        fill_feasts_own(settings)
        yield Stored(settings, online, client)
        client.flushdb()


def feasts_store(settings: Settings) -> tuple[Any, Any]:
    """Feast with a Redis store of its own beside ours, in the same Redis, and the service."""
    from feast import FeatureStore, RepoConfig

    config = yaml.safe_load(Template(CONFIG_FILE.read_text()).substitute(environment(settings)))
    config["online_store"] = {"type": "redis", "connection_string": redis_connection(settings.need("redis_url"))}
    store = FeatureStore(config=RepoConfig(**config, repo_path=REPO))
    return store, store.get_feature_service(TINY.features)


def fill_feasts_own(settings: Settings) -> None:
    """Write the same rows by Feast's means alone."""
    store, service = feasts_store(settings)
    views = [projection.name for projection in service.feature_view_projections]
    store.materialize(datetime(1999, 1, 1, tzinfo=UTC), AS_OF, feature_views=views)
    row = observation_row(TINY, 3, PUSHED, 285.5)
    store.push("weather_observations", pd.DataFrame([{**row, "created_timestamp": PUSHED}]))


def feasts_own(settings: Settings, cells: list[int], at: datetime | None = None) -> pa.Table:
    """What Feast's own reading gives, less what had expired at a moment, which Feast returns as well."""
    store, service = feasts_store(settings)
    answer = store.get_online_features(features=service, entity_rows=[{TINY.entity: cell} for cell in cells])
    found = answer.to_dict(include_event_timestamps=True)
    columns: dict[str, Any] = {TINY.entity: cells}
    for projection in service.feature_view_projections:
        ttl = store.get_feature_view(projection.name).ttl.total_seconds()
        for name in (field.name for field in projection.features):
            kept = [at is None or not ttl or at.timestamp() - written <= ttl for written in found[f"{name}__ts"]]
            values = [value if keep else None for value, keep in zip(found[name], kept, strict=True)]
            columns[name] = pa.array(values, pa.float32())
    return pa.table(columns)


def same(found: Features, own: pa.Table) -> None:
    assert set(found.columns) <= set(own.column_names)
    for name, column in found.columns.items():
        expected = own[name].to_numpy().astype(np.float32)
        np.testing.assert_array_equal(column.astype(np.float32), expected, err_msg=name)


def test_every_value_is_the_one_that_feast_gives(stored: Stored) -> None:
    cells = [3, *range(CELLS), 3, CELLS, 10**9, -1]  # some twice, some that there are not
    found = stored.read(cells, AS_OF + timedelta(minutes=30))
    own = feasts_own(stored.settings, cells)
    assert stored.online.read(cells).equals(own)
    assert set(stored.online.columns) == set(found.columns)
    same(found, own)
    assert own["t2m"].null_count == 3
    assert found.as_of == tuple(PUSHED if cell == 3 else AS_OF if 0 <= cell < CELLS else None for cell in cells)
    missing = tuple(f"{view.name} is missing" for view in stored.reader.plan.views)
    assert [found.lacking[at] for at in (0, 5, -1)] == [(), (), missing]


def test_a_fresh_prediction_sees_what_batch_would_have_seen(stored: Stored) -> None:
    cells = [cell for cell in range(CELLS) if cell != 3]  # nothing was observed there since
    rows = pa.table({"cell_id": cells, "event_timestamp": pa.array([AS_OF] * len(cells), pa.timestamp("us", tz="UTC"))})
    batch = historical(TINY, stored.settings, rows)
    fresh = brought_forward(TINY, stored.read(cells, AS_OF))
    assert set(fresh) == set(batch.column_names) - {"cell_id", "event_timestamp"}
    for name, column in fresh.items():
        np.testing.assert_array_equal(np.asarray(column, np.float32), batch[name].to_numpy(), err_msg=name)


@pytest.mark.parametrize("hours", [5.9, 6.2, 6.5, 1000])
def test_expired_views_are_said_to_be_and_never_passed_as_present(stored: Stored, hours: float) -> None:
    now = AS_OF + timedelta(hours=hours)
    cells = list(range(CELLS))
    found = stored.read(cells, now)
    own = feasts_own(stored.settings, cells, now)
    same(found, own)
    assert stored.online.read(cells, at=now).equals(own)
    assert found.columns["latitude"][3] == stored.read([3], AS_OF).columns["latitude"][0]  # it holds at all times
    old = {6.2: "6 h 12 min", 6.5: "6 h 30 min", 1000: "41 d 16 h"}.get(hours)
    views = ("cell_observation", "cell_history", "cell_neighbours")
    changing = tuple(f"{view} has expired ({old} old, usable for 6 h)" for view in views)
    assert found.lacking[0] == (changing if hours > 6 else ())
    pushed = changing[1:] if 6 < hours < 6.3 else changing if hours > 6.3 else ()
    assert found.lacking[3][-2:] == pushed[-2:]  # what was pushed is younger than the rest
    assert len(found.lacking[3]) == len(pushed)
    assert found.as_of[3] == (PUSHED if hours < 6.3 else None)


def test_what_is_scored_is_what_the_stream_would_score(stored: Stored) -> None:
    from features.forward import bring_table_forward

    cells = [2, 3]
    found = stored.read(cells, PUSHED)
    own = bring_table_forward(stored.online.read(cells), [AS_OF, PUSHED], "t2m")
    columns = brought_forward(TINY, found)
    for name in own.column_names[1:]:
        np.testing.assert_array_equal(np.asarray(columns[name], np.float32), own[name].to_numpy(), err_msg=name)
    assert columns["lag_1h"][1] != found.columns["lag_1h"][1]
    assert columns["lag_1h"][0] == np.float32(found.columns["lag_1h"][0])


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("FLOAT", 1.5), ("FLOAT", float("nan")), ("FLOAT", float("-inf")), ("FLOAT", -0.0), ("DOUBLE", 1e300),
        ("DOUBLE", float("nan")), ("INT64", -3), ("INT64", 2**53), ("INT32", -(2**31)), ("INT32", 7), ("BOOL", True),
        ("BOOL", False), ("UNIX_TIMESTAMP", 1_700_000_000), ("INT64", None), ("BOOL", None),
    ],
)  # fmt: skip
def test_every_kind_of_number_is_read_beside_others(stored: Stored, kind: str, number: Any) -> None:
    plan = stored.reader.plan
    columns = (Column("x", "FLOAT"), Column("y", kind), Column("name", "STRING"), Column("z", "FLOAT"))
    view = View(name="mixed", packed=columns, features=("z", "y", "x"), columns=("z", "y", "x"))
    reader = Reader(msgspec.structs.replace(plan, views=(view, plan.views[0])))
    table = pa.table({"x": [1.0], "y": pa.array([number]), "name": ["é"], "z": [3.0]})
    value = encode(reader.layouts[0], table, np.array([micros_of(AS_OF)]))
    values = [*value, None, *stored.values([5, 6])[:2]]
    found = reader.decode(values, AS_OF).columns
    expected = np.nan if number is None else float(number)
    np.testing.assert_array_equal([found["x"], found["y"], found["z"]], [[1, np.nan], [expected, np.nan], [3, np.nan]])
    assert not np.isnan(found["t2m"]).any()


def test_event_times_are_read_to_the_microsecond(stored: Stored) -> None:
    reader = stored.reader
    for moment in (AS_OF + timedelta(microseconds=123456), AS_OF, FOREVER, datetime(1969, 12, 31, tzinfo=UTC)):
        table = pa.table({column.name: [1.0] for column in reader.layouts[0].columns})
        value = encode(reader.layouts[0], table, np.array([micros_of(moment)]))
        assert reader.decode([*value, None, None, None], moment).as_of == (moment,)


def test_rows_packed_before_columns_came_or_went_are_read_by_name(stored: Stored) -> None:
    reader = stored.reader
    layout = reader.layouts[3]
    older = msgspec.structs.replace(layout, columns=(Column("gone", "STRING"), *layout.columns[1:]))
    rows = pa.table({column.name: ["x"] if column.name == "gone" else [7.0] for column in older.columns})
    key = reader.keys([900])[3]
    put_if_newer(stored.client, older, [key], encode(older, rows, np.array([micros_of(AS_OF)])), ties_replace=True)
    found = stored.online.read([900, 5])  # the older layout comes from beside the values
    names = [column.name for column in layout.columns]
    assert found.slice(0, 1).select(names).to_pylist() == [dict(zip(names, [None, *[7.0] * 9], strict=False))]
    assert found.slice(1).to_pylist() == stored.online.read([5]).to_pylist()
    stored.client.delete(key)


def test_applying_definitions_writes_the_plan_to_both(stored: Stored, postgres_url: str) -> None:
    settings = stored.settings.model_copy(update={"postgres_url": postgres_url})
    stored.client.delete(plan_key(TINY.features))
    for _ in range(2):  # again changes nothing
        apply(settings)
        kept = stored.client.get(plan_key(TINY.features))
        with psycopg.connect(postgres_url) as connection:
            rows = connection.execute(f"SELECT plan FROM feast.{PLAN_TABLE} WHERE service = 'weather_v1'").fetchall()
        assert [row[0].encode() for row in rows] == [kept]
    store, service = open_service(TINY, settings)
    assert encode_plan(plan_of(store, service)) == kept


def test_a_redis_that_is_down_takes_its_plan_later(stored: Stored, caplog: pytest.LogCaptureFixture) -> None:
    store, service = open_service(TINY, stored.settings)
    down = stored.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    assert write_plans(store, down, [service]) == ["weather_v1"]
    assert "Redis did not take the reading plans" in caplog.text
    stored.client.delete(plan_key(TINY.features))
    materialize(TINY, stored.settings, AS_OF)
    assert decode_plan(stored.client.get(plan_key(TINY.features))) == plan_of(store, service)  # type: ignore[arg-type]
