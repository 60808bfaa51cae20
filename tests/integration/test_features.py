"""Features through real Feast, DuckDB and Redis: point in time, newest wins, and plain words when a part is down."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis
from feast import FeatureStore
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig

from almanac.errors import FeatureError, Unavailable, UsageError
from almanac.partitioning import Grid
from almanac.settings import Settings, load_settings
from features.grid import VIEWS
from features.identity import definitions_digest
from features.ingest import refresh
from features.materialize.run import materialize
from features.offline.reading import historical
from features.online import OnlineFeatures, observation_row
from features.sources import open_source
from features.store import open_service, redis_connection
from pipelines.weather import weather

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Feast's own imports

TINY = replace(weather, partitions=Grid(rows=6, cols=7, tile=4))
CELLS = 42
COLUMNS = [name for names in VIEWS.values() for name in names]
NOW = datetime(2026, 3, 10, 12, 20, tzinfo=UTC)
AS_OF = datetime(2026, 3, 10, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Stored:
    """Settings of a store whose offline features reach from two days before AS_OF to an hour after it."""

    settings: Settings

    def observed(self, moment: datetime) -> np.ndarray:
        return open_source(TINY, self.settings).window(moment, moment).values.reshape(-1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Stored:
    state = tmp_path_factory.mktemp("features")
    settings = load_settings(state_dir=state, redis_url=redis_url, postgres_url=None, source_data="", source_seed=11)
    refresh(TINY, settings, AS_OF + timedelta(hours=1), window=timedelta(days=2))
    return Stored(settings)


@pytest.fixture
def online(stored: Stored) -> Iterator[OnlineFeatures]:
    """The online features of AS_OF, in an otherwise empty Redis."""
    with redis.Redis.from_url(str(stored.settings.redis_url)) as client:
        client.flushdb()
        materialize(TINY, stored.settings, AS_OF)
        yield OnlineFeatures(TINY, stored.settings)
        client.flushdb()


def asked(cells: list[int], moments: list[datetime]) -> pa.Table:
    return pa.table(
        {"cell_id": pa.array(cells, pa.int64()), "event_timestamp": pa.array(moments, pa.timestamp("us", tz="UTC"))}
    )


# --- offline


def test_features_are_those_of_the_moment(stored: Stored) -> None:
    past = AS_OF - timedelta(hours=20)
    found = historical(TINY, stored.settings, asked(list(range(CELLS)), [past] * CELLS))
    assert found.column_names == ["cell_id", "event_timestamp", *COLUMNS]
    np.testing.assert_array_equal(found["t2m"].to_numpy(), stored.observed(past))
    np.testing.assert_array_equal(found["lag_6h"].to_numpy(), stored.observed(past - timedelta(hours=6)))
    assert found["latitude"][8].as_py() == 57.75
    assert found.schema.field("t2m").type == pa.float32()


def test_feasts_sdk_and_its_own_duckdb_store_say_the_same(stored: Stored) -> None:
    rows = asked(list(range(CELLS)), [AS_OF - timedelta(minutes=7 * cell) for cell in range(CELLS)])
    found = historical(TINY, stored.settings, rows)
    store, service = open_service(TINY, stored.settings)
    assert store.get_historical_features(rows, service).to_arrow().equals(found)
    feasts = FeatureStore(config=store.config.model_copy(update={"offline_store": DuckDBOfflineStoreConfig()}))
    theirs = feasts.get_historical_features(rows.to_pandas(), service).to_arrow().sort_by("cell_id")
    assert theirs.select(COLUMNS).cast(found.select(COLUMNS).schema).equals(found.select(COLUMNS))


def test_views_have_one_digest_until_one_of_them_is_defined_anew(stored: Stored, tmp_path: Path) -> None:
    here = load_settings(state_dir=tmp_path, redis_url=None, postgres_url=None)
    before = definitions_digest(TINY, here)
    assert definitions_digest(TINY, here) == before
    store, _ = open_service(TINY, here)
    view = store.get_feature_view("cell_history")
    view.ttl = timedelta(hours=2)
    store.apply([view])
    assert definitions_digest(TINY, here) != before


def test_nothing_later_than_the_moment_is_seen(stored: Stored) -> None:
    one_second_before = AS_OF - timedelta(seconds=1)
    found = historical(
        TINY, stored.settings, asked([5, 5, 5], [one_second_before, AS_OF, AS_OF + timedelta(minutes=59)])
    )
    before, at = stored.observed(AS_OF - timedelta(hours=1))[5], stored.observed(AS_OF)[5]
    assert before != at
    assert found["t2m"].to_pylist() == [before, at, at]


def test_a_later_ingest_does_not_change_the_past(stored: Stored, tmp_path: Path) -> None:
    alone = load_settings(state_dir=tmp_path, redis_url=None, postgres_url=None, source_data="", source_seed=11)
    refresh(TINY, alone, AS_OF, window=timedelta(hours=1))
    rows = asked(list(range(CELLS)), [AS_OF] * CELLS)
    assert historical(TINY, alone, rows) == historical(TINY, stored.settings, rows)


def test_rows_keep_their_order_and_their_other_columns(stored: Stored) -> None:
    rng = np.random.default_rng(2)
    cells = rng.integers(0, CELLS, 300).tolist()
    moments = [AS_OF - timedelta(hours=int(back)) for back in rng.integers(0, 40, 300)]
    rows = asked(cells, moments).append_column("fold", pa.array([f"f{n}" for n in range(300)]))
    found = historical(TINY, stored.settings, rows)
    assert found.select(rows.column_names) == rows
    assert found["t2m"].to_pylist() == [stored.observed(at)[cell] for cell, at in zip(cells, moments, strict=True)]


def test_what_is_unknown_or_too_old_is_null(stored: Stored) -> None:
    last = AS_OF + timedelta(hours=1)
    moments = [AS_OF - timedelta(days=9), last + timedelta(hours=6), last + timedelta(hours=7), AS_OF]
    found = historical(TINY, stored.settings, asked([5, 5, 5, CELLS], moments))
    assert [value is None for value in found["t2m"].to_pylist()] == [True, False, True, True]
    assert found["latitude"].null_count == 1  # a position holds at all times, for cells that there are


@pytest.mark.parametrize("rows", [asked([], []), asked([5], [AS_OF])])
def test_few_rows_and_none(stored: Stored, rows: pa.Table) -> None:
    found = historical(TINY, stored.settings, rows)
    assert (found.num_rows, found.column_names) == (len(rows), ["cell_id", "event_timestamp", *COLUMNS])


def test_without_ingest_it_says_so(tmp_path: Path) -> None:
    empty = load_settings(state_dir=tmp_path, redis_url=None, postgres_url=None)
    with pytest.raises(FeatureError, match="run its ingest step"):
        historical(TINY, empty, asked([5], [AS_OF]))


def test_an_unknown_service_is_named(stored: Stored) -> None:
    with pytest.raises(FeatureError, match="'weather_v9', which no Feast file in"):
        historical(replace(TINY, features="weather_v9"), stored.settings, asked([5], [AS_OF]))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (asked([5], [AS_OF]).drop_columns("cell_id"), "no column cell_id"),
        (pa.table({"cell_id": [5], "event_timestamp": pa.array([AS_OF.replace(tzinfo=None)])}), "time zone"),
    ],
)
def test_bad_questions_are_refused(stored: Stored, rows: pa.Table, says: str) -> None:
    with pytest.raises(FeatureError, match=says):
        historical(TINY, stored.settings, rows)


# --- online


def test_online_features_equal_offline_ones(stored: Stored, online: OnlineFeatures) -> None:
    cells = [41, 0, 7, 7, 13]
    found = online.read(cells)
    expected = historical(TINY, stored.settings, asked(cells, [AS_OF] * 5)).drop_columns("event_timestamp")
    assert found == expected
    assert online.columns == tuple(COLUMNS)


def test_unknown_entities_are_null(online: OnlineFeatures) -> None:
    found = online.read([3, 4_000])
    assert [found[name].null_count for name in COLUMNS] == [1] * len(COLUMNS)
    assert online.read([]).num_rows == 0


def test_a_push_changes_one_observation_and_nothing_else(stored: Stored, online: OnlineFeatures) -> None:
    before = online.read(list(range(CELLS)))
    row = observation_row(TINY, 17, NOW, 291.25)
    online.push(pa.Table.from_pylist([row]))
    after = online.read(list(range(CELLS)))
    assert after["t2m"][17].as_py() == 291.25
    assert after["hour_sin"][17].as_py() == pytest.approx(np.sin(2 * np.pi * (12 + 20 / 60) / 24), abs=1e-6)
    changed = [name for name in COLUMNS if after[name] != before[name]]
    assert changed == ["t2m", "hour_sin", "hour_cos"]
    others = [cell for cell in range(CELLS) if cell != 17]
    assert after.take(others) == before.take(others)


def test_an_events_row_is_computed_as_in_batch(stored: Stored) -> None:
    value = float(stored.observed(AS_OF)[9])
    row = observation_row(TINY, 9, AS_OF, value)
    batch = historical(TINY, stored.settings, asked([9], [AS_OF])).select(list(VIEWS["cell_observation"]))
    assert {name: np.float32(row[name]) for name in batch.column_names} == batch.to_pylist()[0]


def test_the_newest_observation_stays(stored: Stored, online: OnlineFeatures) -> None:
    online.push(pa.Table.from_pylist([observation_row(TINY, 17, NOW, 291.0)]))
    online.push(pa.Table.from_pylist([observation_row(TINY, 17, NOW - timedelta(minutes=1), 250.0)]))
    materialize(TINY, stored.settings, AS_OF)
    assert online.read([17])["t2m"].to_pylist() == [291.0]
    online.push(pa.Table.from_pylist([observation_row(TINY, 17, NOW, 292.0)]))  # a tie: the later push
    assert online.read([17])["t2m"].to_pylist() == [292.0]
    materialize(TINY, stored.settings, AS_OF + timedelta(hours=1))
    assert online.read([17])["t2m"].to_pylist() == [stored.observed(AS_OF + timedelta(hours=1))[17]]


def test_a_push_at_the_batch_hour_wins_whichever_comes_first(stored: Stored, online: OnlineFeatures) -> None:
    online.push(pa.Table.from_pylist([observation_row(TINY, 17, AS_OF, 290.0)]))
    assert online.read([17])["t2m"].to_pylist() == [290.0]
    materialize(TINY, stored.settings, AS_OF)
    assert online.read([17])["t2m"].to_pylist() == [290.0]


def test_of_one_push_the_newest_row_stays(online: OnlineFeatures) -> None:
    rows = [observation_row(TINY, 8, NOW - timedelta(seconds=age), 280.0 + age) for age in (3, 1, 2)]
    online.push(pa.Table.from_pylist(rows))
    assert online.read([8])["t2m"].to_pylist() == [281.0]


def test_a_newer_row_between_two_trips_of_a_writer_stays(
    stored: Stored, online: OnlineFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feast's own store reads event times in one trip and writes in the next: there the older row lands last."""
    other = OnlineFeatures(TINY, stored.settings)
    execute = redis.client.Pipeline.execute
    trips: list[int] = []

    def interrupted(pipe: redis.client.Pipeline, *args: object) -> object:
        found = execute(pipe, *args)
        trips.append(1)
        if len(trips) == 1:
            other.push(pa.Table.from_pylist([observation_row(TINY, 17, NOW, 299.0)]))
        return found

    monkeypatch.setattr(redis.client.Pipeline, "execute", interrupted)
    online.push(pa.Table.from_pylist([observation_row(TINY, 17, NOW - timedelta(minutes=1), 250.0)]))
    monkeypatch.undo()
    assert len(trips) == 2  # one of each writer
    assert online.read([17])["t2m"].to_pylist() == [299.0]


def test_a_backfill_leaves_newer_rows(stored: Stored, online: OnlineFeatures) -> None:
    before = online.read(list(range(CELLS)))
    materialize(TINY, stored.settings, AS_OF - timedelta(hours=10))
    assert online.read(list(range(CELLS))) == before


def test_what_has_expired_is_missing_when_a_moment_is_given(online: OnlineFeatures) -> None:
    online.push(pa.Table.from_pylist([observation_row(TINY, 17, AS_OF + timedelta(hours=9), 291.0)]))
    late = online.read([17], at=AS_OF + timedelta(hours=9))
    assert (late["t2m"].null_count, late["lag_1h"].null_count, late["latitude"].null_count) == (0, 1, 0)
    assert online.read([17], at=AS_OF + timedelta(hours=6))["lag_1h"].null_count == 0


def test_reads_and_pushes_go_on_without_the_registry(stored: Stored, online: OnlineFeatures) -> None:
    registry = stored.settings.features_dir / "registry.db"
    aside = registry.rename(registry.with_suffix(".aside"))
    try:
        online.push(pa.Table.from_pylist([observation_row(TINY, 3, NOW, 285.5)]))
        assert online.read([3])["t2m"].to_pylist() == [285.5]
    finally:
        aside.rename(registry)


def test_incomplete_rows_are_refused(online: OnlineFeatures) -> None:
    with pytest.raises(FeatureError, match="no column hour_cos"):
        online.push(pa.Table.from_pylist([observation_row(TINY, 3, NOW, 285.5)]).drop_columns("hour_cos"))


def test_redis_down_is_one_line(stored: Stored) -> None:
    down = load_settings(
        state_dir=stored.settings.state_dir, redis_url="redis://127.0.0.1:1", postgres_url=None, source_data="",
        source_seed=11,
    )  # fmt: skip
    for act in (
        lambda: OnlineFeatures(TINY, down).read([1]),
        lambda: OnlineFeatures(TINY, down).push(pa.Table.from_pylist([observation_row(TINY, 3, NOW, 285.5)])),
        lambda: materialize(TINY, down, AS_OF),
    ):
        with pytest.raises(Unavailable, match="Redis did not answer") as caught:
            act()
        assert "\n" not in str(caught.value)


# --- the registry in Postgres


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_registry_lies_in_a_schema_of_its_own(stored: Stored, postgres_url: str, tmp_path: Path) -> None:
    import psycopg

    settings = stored.settings.model_copy(update={"postgres_url": postgres_url, "state_dir": tmp_path})
    with ThreadPoolExecutor(2) as pool:  # both find it empty; one makes it
        services = list(pool.map(lambda _: open_service(TINY, settings)[1], range(2)))
    assert [service.name for service in services] == ["weather_v1"] * 2
    with psycopg.connect(postgres_url) as connection:
        names = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'feature_views'").fetchall()
    assert names == [("feast",)]


def test_a_registry_that_is_down_is_one_line(stored: Stored) -> None:
    settings = stored.settings.model_copy(update={"postgres_url": "postgresql://nobody:secret@127.0.0.1:1/almanac"})
    with pytest.raises(Unavailable, match="registry in Postgres did not answer") as caught:
        open_service(TINY, settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://h:7/2", {"db": 2}),
        ("redis://h:7?db=3", {"db": 3}),
        ("redis://:12345@h:7", {"db": 0, "password": "12345"}),
        (
            "rediss://u:p%2Cq%27%3D%22@h:7?ssl_ca_certs=/a,b.pem",
            {
                "db": 0,
                "username": "u",
                "password": "p,q'=\"",
                "ssl": True,
                "ssl_ca_certs": "/a,b.pem",
                "ssl_cert_reqs": "required",
                "ssl_check_hostname": True,
            },
        ),
    ],
)
def test_a_redis_url_in_feasts_words(url: str, connection: dict[str, object]) -> None:
    from feast.infra.online_stores.redis import RedisOnlineStore

    nodes, options = RedisOnlineStore._parse_connection_string(redis_connection(url))
    assert nodes == [{"host": "h", "port": "7"}]
    assert {name: value for name, value in options.items() if not name.startswith("socket")} == connection


@pytest.mark.parametrize("url", ["http://h", "redis://", "redis://[::1]:6379", "unix:///redis.sock"])
def test_redis_urls_that_feasts_words_cannot_say_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"give redis://|takes host:port"):
        redis_connection(url)
