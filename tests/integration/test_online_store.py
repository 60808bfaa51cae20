"""Our online store beside Feast's Redis store: equal values through Feast's whole interface, and plain words."""

from __future__ import annotations

import asyncio
import gc
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import redis
from feast import FeatureStore, Field
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Int64
from feast.utils import _utc_now

from almanac.errors import FeatureError
from features.packed.views import keys_of
from features.store import redis_connection
from tests.feast_pairs import NOW, OURS, ROWS, TTL, Pair, definitions, driver_rows, driver_view, open_pair, open_store

pytestmark = pytest.mark.filterwarnings(  # Feast's own
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:On demand feature view:RuntimeWarning"
)

DRIVER = [f"driver_stats:{field.name}" for field in driver_view(Path()).schema]
SOME = [{"driver_id": number} for number in (5, 3, 3, 0, 6, 4, 7_000, 12, 9)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Pair:
    return open_pair(tmp_path_factory.mktemp("pair"), connection_string=redis_connection(redis_url))


def shown(store: FeatureStore, features: Any, rows: Any, **more: Any) -> dict[str, Any]:
    """An answer as plain values, NaN as a word, so that it is equal to itself."""
    found = store.get_online_features(features, rows, **more).to_dict(include_event_timestamps=True)
    return {name: ["NaN" if value != value else value for value in values] for name, values in found.items()}


def message(store: FeatureStore, features: Any, rows: Any) -> dict[str, Any]:
    """The same by Feast's protobuf message: values and event times."""
    made = store.get_online_features(features, rows).proto
    return {
        name: ([str(value) for value in vector.values], [when.ToNanoseconds() for when in vector.event_timestamps])
        for name, vector in zip(made.metadata.feature_names.val, made.results, strict=True)
    }


def statuses(store: FeatureStore, features: Any, rows: Any) -> dict[str, list[str]]:
    made = store.get_online_features(features, rows).proto
    names = made.metadata.feature_names.val
    return {
        name: [FieldStatus.Name(state) for state in vector.statuses]
        for name, vector in zip(names, made.results, strict=True)
    }


@pytest.mark.parametrize("rows", [SOME, SOME[:1], [{"driver_id": number} for number in range(ROWS)]])
def test_every_type_is_answered_as_by_feasts_store(pair: Pair, rows: list[dict[str, int]]) -> None:
    feasts, ours = pair.both()
    assert shown(ours, DRIVER, rows) == shown(feasts, DRIVER, rows)
    assert message(ours, DRIVER, rows) == message(feasts, DRIVER, rows)
    assert any(value is not None for value in shown(ours, DRIVER, rows)["rate"])


def test_columns_of_entities_are_taken_too(pair: Pair) -> None:
    feasts, ours = pair.both()
    for given in ({"driver_id": [4, 2, 4]}, {"driver_id": ["4", "2", "4"]}):
        assert shown(ours, DRIVER, given) == shown(feasts, DRIVER, given)
    frame = ours.get_online_features(DRIVER, {"driver_id": [4, 2, 4]}).to_df()
    pd.testing.assert_frame_equal(
        frame, feasts.get_online_features(DRIVER, {"driver_id": [4, 2, 4]}).to_df()[frame.columns]
    )


@pytest.mark.parametrize("full", [False, True])
def test_several_views_with_one_two_and_no_join_keys(pair: Pair, full: bool) -> None:
    rows = [{"driver_id": 1, "shop_name": "b"}, {"driver_id": 2, "shop_name": "a"}, {"driver_id": 2, "shop_name": "x"}]
    asked = ["driver_stats:rate", "driver_shop:visits", "world:temperature"]
    feasts, ours = pair.both()
    assert shown(ours, asked, rows, full_feature_names=full) == shown(feasts, asked, rows, full_feature_names=full)
    prefix = "driver_shop__" if full else ""
    assert shown(ours, asked, rows, full_feature_names=full)[f"{prefix}visits"] == [12, 21, None]


def test_on_demand_views_and_services(pair: Pair) -> None:
    rows = [{"driver_id": number, "shop_name": "a", "factor": 10} for number in (1, 2)]
    joined = [{"first_id": 1, "second_id": 2}, {"first_id": 3, "second_id": 3}]
    feasts, ours = pair.both()
    for name, asked in (("all", rows), ("two_drivers", joined)):
        found = [
            shown(store, store.get_feature_service(name), asked, full_feature_names=True) for store in (ours, feasts)
        ]
        assert found[0] == found[1]
        assert None not in [value for values in found[0].values() for value in values]


def test_statuses_are_those_of_feasts_protocol(pair: Pair) -> None:
    rows = [{"driver_id": number} for number in (0, 6, ROWS - 1, 7_000)]
    found = statuses(pair.ours, ["driver_stats:name", "driver_stats:rate"], rows)
    assert found["name"] == ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert found["rate"] == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert shown(pair.ours, ["driver_stats:name"], rows)["name"][2] == f"driver {ROWS - 1} é"


def test_expired_values_can_be_left_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair.ours.config.online_store, "expired_values", "null")
    rows = [{"driver_id": ROWS - 1}, {"driver_id": 1}]
    assert shown(pair.ours, ["driver_stats:name"], rows)["name"] == [None, "driver 1 é"]
    assert statuses(pair.ours, ["driver_stats:name"], rows)["name"] == ["OUTSIDE_MAX_AGE", "PRESENT"]


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "not closed"])
def test_awaited_reads_in_one_loop_after_another_leave_no_connection_open(pair: Pair, closes: bool) -> None:
    async def read() -> dict[str, Any]:
        found = await pair.ours.get_online_features_async(DRIVER, SOME)
        if closes:
            await pair.ours.close()
        plain = found.to_dict(include_event_timestamps=True)
        return {name: ["NaN" if value != value else value for value in values] for name, values in plain.items()}

    for _ in range(2):
        assert asyncio.run(read()) == shown(pair.feasts, DRIVER, SOME)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gc.collect()
    assert [str(each.message) for each in said if "redis" in str(each.message)] == []


def test_a_connection_that_redis_ended_is_opened_anew(pair: Pair, redis_url: str) -> None:
    store = pair.ours._get_provider().online_store
    before = shown(pair.ours, DRIVER, SOME)
    kept = store._reading_client(pair.ours.config.online_store)
    with redis.Redis.from_url(redis_url) as client:
        assert client.client_kill_filter(_id=str(kept.client_id())) == 1
    assert shown(pair.ours, DRIVER, SOME) == before


def test_the_store_itself_reads_and_writes(pair: Pair) -> None:
    view = pair.ours.get_feature_view("driver_stats")
    entity = pair.feasts._get_provider()
    rows = entity._prep_rows_to_write_for_ingestion(view, driver_rows(4))
    keys = [key for key, _, _, _ in rows]
    store = pair.ours._get_provider().online_store
    found = store.online_read(pair.ours.config, view, keys, ["trips", "words"])
    theirs = entity.online_store.online_read(pair.feasts.config, view, keys, ["trips", "words"])
    assert found == theirs

    async def read() -> Any:
        awaited = await store.online_read_async(pair.ours.config, view, keys)
        await store.close()
        return awaited

    assert str(asyncio.run(read())) == str(store.online_read(pair.ours.config, view, keys))


def test_unusual_requests_are_refused_in_feasts_words(pair: Pair) -> None:
    for features, rows in (
        (["driver_stats:nothing"], SOME),
        (["nothing:rate"], SOME),
        (["driver_stats:rate", "driver_stats:rate"], SOME),
        (["driver_stats:rate"], [{"driver_id": 1}, {"shop_name": "a"}]),
        (["driver_stats:rate"], {"shop_name": ["a"]}),
    ):
        with pytest.raises(Exception) as theirs:  # noqa: PT011  whatever Feast raises
            pair.feasts.get_online_features(features, rows)
        with pytest.raises(type(theirs.value)):
            pair.ours.get_online_features(features, rows)
    with pytest.raises(FeatureError, match="row 2 of entity_rows has no driver_id"):
        pair.ours.get_online_features(["driver_stats:rate"], {"driver_id": [1, None]})
    with pytest.raises(FeatureError, match="entity_rows is empty"):
        pair.ours.get_online_features(["driver_stats:rate"], [])


@pytest.fixture
def alone(tmp_path: Path, redis_url: str) -> FeatureStore:
    """Our store with the definitions and no rows."""
    store = open_store(tmp_path, OURS, connection_string=redis_connection(redis_url))
    store.apply(definitions(tmp_path))
    return store


def test_an_older_row_never_replaces_a_newer_one(alone: FeatureStore) -> None:
    frame = driver_rows(2)
    alone.push("driver_push", frame)
    alone.push("driver_push", frame.assign(trips=[1, 2], ts=frame["ts"] - timedelta(seconds=1)))
    assert shown(alone, ["driver_stats:trips"], {"driver_id": [0, 1]})["trips"] == frame["trips"].tolist()
    alone.push("driver_push", frame.assign(trips=[1, 2], ts=frame["ts"] + timedelta(microseconds=1)))
    assert shown(alone, ["driver_stats:trips"], {"driver_id": [0, 1]})["trips"] == [1, 2]


def test_of_one_batch_the_newest_row_counts_and_contradictions_are_refused(alone: FeatureStore) -> None:
    frame = pd.concat([driver_rows(1)] * 3, ignore_index=True)
    later = frame.assign(trips=[1, 3, 2], ts=[NOW, NOW + timedelta(seconds=2), NOW + timedelta(seconds=1)])
    alone.push("driver_push", later)
    assert shown(alone, ["driver_stats:trips"], {"driver_id": [0]})["trips"] == [3]
    with pytest.raises(
        FeatureError, match="rows 1 and 2 of view driver_stats are of one entity and one moment and differ"
    ):
        alone.push("driver_push", frame.assign(trips=[7, 8, 9], ts=NOW + timedelta(minutes=1)))
    assert shown(alone, ["driver_stats:trips"], {"driver_id": [0]})["trips"] == [3]


def test_rows_without_key_or_moment_or_of_another_schema_are_refused_before_any_is_written(alone: FeatureStore) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    view = alone.get_feature_view("driver_shop")
    store = alone._get_provider().online_store
    key = EntityKey(join_keys=["driver_id", "shop_name"], entity_values=[Value(int64_val=1), Value(string_val="a")])
    half = EntityKey(join_keys=["driver_id", "shop_name"], entity_values=[Value(int64_val=1), Value()])
    good = (key, {"visits": Value(int64_val=1)}, NOW, None)
    for bad, reason in (
        ((half, good[1], NOW, None), "row 2 of view driver_shop has nothing as its join key shop_name"),
        ((key, good[1], pd.NaT, None), "row 2 of view driver_shop has no event time"),
        ((key, {"visits": Value(string_val="1")}, NOW, None), "has string_val as its feature visits, which is int64"),
        (
            (key, {"calls": Value(int64_val=1)}, NOW, None),
            "have calls, which is none of its features: the view has changed",
        ),
    ):
        with pytest.raises(FeatureError, match=reason):
            store.online_write_batch(alone.config, view, [good, bad], None)
    assert store.online_read(alone.config, view, [key]) == [(None, None)]


def test_columns_come_and_go_without_downtime(alone: FeatureStore, tmp_path: Path) -> None:
    alone.push("driver_push", driver_rows(2))
    alone.apply([driver_view(tmp_path, Field(name="calls", dtype=Int64))])
    asked, two = ["driver_stats:calls", "driver_stats:stars"], {"driver_id": [0, 1]}
    stars = driver_rows(2)["stars"].tolist()
    assert shown(alone, asked, two)["calls"] == [None, None]
    assert shown(alone, asked, two)["stars"] == stars
    alone.push("driver_push", driver_rows(1).assign(calls=5, ts=_utc_now()))
    assert shown(alone, asked, two)["calls"] == [5, None]
    assert shown(alone, asked, two)["stars"] == stars
    assert statuses(alone, asked, two)["calls"] == ["PRESENT", "NULL_VALUE"]
    alone.apply([driver_view(tmp_path)])
    assert shown(alone, asked[1:], two)["stars"] == stars


def test_rows_of_a_view_that_changed_under_a_running_job_are_refused(alone: FeatureStore, tmp_path: Path) -> None:
    alone.push("driver_push", driver_rows(1))
    provider, running = alone._get_provider(), alone.get_feature_view("driver_stats")
    alone.apply([driver_view(tmp_path, Field(name="calls", dtype=Int64))])
    with pytest.raises(FeatureError, match="view driver_stats was changed since this process read its definition"):
        provider.ingest_df(running, driver_rows(1).assign(trips=1, ts=_utc_now()))
    asked, one = ["driver_stats:trips", "driver_stats:calls"], {"driver_id": [0]}
    assert shown(alone, asked, one)["trips"] == driver_rows(1)["trips"].tolist()
    provider.ingest_df(alone.get_feature_view("driver_stats"), driver_rows(1).assign(trips=1, calls=2, ts=_utc_now()))
    assert (shown(alone, asked, one)["trips"], shown(alone, asked, one)["calls"]) == ([1], [2])


def test_values_of_newer_programs_and_damaged_ones_are_said(alone: FeatureStore, redis_url: str) -> None:
    alone.push("driver_push", driver_rows(2))
    (key,) = keys_of(alone.project, alone.get_feature_view("driver_stats")).of([0])
    with redis.Redis.from_url(redis_url) as client:
        value = bytes(client.get(key) or b"")
        client.set(key, value[:1] + b"\x63" + value[2:])
        with pytest.raises(FeatureError, match="packed by version 99, this process knows 1: upgrade it"):
            alone.get_online_features(DRIVER, {"driver_id": [1, 0]})
        with pytest.raises(FeatureError, match="packed by version 99"):
            alone.push("driver_push", driver_rows(2).assign(ts=NOW + timedelta(seconds=1)))
        client.set(key, value[:-1])
        with pytest.raises(FeatureError, match="a row of view driver_stats in Redis is damaged: materialize"):
            alone.get_online_features(DRIVER, {"driver_id": [1, 0]})


def test_a_removed_view_takes_its_rows_along_and_no_others(alone: FeatureStore, tmp_path: Path, redis_url: str) -> None:
    alone.push("driver_push", driver_rows(2))
    alone.write_to_online_store("world", pd.DataFrame({"temperature": [1.5], "ts": [NOW], "made": [NOW]}))
    alone.apply([], objects_to_delete=[alone.get_feature_view("world"), *alone.list_feature_services()], partial=False)
    alone.apply([found for found in definitions(tmp_path) if found.name == "world"])
    two = {"driver_id": [0, 1]}
    assert shown(alone, ["world:temperature", "driver_stats:stars"], two)["temperature"] == [None, None]
    assert None not in shown(alone, ["driver_stats:stars"], two)["stars"]
    pattern = keys_of(alone.project, alone.get_feature_view("driver_stats")).pattern
    with redis.Redis.from_url(redis_url) as client:
        assert len(list(client.scan_iter(match=pattern))) == 2
        alone.teardown()
        assert not list(client.scan_iter(match=pattern))


def test_versions_of_a_view_lie_apart(tmp_path: Path, redis_url: str) -> None:
    found = {}
    for name, kind in (("feasts", "redis"), ("ours", OURS)):
        store = open_store(tmp_path / name, kind, connection_string=redis_connection(redis_url), versions=True)
        store.apply([*definitions(tmp_path)[:2], driver_view(tmp_path)])
        store.push("driver_push", driver_rows(2))
        store.apply([driver_view(tmp_path, Field(name="calls", dtype=Int64))])
        store.push("driver_push", driver_rows(1).assign(calls=5, trips=6))
        asked = ["driver_stats@v0:trips", "driver_stats@v1:trips", "driver_stats@v1:calls"]
        found[name] = shown(store, asked, {"driver_id": [0, 1]}, full_feature_names=True)
    assert found["ours"] == found["feasts"]
    assert found["ours"]["driver_stats@v1__trips"] == [6, None]


def test_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    url, refused = "redis://:a-secret@localhost:6379/0", "connection_string is neither host:port"
    for options, reason in (
        ({"client": "glide"}, "client glide cannot be used"),
        ({"skip_dedup": True}, "newer rows"),
        ({"key_ttl_seconds": -5}, "must be above 0"),
        ({"connection_string": "nowhere"}, refused),
        ({"connection_string": url.removeprefix("redis://")}, refused),
        ({"connection_string": f"{url}?ssl=true"}, "write rediss://"),
        ({"connection_string": url, "redis_type": "redis_cluster"}, "names one server"),
    ):
        with pytest.raises(Exception, match=reason) as said:
            open_store(tmp_path, OURS, **options).config.online_store  # noqa: B018
        assert "a-secret" not in str(said.value)
    assert TTL.total_seconds() == 7_200
