"""Our Feast offline store as anybody would use it: a repository of its own, files and Postgres in one retrieval."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.errors import FeastEntityDFMissingColumnsError, SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
    SavedDatasetPostgreSQLStorage,
)
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int64

from almanac.errors import FeatureError, Unavailable
from tests.feast_world import HOUR, NOON, TRIPS, UTC_TIMES, World, at

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def world(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), postgres_url)
    yield made
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {made.table}")


ALL = ["trips:trips", "trips:rate", "city:people", "city:region"]


def test_files_and_postgres_in_one_retrieval(world: World) -> None:
    job = world.store.get_historical_features(world.asked(), ALL)
    found = job.to_arrow()
    assert found.column_names == ["driver_id", "town", "event_timestamp", "label", "trips", "rate", "people", "region"]
    assert found.select(world.asked().column_names).equals(world.asked())
    trips = found["trips"].to_pylist()
    assert trips[0] == 3.0  # of one moment the row written later
    assert trips[1] is None  # five hours old, four are allowed
    assert math.isnan(trips[2])
    assert trips[3] is None
    assert found["rate"].to_pylist() == [0.3, None, None, None]
    assert found["people"].to_pylist() == [11.0, 20.0, 11.0, None]
    assert found["region"].to_pylist() == ["north", None, "north", None]
    assert "2 Parquet files" in job.explain()
    assert "Postgres" in job.explain()
    assert (job.metadata.features, sorted(job.metadata.keys)) == (ALL, ["driver_id", "label", "town"])


def test_entities_are_pandas_arrow_sql_or_none(world: World) -> None:
    arrow = world.store.get_historical_features(world.asked(), ALL).to_arrow()
    pandas = world.store.get_historical_features(world.asked().to_pandas(), ALL).to_arrow()
    pd.testing.assert_frame_equal(pandas.to_pandas(), arrow.to_pandas())
    query = "SELECT 1::bigint AS driver_id, 'york' AS town, TIMESTAMPTZ '2026-03-01 12:00+00' AS event_timestamp;"
    from_sql = world.store.get_historical_features(query, ALL).to_arrow()
    assert from_sql.to_pylist()[0] | {"label": 1} == arrow.to_pylist()[0]
    times = world.store.get_historical_features(
        features=["trips:trips"], start_date=NOON - 2 * HOUR, end_date=NOON
    ).to_arrow()
    assert times.num_rows == 2  # the two rows of one moment are one entity at one moment
    assert times["driver_id"].to_pylist() == [1, 2]
    assert times["trips"].to_pylist()[0] == 3.0


def test_times_as_text_without_a_zone_and_in_nanoseconds_are_understood(world: World) -> None:
    asked = world.asked().slice(0, 1)
    place = asked.column_names.index("event_timestamp")
    for column in (
        pa.array(["2026-03-01T13:00:00+01:00"]),
        pa.array([NOON.replace(tzinfo=None)], pa.timestamp("s")),
        asked["event_timestamp"].cast(pa.timestamp("ns", "UTC")),
    ):
        found = world.store.get_historical_features(asked.set_column(place, "event_timestamp", column), ALL).to_arrow()
        assert found["trips"].to_pylist() == [3.0]


def test_names_aliases_and_on_demand_columns(world: World) -> None:
    full = world.store.get_historical_features(world.asked(), ALL, full_feature_names=True).to_arrow()
    assert full.column_names[4:] == ["trips__trips", "trips__rate", "city__people", "city__region"]
    origin = world.city.with_name("origin").with_join_key_map({"town": "from_town"})
    target = world.city.with_name("target").with_join_key_map({"town": "to_town"})
    service = FeatureService(name="both_ends", features=[origin[["people"]], target[["people"]]])
    world.store.apply([service])
    ends = pa.table({"from_town": ["york"], "to_town": ["bath"], "event_timestamp": at(0)})
    found = world.store.get_historical_features(ends, service, full_feature_names=True).to_arrow()
    assert (found["origin__people"].to_pylist(), found["target__people"].to_pylist()) == ([11.0], [20.0])
    asked = world.asked().slice(0, 1).append_column("bonus", pa.array([10.0]))
    computed = world.store.get_historical_features(asked, ["trips:rate", "with_bonus:trips_and_bonus"]).to_arrow()
    assert computed["trips_and_bonus"].to_pylist() == [13.0]


def test_rows_can_be_limited_to_what_was_written_by_the_moment(world: World) -> None:
    asked = pa.table({"driver_id": pa.array([1]), "event_timestamp": at(-1.5)})
    everything = world.store.get_historical_features(asked, ["trips:trips"]).to_arrow()
    by_then = world.store.get_historical_features(asked, ["trips:trips"], filter_by_created_timestamp=True).to_arrow()
    assert (everything["trips"].to_pylist(), by_then["trips"].to_pylist()) == ([3.0], [2.0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_histories_come_to_what_feasts_own_store_says(world: World, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = 400
    times = NOON.timestamp() + random.integers(-48, 1, rows) * 3600
    created = times + random.permutation(rows)  # no two alike, so that every tie is decided
    values = random.choice([0.5, -1.0, math.nan, math.inf, -math.inf], rows)
    history = pa.table(
        {
            "driver_id": pa.array(random.integers(0, 12, rows)),
            "event_timestamp": pa.array((times * 1e6).astype("int64")).cast(UTC_TIMES),
            "created": pa.array((created * 1e6).astype("int64")).cast(UTC_TIMES),
            "value": pa.array(values, mask=random.random(rows) < 0.2),
        }
    )
    name = f"random_{seed}"
    pq.write_table(history, world.folder / f"{name}.parquet", row_group_size=64)
    source = FileSource(
        name=name,
        path=str(world.folder / f"{name}.parquet"),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    fields = [Field(name="value", dtype=Float64)]
    ttl = timedelta(hours=int(random.integers(0, 9)))
    view = FeatureView(name=name, entities=[world.driver], ttl=ttl, schema=fields, source=source)
    world.store.apply([view])
    asked = pd.DataFrame(
        {
            "driver_id": random.integers(0, 14, 300),
            "event_timestamp": [NOON - timedelta(minutes=int(m)) for m in random.integers(0, 3600, 300)],
            "row": range(300),
        }
    )
    feasts = world.open({"type": "duckdb"})
    found, expected = (
        store.get_historical_features(asked, [f"{name}:value"]).to_df().sort_values("row").reset_index(drop=True)
        for store in (world.store, feasts)
    )
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found["value"].notna().any()


@pytest.mark.parametrize("kind", ["file", "folder", "postgres"])
def test_saved_datasets(world: World, kind: str) -> None:
    name = f"saved_{kind}_{uuid.uuid4().hex[:8]}"
    path = str(world.folder / (f"{name}.parquet" if kind == "file" else name))
    storage = SavedDatasetPostgreSQLStorage(table_ref=name) if kind == "postgres" else SavedDatasetFileStorage(path)
    job = world.store.get_historical_features(world.asked(), ALL)
    for overwrite in (False, True):
        world.store.create_saved_dataset(job, name, storage, allow_overwrite=overwrite)
    again = world.store.get_saved_dataset(name).to_df()
    assert sorted(again["people"].dropna()) == [11.0, 11.0, 20.0]
    assert set(again.columns) >= {"driver_id", "town", "event_timestamp", "trips", "rate", "people", "region"}
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)


def test_an_export_is_parquet_files(world: World) -> None:
    job = world.store.get_historical_features(world.asked(), ALL)
    assert job.supports_remote_storage_export()
    files = job.to_remote_storage()
    assert pa.concat_tables([pq.read_table(file) for file in files]).num_rows == 4


def test_the_newest_rows_and_all_rows_of_a_time(world: World) -> None:
    provider, source = world.store._get_provider(), world.trips.batch_source
    named = (world.store.config, source, ["driver_id"], ["trips"], "event_timestamp", "created")
    newest = provider.offline_store.pull_latest_from_table_or_query(*named, NOON - 6 * HOUR, NOON - 2 * HOUR)
    assert newest.to_arrow().to_pylist() == [
        {"driver_id": 1, "trips": 3.0, "event_timestamp": NOON - 2 * HOUR, "created": NOON - HOUR}
    ]
    whole = provider.offline_store.pull_all_from_table_or_query(*named, NOON - 6 * HOUR, NOON - 2 * HOUR)
    assert sorted(whole.to_arrow()["trips"].to_pylist()) == [1.0, 2.0, 3.0]
    city = (world.store.config, world.city.batch_source, ["town"], ["people"], "seen", None)
    newest = provider.offline_store.pull_latest_from_table_or_query(*city, NOON - 48 * HOUR, NOON)
    assert {(row["town"], row["people"]) for row in newest.to_arrow().to_pylist()} == {("york", 11.0), ("bath", 20.0)}
    assert sum(batch.num_rows for batch in newest.to_batches()) == 2


@pytest.mark.parametrize("kind", ["file", "folder", "postgres"])
def test_rows_are_added_to_what_a_view_stands_on(world: World, kind: str) -> None:
    name = f"grows_{kind}_{uuid.uuid4().hex[:8]}"
    rows = pa.table({"driver_id": pa.array([5], pa.int64()), "seen": at(-1), "value": pa.array([1.5])})
    if kind == "postgres":
        with psycopg.connect(world.postgres_url) as connection:
            connection.execute(f"CREATE TABLE {name} (driver_id bigint, seen timestamptz, value float8)")
        source: Any = PostgreSQLSource(name=name, table=name, timestamp_field="seen")
    else:
        place = world.folder / (f"{name}.parquet" if kind == "file" else f"{name}/first.parquet")
        place.parent.mkdir(exist_ok=True)
        pq.write_table(rows.slice(0, 0), place)
        source = FileSource(name=name, path=str(place if kind == "file" else place.parent), timestamp_field="seen")
    view = FeatureView(
        name=name, entities=[world.driver], schema=[Field(name="value", dtype=Float64)], source=source, online=False
    )
    world.store.apply([view])
    for hours in (-1, 0):
        one = rows.set_column(1, "seen", at(hours)).set_column(2, "value", pa.array([float(hours)]))
        world.store.write_to_offline_store(name, one.to_pandas())
    asked = pa.table({"driver_id": pa.array([5, 5]), "event_timestamp": at(-0.5, 1)})
    found = world.store.get_historical_features(asked, [f"{name}:value"]).to_arrow()
    assert found["value"].to_pylist() == [-1.0, 0.0]
    provider = world.store._get_provider()
    bad = rows.set_column(2, "value", pa.array(["much"]))
    with pytest.raises(FeatureError, match="column value is string"):
        provider.offline_store.offline_write_batch(world.store.config, view, bad, None)
    assert world.store.get_historical_features(asked, [f"{name}:value"]).to_arrow().equals(found)


def test_served_features_are_logged_as_files(world: World) -> None:
    logged = pa.table({"driver_id": [1], "trips__trips": [1.0]})
    for _ in range(2):
        world.store._get_provider().write_feature_service_logs(
            feature_service=world.service, logs=logged, config=world.store.config, registry=world.store.registry
        )
    assert pq.read_table(world.folder / "logs").num_rows == 2


def test_feast_infers_and_monitors_what_the_files_hold(world: World) -> None:
    offline, config = world.store._get_provider().offline_store, world.store.config
    columns = dict(offline.get_table_column_names_and_types_from_data_source(config, world.trips.batch_source))
    assert columns["trips"] == "double"
    assert dict(world.city.batch_source.get_table_column_names_and_types(config))["region"] == "text"
    one_file = FileSource(
        path=str(world.folder / "trips" / "a.parquet"), file_format=ParquetFormat(), timestamp_field="event_timestamp"
    )
    (found,) = offline.compute_monitoring_metrics(config, one_file, [("trips", "numeric")], "event_timestamp")
    assert (found["row_count"], found["mean"], found["max_val"]) == (2, 1.5, 2.0)
    assert offline.get_monitoring_max_timestamp(config, one_file, "event_timestamp") == NOON - 2 * HOUR
    for other in (world.trips.batch_source, world.city.batch_source):  # Feast computes these from the rows themselves
        with pytest.raises(NotImplementedError):
            offline.compute_monitoring_metrics(config, other, [("trips", "numeric")], "event_timestamp")


def test_feast_materializes_what_the_view_declares_or_is_refused_by_row(world: World) -> None:
    path = world.folder / "visits.parquet"
    hours, ratios, marks = pa.array([15.0, None, -0.0]), pa.array([0.1, 1e-60, 2.0]), pa.array([1, 0, None])
    table = pa.table(
        {"driver_id": [1.0, 2.0, 3.0], "seen": at(-1, -1, -1), "hour": hours, "ratio": ratios, "ok": marks}
    )
    pq.write_table(table, path)
    source = FileSource(name="visits", path=str(path), timestamp_field="seen")
    types = {"hour": Int64, "ratio": Float32, "ok": Bool}
    fields = [Field(name=name, dtype=kind) for name, kind in types.items()]
    view = FeatureView(name="visits", entities=[world.driver], ttl=None, schema=fields, source=source, online=True)
    world.store.apply([view])
    asked, names = [{"driver_id": key} for key in (1, 2, 3)], [f"visits:{name}" for name in types]
    world.store.materialize(NOON - 2 * HOUR, NOON, ["visits"])
    online = world.store.get_online_features(names, asked).to_dict()
    entities = pa.table({"driver_id": [1, 2, 3], "event_timestamp": at(0, 0, 0)})
    offline = world.store.get_historical_features(entities, names).to_arrow()
    for name in types:
        assert offline[name].to_pylist() == online[name], name
    assert (online["hour"], online["ok"]) == ([15, None, 0], [True, False, None])
    wrong = table.set_column(2, "hour", pa.array([15.0, 15.9, 3.0]))
    with pytest.raises(FeatureError, match=r"rows for view visits, row 2: column hour has 15\.9, declared is INT64"):
        world.store.write_to_offline_store("visits", wrong.to_pandas())
    assert pq.read_table(path).equals(table)
    pq.write_table(wrong, path)
    with pytest.raises(
        FeatureError, match=r"visits\.parquet, row 2: column hour has 15\.9, view visits declares INT64"
    ):
        world.store.get_historical_features(entities, names).to_arrow()
    offline_store, named = world.store._get_provider().offline_store, (["driver_id"], ["hour"], "seen", None)
    for pull in (offline_store.pull_latest_from_table_or_query, offline_store.pull_all_from_table_or_query):
        with pytest.raises(FeatureError, match=r"visits\.parquet, row 2: column hour has 15\.9.*declare"):
            pull(world.store.config, source, *named, NOON - 2 * HOUR, NOON).to_arrow()
    with pytest.raises(Exception, match=r"row 2: column hour has 15\.9"):
        world.store.materialize(NOON - 2 * HOUR, NOON, ["visits"])
    assert world.store.get_online_features(names, asked).to_dict()["hour"] == [15, None, 0]  # nothing was written


def test_feast_materializes_an_on_demand_view_of_rounded_doubles(world: World) -> None:
    path = world.folder / "fares.parquet"
    pq.write_table(pa.table({"driver_id": [1, 2], "seen": at(-1, -1), "fare": [100.1, 200.0]}), path)
    source = FileSource(name="fares", path=str(path), timestamp_field="seen")
    fares = FeatureView(
        name="fares", entities=[world.driver], ttl=None, schema=[Field(name="fare", dtype=Float32)], source=source
    )
    raised = on_demand_feature_view(
        entities=[world.driver],
        sources=[fares],
        schema=[Field(name="raised", dtype=Float64)],
        write_to_online_store=True,
    )(with_ten_more)
    world.store.apply([fares, raised])
    world.store.materialize(NOON - 2 * HOUR, NOON, ["with_ten_more"])
    asked = [{"driver_id": 1}, {"driver_id": 2}]
    rounded = float(np.float32(100.1))
    online = world.store.get_online_features(["with_ten_more:raised"], asked).to_dict()["raised"]
    assert online == [rounded + 10, 210.0]
    entities = pa.table({"driver_id": [1, 2], "event_timestamp": at(0, 0)})
    offline = world.store.get_historical_features(entities, ["fares:fare"]).to_arrow()["fare"]
    assert (offline.type, offline.to_pylist()) == (pa.float64(), [rounded, 200.0])


def with_ten_more(rows: pd.DataFrame) -> pd.DataFrame:
    """What an on-demand view makes of a fare."""
    rows["raised"] = rows["fare"] + 10
    return rows


def test_a_file_with_a_damaged_page_is_named(world: World) -> None:
    path = world.folder / "damaged.parquet"
    pq.write_table(TRIPS, path, use_dictionary=False, compression="zstd", write_page_checksum=True)
    source = FileSource(name="damaged", path=str(path), timestamp_field="event_timestamp")
    fields = [Field(name="trips", dtype=Float64)]
    view = FeatureView(name="damaged", entities=[world.driver], ttl=None, schema=fields, source=source)
    world.store.apply([view])
    whole = bytearray(path.read_bytes())
    whole[8:400] = bytes(392)
    path.write_bytes(whole)
    with pytest.raises(FeatureError, match="damaged"):
        world.store.get_historical_features(world.asked(), ["damaged:trips"]).to_arrow()
    offline, named = world.store._get_provider().offline_store, (["driver_id"], ["trips"], "event_timestamp", None)
    for pull in (offline.pull_latest_from_table_or_query, offline.pull_all_from_table_or_query):
        with pytest.raises(FeatureError, match="damaged"):
            pull(world.store.config, source, *named, NOON - 9 * HOUR, NOON).to_arrow()


def test_what_cannot_be_materialized_is_refused_in_a_line(world: World, tmp_path: Path) -> None:
    offline, kept = world.store._get_provider().offline_store, str(tmp_path / "texts.parquet")
    named = ["driver_id"], ["trips"], "event_timestamp", None
    place = TRIPS.schema.get_field_index("event_timestamp")
    pq.write_table(TRIPS.set_column(place, "event_timestamp", pc.strftime(TRIPS["event_timestamp"])), kept)
    for path, said in ((kept, "s: event_timestamp is string, no timestamp"), (f"{kept}.2", "s has no Parquet files")):
        source = FileSource(name="s", path=path, timestamp_field="event_timestamp")
        for pull in (offline.pull_latest_from_table_or_query, offline.pull_all_from_table_or_query):
            with pytest.raises(FeatureError, match=said):
                pull(world.store.config, source, *named, NOON - HOUR, NOON).to_arrow()


def test_what_cannot_be_joined_is_refused_in_a_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(FeastEntityDFMissingColumnsError, match="driver_id"):
        world.store.get_historical_features(world.asked().drop_columns(["driver_id"]), ALL)
    with pytest.raises(FeatureError, match="entities are a list"):
        world.store.get_historical_features([1], ALL)
    without = {name: value for name, value in world.options.items() if name != "host"}
    with pytest.raises(FeatureError, match="needs host below offline_store"):
        world.open(without).get_historical_features(world.asked(), ALL).to_arrow()
    away = world.open({**world.options, "port": 1})
    with pytest.raises(Unavailable, match="Postgres did not answer"):
        away.get_historical_features(world.asked(), ALL).to_arrow()
    with pytest.raises(FeatureError, match="cannot be used in Postgres"):
        world.store.get_historical_features("SELECT nothing FROM nowhere", ALL)
    for name, write, said in (
        ("corrupt", lambda path: path.write_bytes(b"PAR1 not really"), "cannot be read|is not"),
        ("narrow", lambda path: pq.write_table(TRIPS.drop_columns(["trips"]), path), "no column trips"),
    ):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(TRIPS, path)
        source = FileSource(name=name, path=str(path), timestamp_field="event_timestamp")
        view = FeatureView(name=name, entities=[world.driver], schema=[Field(name="trips", dtype=Int64)], source=source)
        world.store.apply([view])
        write(path)
        with pytest.raises(FeatureError, match=said):
            world.store.get_historical_features(world.asked(), [f"{name}:trips"]).to_arrow()
