from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from almanac.errors import FeatureError
from almanac.partitioning import Grid
from features.grid import (
    HISTORY_HOURS,
    LAGS_HOURS,
    differences,
    grid_features,
    observation_columns,
    same_hour_column,
    views,
)

GRID = Grid(rows=15, cols=17, tile=4, north=55.0, west=-3.0, step=0.5)
START = np.datetime64("2026-03-01T05:00", "us")
HOURS = HISTORY_HOURS + 30
TIMES = START + np.arange(HOURS) * np.timedelta64(1, "h")
BLOCK = np.random.default_rng(5).normal(280, 5, (HOURS, GRID.rows, GRID.cols)).astype(np.float32)
NAMES = [name for columns in views("t2m").values() for name in columns]


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return grid_features(BLOCK, TIMES, GRID, "t2m")


def test_gives_every_column_of_the_views_without_a_null(columns: dict[str, np.ndarray]) -> None:
    assert list(columns) == NAMES
    assert len(set(NAMES)) == len(NAMES)
    for name, values in columns.items():
        assert values.shape == (HOURS - HISTORY_HOURS, GRID.rows, GRID.cols), name
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name


def test_lags_and_neighbours_are_the_values_they_name(columns: dict[str, np.ndarray]) -> None:
    hour, row, col = 11, 7, 8
    now = HISTORY_HOURS + hour
    assert columns["t2m"][hour, row, col] == BLOCK[now, row, col]
    for lag in LAGS_HOURS:
        assert columns[f"lag_{lag}h"][hour, row, col] == BLOCK[now - lag, row, col]
    assert columns["north_3"][hour, row, col] == BLOCK[now, row - 3, col]
    assert columns["south_6"][hour, row, col] == BLOCK[now, row + 6, col]
    assert columns["west_1"][hour, row, col] == BLOCK[now, row, col - 1]
    assert columns["east_6_lag_24h"][hour, row, col] == BLOCK[now - 24, row, col + 6]
    day = BLOCK[now - 23 : now + 1, row, col]
    assert columns["min_24h"][hour, row, col] == day.min()
    assert columns["max_24h"][hour, row, col] == day.max()
    assert columns["mean_24h"][hour, row, col] == pytest.approx(day.mean(), abs=1e-3)
    assert columns["grid_mean"][hour, row, col] == pytest.approx(BLOCK[now].mean(), abs=1e-3)


def test_a_neighbour_beyond_the_edge_is_the_edge(columns: dict[str, np.ndarray]) -> None:
    assert columns["north_12"][0, 4, 2] == BLOCK[HISTORY_HOURS, 0, 2]
    assert columns["east_3"][0, 4, GRID.cols - 2] == BLOCK[HISTORY_HOURS, 4, GRID.cols - 1]
    assert columns["west_1"][0, 4, 0] == BLOCK[HISTORY_HOURS, 4, 0]


def test_no_feature_looks_ahead(columns: dict[str, np.ndarray]) -> None:
    hour = 12
    changed = BLOCK.copy()
    changed[HISTORY_HOURS + hour + 1 :] = 0
    for name, values in grid_features(changed, TIMES, GRID, "t2m").items():
        np.testing.assert_array_equal(values[: hour + 1], columns[name][: hour + 1], err_msg=name)


def test_one_hour_alone_gives_the_same_bits_as_many(columns: dict[str, np.ndarray]) -> None:
    hour = 17
    part = slice(hour, hour + HISTORY_HOURS + 1)
    for name, values in grid_features(BLOCK[part], TIMES[part], GRID, "t2m").items():
        np.testing.assert_array_equal(values[0], columns[name][hour], err_msg=name)


def test_positions_are_those_of_the_grid(columns: dict[str, np.ndarray]) -> None:
    for cell in (0, 20, GRID.cells - 1):
        row, col = divmod(cell, GRID.cols)
        found = columns["latitude"][3, row, col], columns["longitude"][3, row, col]
        assert found == pytest.approx(GRID.position(cell))


def test_an_event_gives_the_same_columns_as_the_grid(columns: dict[str, np.ndarray]) -> None:
    moment = datetime(2026, 3, 3, 5, tzinfo=UTC)
    assert np.datetime64(moment.replace(tzinfo=None)) == TIMES[HISTORY_HOURS]
    event = observation_columns(float(BLOCK[HISTORY_HOURS, 2, 3]), moment)
    assert tuple(event) == views("t2m")["cell_observation"]
    assert event == {name: float(columns[name][0, 2, 3]) for name in event}


def test_an_event_between_hours_and_in_another_zone() -> None:
    zone = timezone(timedelta(hours=2))
    event = observation_columns(281.5, datetime(2026, 3, 3, 14, 30, tzinfo=zone), "wind")
    angle = 2 * np.pi * 12.5 / 24
    assert event == pytest.approx({"wind": 281.5, "hour_sin": np.sin(angle), "hour_cos": np.cos(angle)})
    with pytest.raises(ValueError, match="no time zone"):
        observation_columns(281.5, datetime(2026, 3, 3, 14))  # noqa: DTZ001 - the point of the test


@pytest.mark.parametrize(
    ("block", "times", "message"),
    [
        (BLOCK[:, :-1], TIMES, r"expected float32 \(78, 15, 17\)"),
        (BLOCK.astype(np.float64), TIMES, "observations are float64"),
        (BLOCK[:HISTORY_HOURS], TIMES[:HISTORY_HOURS], "48 hours of observations are too few"),
        (np.delete(BLOCK, 20, axis=0), np.delete(TIMES, 20), "hours after 2026-03-02T00:00:00.000000 are missing"),
    ],
)
def test_refuses_blocks_that_do_not_fit(block: np.ndarray, times: np.ndarray, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        grid_features(block, times, GRID, "t2m")


def test_differences_and_references_name_columns_that_exist() -> None:
    pairs = differences("t2m")
    assert len(set(pairs)) == len(pairs)
    assert {name for pair in pairs for name in pair} <= set(NAMES)
    assert all(left != right for left, right in pairs)
    assert [same_hour_column("t2m", hours) for hours in (1, 6, 12, 24, 48)] == [
        "lag_23h",
        "lag_18h",
        "lag_12h",
        "t2m",
        "t2m",
    ]
    assert same_hour_column("t2m", 5) is None
