"""Online features read without Feast are Feast's own, value by value; and the plans that say how to read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
import redis

from almanac.partitioning import Grid
from almanac.settings import Settings, load_settings
from features.ingest import refresh
from features.materialize import materialize
from features.offline import historical
from features.online import OnlineFeatures, observation_row
from features.online_reading import (
    PLAN_TABLE,
    Features,
    Reader,
    brought_forward,
    decode_plan,
    encode_plan,
    field_of,
    plan_key,
)
from features.reading_plans import plan_of, write_plans
from features.store import apply, open_service
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

    def read(self, cells: list[int], now: datetime) -> Features:
        reader = self.reader
        with self.client.pipeline(transaction=False) as trip:
            for cell in cells:
                trip.hmget(reader.key(cell), list(reader.fields))  # type: ignore[arg-type]
            return reader.decode(trip.execute(), now)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stored]:
    state = tmp_path_factory.mktemp("reading")
    settings = load_settings(
        state_dir=state, redis_url=redis_url, postgres_url=None, weather_data=None, weather_seed=11
    )
    refresh(TINY, settings, AS_OF, window=timedelta(days=2))
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        materialize(TINY, settings, AS_OF)
        online = OnlineFeatures(TINY, settings)
        online.push(pa.Table.from_pylist([observation_row(TINY, 3, PUSHED, 285.5)]))
        yield Stored(settings, online, client)
        client.flushdb()


def feasts_own(settings: Settings, cells: list[int], at: datetime | None = None) -> pa.Table:
    """What Feast's own reading gives, less what had expired at a moment, which Feast returns as well."""
    store, service = open_service(TINY, settings)
    answer = store.get_online_features(features=service, entity_rows={TINY.entity: cells})
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
    changing = ("cell_observation has expired", "cell_history has expired", "cell_neighbours has expired")
    assert found.lacking[0] == (changing if hours > 6 else ())
    pushed = changing[1:] if 6 < hours < 6.3 else changing if hours > 6.3 else ()
    assert found.lacking[3] == pushed
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
        ("float_val", 1.5), ("float_val", float("nan")), ("float_val", float("-inf")), ("float_val", -0.0),
        ("double_val", 1e300), ("double_val", float("nan")), ("int64_val", -3), ("int64_val", 2**53),
        ("int32_val", -(2**31)), ("int32_val", 7), ("bool_val", True), ("bool_val", False),
        ("unix_timestamp_val", 1_700_000_000), ("null_val", 0), (None, None),
    ],
)  # fmt: skip
def test_every_kind_of_number_is_read_as_feast_wrote_it(stored: Stored, kind: str | None, number: Any) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    value = Value(**{kind: number}) if kind else Value()
    reader = stored.reader
    row = list(stored.client.hmget(reader.key(5), list(reader.fields)))  # type: ignore[arg-type]
    row[1] = value.SerializeToString()
    found = reader.decode([row], AS_OF).columns["t2m"][0]
    expected = np.nan if kind in (None, "null_val") else float(number)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cell", [0, 17, 2**40, -5])
def test_keys_and_fields_are_feasts(stored: Stored, cell: int) -> None:
    from feast.infra.online_stores.helpers import _mmh3, _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    plan = stored.reader.plan
    own = _redis_key(plan.project, EntityKey(join_keys=["cell_id"], entity_values=[Value(int64_val=cell)]))
    assert stored.reader.key(cell) == own
    text = Reader(type(plan)(**{**{n: getattr(plan, n) for n in plan.__struct_fields__}, "key_type": "string"}))
    own = _redis_key(plan.project, EntityKey(join_keys=["cell_id"], entity_values=[Value(string_val=f"é{cell}")]))
    assert text.key(f"é{cell}") == own
    assert field_of("cell_history", "lag_1h") == _mmh3("cell_history:lag_1h")


def test_event_times_are_read_to_the_microsecond(stored: Stored) -> None:
    from google.protobuf.timestamp_pb2 import Timestamp

    reader = stored.reader
    row = list(stored.client.hmget(reader.key(5), list(reader.fields)))  # type: ignore[arg-type]
    for moment in (AS_OF + timedelta(microseconds=123456), AS_OF, FOREVER, datetime(1969, 12, 31, tzinfo=UTC)):
        stamp = Timestamp()
        stamp.FromDatetime(moment)
        row[0] = stamp.SerializeToString()
        found = reader.decode([row], moment)
        assert found.as_of == (moment,)


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
