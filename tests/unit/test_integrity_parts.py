"""Skew, bounds and drift as pure functions, and the declaration of how features are checked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.clock import DAY, micros_of
from almanac.errors import DeclarationError
from almanac.feature_checks import ViewFound, natural, stability_index, view_state, words
from almanac.integrity import Integrity
from features.integrity.profile import PARTS_MIN, Values, drift_of, learn, profile_of
from features.integrity.skew import dtype_of, numbers, skew_of
from features.tables import Table
from jobs.checks.charts import histogram, sparkline
from jobs.checks.suites import ROWS_MAX, spread

NOW = datetime(2026, 3, 30, tzinfo=UTC)
TABLE = Table(
    view="v", path="/nowhere/*.parquet", key="k", moment="at", created=None, features=("x",), ttl=timedelta(hours=6)
)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(FLOATS, FLOATS), max_size=30))
def test_skew_counts_what_differs_and_nulls_of_one_side(pairs: list[tuple[float, float]]) -> None:
    online, offline = (np.array([pair[side] for pair in pairs], np.float32) for side in (0, 1))
    found = skew_of(online, offline, [(str(at), NOW) for at in range(len(pairs))])
    null = [(np.isnan(left), np.isnan(right)) for left, right in pairs]
    assert found.only_online == sum(not left and right for left, right in null)
    assert found.only_offline == sum(left and not right for left, right in null)
    different = sum(a != b for (a, b), gone in zip(pairs, null, strict=True) if not any(gone))
    assert found.unequal == different + found.only_online + found.only_offline
    assert len(found.examples) == min(found.unequal, 5)
    assert skew_of(online, online, [("1", NOW)] * len(pairs)).unequal == 0


def test_the_greatest_differences_are_the_examples() -> None:
    online = np.array([1, 2, 3, np.nan], np.float32)
    found = skew_of(online, np.array([1, 5, 2, 4], np.float32), [(name, NOW) for name in "abcd"])
    assert (found.unequal, found.greatest) == (3, 3.0)
    assert found.mean == pytest.approx(4 / 3)
    assert [example.entity for example in found.examples] == ["d", "b", "c"]


def test_a_second_of_today_is_a_difference_where_the_feature_is_a_double() -> None:
    online = pa.table({"since": [1.7e9, 1e300, None], "share": pa.array([0.1, 0.2, None], pa.float32())})
    offline = pa.table({"since": [1.7e9 + 1, 1e300, None], "share": [0.1, 0.2, None]})
    who = [(name, NOW) for name in "abc"]
    found = {
        name: skew_of(*(numbers(table, name, dtype_of(online, name)) for table in (online, offline)), who)
        for name in online.column_names
    }
    assert (found["since"].unequal, found["since"].greatest, found["share"].unequal) == (1, 1.0, 0)


def values(days: int, rng: np.random.Generator, shift: float = 0.0) -> Values:
    rows = days * 500
    moments = np.sort(rng.uniform(0, days * 86_400e6, rows)).astype(np.int64)
    start = micros_of(NOW - days * DAY)
    return Values(columns={"x": rng.normal(shift, 1, rows)}, moments=moments + start, table=pa.table({}))


def test_what_is_usual_is_learned_and_what_is_not_is_seen() -> None:
    rng = np.random.default_rng(3)
    known = learn(TABLE, values(10, rng), (NOW - 10 * DAY, NOW), part=DAY, drift_max=0.25, now=NOW)
    bounds = known.bounds["x"]
    assert known.parts == 10
    assert bounds.low is not None
    assert bounds.high is not None
    assert -6 < bounds.low < -3 < 3 < bounds.high < 6
    assert bounds.drift_max == 0.25  # no part of it had a drift to speak of
    same, moved = (drift_of(bounds, profile_of(rng.normal(shift, 1, 900), bounds.edges)) for shift in (0.0, 1.5))
    assert same is not None
    assert moved is not None
    assert same < 0.1 < 0.25 < moved
    holes = drift_of(bounds, profile_of(np.where(rng.random(900) < 0.5, np.nan, rng.normal(0, 1, 900)), bounds.edges))
    assert holes is not None
    assert holes > 0.25
    assert drift_of(bounds, profile_of(np.zeros(5), bounds.edges)) is None


def test_a_short_history_says_nothing_of_drift_and_a_feature_that_is_a_time_has_no_bounds() -> None:
    rng = np.random.default_rng(4)
    short = learn(TABLE, values(PARTS_MIN - 1, rng), (NOW - 6 * DAY, NOW), part=DAY, drift_max=0.25, now=NOW)
    assert (short.bounds["x"].drift_max, short.bounds["x"].mean_low) == (None, None)
    long = values(10, rng)
    hours = Values(columns={"x": long.moments / 3.6e9}, moments=long.moments, table=long.table)
    told = learn(TABLE, hours, (NOW - 10 * DAY, NOW), part=DAY, drift_max=0.25, now=NOW).bounds["x"]
    assert (told.low, told.edges, told.drift_max) == (None, (), None)


@pytest.mark.parametrize(
    "column", [np.full(900, 7.0), np.full(900, np.nan), np.arange(900) % 2.0, np.full(900, np.inf)]
)
def test_constants_nulls_flags_and_infinities_have_bounds(column: np.ndarray) -> None:
    moments = np.full(900, micros_of(NOW) - 1)
    found = learn(
        TABLE,
        Values(columns={"x": column}, moments=moments, table=pa.table({})),
        (NOW - 10 * DAY, NOW),
        part=DAY,
        drift_max=0.25,
        now=NOW,
    ).bounds["x"]
    assert sum(found.profile.shares) == pytest.approx(1.0)
    assert drift_of(found, profile_of(column, found.edges)) == 0.0


def test_the_stability_index_is_zero_for_equal_shares_and_finite_for_empty_bins() -> None:
    assert stability_index([0.5, 0.5], [0.5, 0.5]) == 0.0
    assert 0 < stability_index([1.0, 0.0], [0.0, 1.0]) < 25


@pytest.mark.parametrize(
    ("age", "said"),
    [
        (timedelta(hours=6), "usable"),
        (timedelta(hours=6, minutes=5), "expired: newest row 6 h 5 min old, usable for 6 h"),
        (None, "empty: no row is known"),
    ],
)
def test_a_view_is_expired_when_its_newest_row_is_older_than_its_ttl(age: timedelta | None, said: str) -> None:
    newest = None if age is None else NOW - age
    assert view_state(ViewFound(view="v", ttl_seconds=6 * 3600, pushed=False, offline_newest=newest), NOW) == said
    assert view_state(ViewFound(view="v", ttl_seconds=None, pushed=False, online_newest=NOW), NOW) != said


def test_words_and_order() -> None:
    assert [words(timedelta(seconds=n)) for n in (5, 720, 25_500, 270_000)] == ["5 s", "12 min", "7 h 5 min", "3 d 3 h"]
    assert sorted(["lag_12h", "lag_2h", "lag_1h"], key=natural) == ["lag_1h", "lag_2h", "lag_12h"]


def test_drawings_have_a_text_for_who_cannot_see_them() -> None:
    assert "<title>a &amp; b</title>" in histogram((0.5, 0.5), (1.0, 0.0), "a & b")
    assert "no history" in sparkline([None], "x")
    assert sparkline([1.0, None, 2.0], "x", 3.0).count("M") == 2


@pytest.mark.parametrize(
    "fields", [{"schedule": "hourly"}, {"sample": 0}, {"skew_max": 2}, {"recent": timedelta(0)}, {"drift_max": -1}]
)
def test_what_cannot_be_declared_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(DeclarationError, match=f"Integrity.{next(iter(fields))}"):
        Integrity(**fields)  # type: ignore[arg-type]


def test_rows_for_a_validation_come_from_all_hours() -> None:
    rows = 3 * ROWS_MAX // 2
    hours = spread(pa.table({"hour": np.arange(rows) * 24 // rows}))["hour"].to_numpy()
    assert len(hours) == ROWS_MAX
    assert np.bincount(hours).tolist() == pytest.approx([ROWS_MAX / 24] * 24, abs=1)
    few = pa.table({"hour": [1, 2]})
    assert spread(few) is few
