"""Train/serve skew, drift, quality and ages of features, on real Postgres, Redis, Feast and Great Expectations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from almanac.feature_checks import Check, FeatureFound, Skew, ViewFound, troubles
from almanac.integrity import Integrity
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from features.ingest import refresh
from features.integrity.freshness import why_lacking
from features.layout import view_dir
from features.materialize.run import materialize
from features.online import OnlineFeatures, observation_row
from features.store import apply
from jobs.checks.integrity import check_features
from jobs.checks.page import page_of
from jobs.lacking import explained
from pipelines.weather import weather
from serving_cache.feature_checks import FeatureChecks
from serving_cache.migrate import migrate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

CELLS = 42
AS_OF = datetime(2026, 3, 10, 12, tzinfo=UTC)
NOW = AS_OF + timedelta(minutes=20)


@dataclass(frozen=True)
class Stored:
    """A small weather whose offline features reach back some days from AS_OF, all of it online."""

    pipeline: Pipeline
    settings: Settings

    def check(self, now: datetime = NOW) -> Check:
        return check_features(self.pipeline, self.settings, now=now)

    def push(self, cell: int, moment: datetime, value: float) -> None:
        row = observation_row(self.pipeline, cell, moment, value)
        OnlineFeatures(self.pipeline, self.settings).push(pa.Table.from_pylist([row]))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_url: str) -> Iterator[Stored]:
    pipeline = replace(
        weather,
        partitions=Grid(rows=6, cols=7, tile=4),
        integrity=Integrity(sample=CELLS, skew_max=0.0),
    )
    migrate(postgres_url, [pipeline])
    settings = load_settings(
        state_dir=tmp_path_factory.mktemp("integrity"),
        redis_url=redis_url,
        postgres_url=postgres_url,
        source_data="",
        source_seed=11,
    )
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        apply(settings)  # other tests of the session keep their files elsewhere
        refresh(pipeline, settings, AS_OF, window=timedelta(days=9))
        materialize(pipeline, settings, AS_OF)
        yield Stored(pipeline, settings)
        client.flushdb()


def of(check: Check, view: str, feature: str) -> FeatureFound:
    return next(one for one in check.features if (one.view, one.feature) == (view, feature))


def skew_of(check: Check, view: str, feature: str) -> Skew:
    found = of(check, view, feature).skew
    assert found is not None
    return found


def view_of(check: Check, view: str) -> ViewFound:
    return next(one for one in check.views if one.view == view)


def rewritten(stored: Stored, view: str, column: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """The newest two files of a view with one column changed; what is online stays as it was."""
    folder = view_dir(stored.settings.features_dir, "weather", view)
    for file in sorted(folder.glob("*.parquet"))[-2:]:
        table = pq.read_table(file)
        place = table.schema.get_field_index(column)
        values = pa.array(change(table[column].to_numpy()), pa.float32(), from_pandas=True)
        pq.write_table(table.set_column(place, table.schema.field(column), values), file)


def test_what_was_materialized_is_what_training_reads(stored: Stored) -> None:
    check = stored.check()
    assert {one.skew.compared for one in check.features if one.skew} == {CELLS}
    assert sum(one.skew.unequal for one in check.features if one.skew) == 0
    assert troubles(check, 0.0, NOW) == []
    history = view_of(check, "cell_history")
    assert (history.expectations, history.bounds_version) == (
        70,
        1,
    )  # three of a feature; one feature only says the time
    with FeatureChecks(stored.settings.need("postgres_url")) as kept:
        assert kept.newest("weather") == check
        assert "8 parts of 1 d" in kept.learned("weather")["cell_history"].how


def test_planted_skew_and_anomalies_are_found_and_what_is_in_flight_is_not(stored: Stored) -> None:
    """A wrong value online, files written anew behind it, a feature that went astray; and an event on its way."""
    stored.push(5, AS_OF, 299.5)
    stored.push(6, AS_OF + timedelta(minutes=10), 285.0)
    rewritten(stored, "cell_neighbours", "north_1", lambda values: values + 3)
    rewritten(
        stored, "cell_history", "lag_2h", lambda values: np.where(np.arange(len(values)) % 2, np.nan, values + 80)
    )
    check = stored.check()
    found = skew_of(check, "cell_observation", "t2m")
    assert (found.compared, found.unequal, found.only_online, found.only_offline) == (CELLS - 1, 1, 0, 0)
    (example,) = found.examples
    assert (example.entity, example.moment, example.online) == ("5", AS_OF, 299.5)
    assert example.offline is not None
    assert found.greatest == pytest.approx(299.5 - example.offline)
    assert view_of(check, "cell_observation").in_flight == 1
    assert skew_of(check, "cell_observation", "hour_sin").unequal == 0

    other = skew_of(check, "cell_neighbours", "north_1")
    assert (skew_of(check, "cell_neighbours", "south_1").unequal, other.unequal) == (0, CELLS)
    assert other.mean == pytest.approx(3.0, abs=1e-3)

    astray = of(check, "cell_history", "lag_2h")
    assert astray.skew is not None
    assert astray.skew.only_online == CELLS // 2
    assert astray.profile is not None
    assert astray.profile.null_share == pytest.approx(0.5, abs=0.03)
    assert astray.drift is not None
    assert astray.drift_max is not None
    assert astray.drift > astray.drift_max
    refused = view_of(check, "cell_history").refused
    assert [line.partition(":")[0] for line in refused] == ["lag_2h"] * 3  # nulls, range and mean

    said = troubles(check, 0.0, NOW)
    assert {"cell_observation.t2m", "cell_neighbours.north_1", "cell_history.lag_2h"} == {
        line.partition(":")[0] for line in said if not line.startswith("view ")
    }
    page = page_of(stored.settings, "weather").read_text()
    assert "299.5" in page
    assert "Where online and offline differ" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_command_shows_what_the_newest_check_found(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from almanac import settings as layered
    from almanac.cli import main

    monkeypatch.setattr(layered, "settings", lambda: stored.settings)
    with pytest.raises(SystemExit) as ended:
        main(["features", "weather", "--html"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "! cell_neighbours.north_1: 100.0% of 42 online values are not the offline ones" in said
    assert str(page_of(stored.settings, "weather")) in said
    with pytest.raises(SystemExit):
        main(["features", "--json"])
    every = json.loads(capsys.readouterr().out)
    (found,) = [check for check in every if check["pipeline"] == "weather"]
    assert {view["state"] for view in found["views"]} >= {"holds at all times"}
    assert found["service"] == "weather_v1"


def test_an_emptied_store_is_no_skew_and_what_has_expired_is_said_with_its_age(stored: Stored) -> None:
    """And what was learned of another definition of a view is learned anew."""
    with redis.Redis.from_url(stored.settings.need("redis_url")) as client:
        client.flushdb()
    with FeatureChecks(stored.settings.need("postgres_url")) as kept:
        known = kept.learned("weather")["cell_history"]
        kept.keep_learned("weather", msgspec.structs.replace(known, definition="another"))
    later = AS_OF + timedelta(hours=7)
    check = stored.check(later)
    assert sum(one.skew.compared for one in check.features if one.skew) == 0
    said = troubles(check, 0.0, later)
    assert "view cell_history is expired: newest row 7 h old, usable for 6 h" in said
    assert f"view cell_history: {CELLS} of {CELLS} sampled entities have no online row" in said
    assert not any("cell_position is expired" in line for line in said)
    versions = {view.view: view.bounds_version for view in check.views}
    assert (versions["cell_history"], versions["cell_observation"]) == (3, 1)


def test_a_partition_that_lacks_features_says_which_views_have_expired(stored: Stored) -> None:
    later = AS_OF + timedelta(hours=7)
    why = why_lacking(stored.pipeline, stored.settings, [3, CELLS], later)
    assert why[3] == tuple(
        f"{view} has expired (7 h old, usable for 6 h)"
        for view in ("cell_observation", "cell_history", "cell_neighbours")
    )
    assert why[CELLS][-1] == "cell_position is missing"
    table = pa.table({"cell_id": [3, 4], "_partition": pa.array([0, 1], pa.int32()), "t2m": [None, 280.0]})
    found = explained(stored.pipeline, stored.settings, table, {0: "refused", 1: "refused too"}, later)
    assert found[0].startswith("refused (cell_id 3: cell_observation has expired (7 h old")
    assert found[1] == "refused too"
