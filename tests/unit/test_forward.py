"""Features brought forward to an event: equal to what the batch side computes there, as far as it can be known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.partitioning import Grid
from features.forward import FORWARD_HOURS_MAX, bring_forward, bring_table_forward
from features.grid import CARRIED, HISTORY, HISTORY_HOURS, LAGS_HOURS, NEIGHBOURS, Columns, grid_features

GRID = Grid(rows=4, cols=5, tile=2, north=58.0, west=-10.0, step=0.25)
START = np.datetime64("2026-03-01T00:00:00", "us")
HOURS = HISTORY_HOURS + 2
FIRST_HOUR = int(START.astype("datetime64[h]").astype(int)) + HISTORY_HOURS


def features_of(block: np.ndarray) -> Columns:
    times = START + np.arange(len(block)) * np.timedelta64(1, "h").astype("timedelta64[us]")
    return {name: part.reshape(part.shape[0], -1) for name, part in grid_features(block, times, GRID, "t2m").items()}


def random_block(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(280, 5, (HOURS, GRID.rows, GRID.cols)).astype(np.float32)


def stale(found: Columns) -> Columns:
    """Hour 1's observation over hour 0's other views, as the stream finds them."""
    return {name: part[1] if name == "t2m" else part[0] for name, part in found.items()}


@given(seed=st.integers(0, 2**16))
def test_an_hour_later_history_is_what_batch_computes(seed: int) -> None:
    found = features_of(random_block(seed))
    new = bring_forward(stale(found), np.full(GRID.cells, FIRST_HOUR + 1.0), "t2m")
    for name in (*(f"lag_{hours}h" for hours in LAGS_HOURS), "mean_24h", "mean_24h_lag_24h"):
        np.testing.assert_allclose(new[name], found[name][1], rtol=0, atol=1e-3, err_msg=name)
    assert (new["min_24h"] <= found["min_24h"][1]).all()
    assert (new["max_24h"] >= found["max_24h"][1]).all()


def test_a_field_that_changes_everywhere_alike_has_batch_neighbours() -> None:
    shape = np.random.default_rng(1).normal(280, 5, (1, GRID.rows, GRID.cols))
    block = (shape + np.sin(np.arange(HOURS) / 4)[:, None, None]).astype(np.float32)
    found = features_of(block)
    new = bring_forward(stale(found), np.full(GRID.cells, FIRST_HOUR + 1.0), "t2m")
    for name in NEIGHBOURS:
        np.testing.assert_allclose(new[name], found[name][1], rtol=0, atol=1e-3, err_msg=name)


@given(minutes=st.integers(1, 60))
def test_between_the_hours_lags_lie_on_the_line_between_them(minutes: int) -> None:
    found = features_of(random_block(3))
    share = minutes / 60
    new = bring_forward(stale(found), np.full(GRID.cells, FIRST_HOUR + share), "t2m")
    expected = found["lag_1h"][0] * (1 - share) + found["t2m"][0] * share
    np.testing.assert_allclose(new["lag_1h"], expected, rtol=0, atol=1e-3)
    expected = found["lag_24h"][0] * (1 - share) + found["lag_23h"][0] * share
    np.testing.assert_allclose(new["lag_24h"], expected, rtol=0, atol=1e-3)


@given(passed=st.floats(-3.0, 12.0))
def test_lags_stay_between_the_values_that_are_known(passed: float) -> None:
    found = features_of(random_block(5))
    new = bring_forward(stale(found), np.full(GRID.cells, FIRST_HOUR + passed), "t2m")
    known = np.stack([found[name][0] for name in (*HISTORY[: len(LAGS_HOURS)], *CARRIED[:-1])] + [found["t2m"][1]])
    for hours in LAGS_HOURS:
        assert (new[f"lag_{hours}h"] >= known.min(axis=0) - 1e-3).all()
        assert (new[f"lag_{hours}h"] <= known.max(axis=0) + 1e-3).all()


@pytest.mark.parametrize("passed", [0.0, -2.0, FORWARD_HOURS_MAX + 0.5, float("nan")])
def test_what_is_not_after_the_history_or_long_after_it_stays(passed: float) -> None:
    found = features_of(random_block(7))
    new = bring_forward(stale(found), np.full(GRID.cells, FIRST_HOUR + passed), "t2m")
    for name, values in new.items():
        np.testing.assert_array_equal(values, found[name][0], err_msg=name)


def moment(hour: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour)


def test_a_table_keeps_its_nulls_and_other_columns() -> None:
    rows = {name: [float(part[0]), None] for name, part in stale(features_of(random_block(9))).items()}
    rows["t2m"] = [281.0, 282.0]
    table = pa.table({"cell_id": [0, 1], **{name: pa.array(values, pa.float32()) for name, values in rows.items()}})
    new = bring_table_forward(table, [moment(FIRST_HOUR + 1), moment(FIRST_HOUR + 1)], "t2m")
    assert new.column_names == table.column_names
    assert new["lag_1h"].to_pylist() == [rows["lag_0h"][0], None]
    assert new["t2m"].to_pylist() == [281.0, 282.0]
    assert new["latitude"].null_count == 1


def test_a_table_of_other_features_is_left_alone() -> None:
    table = pa.table({"cell_id": [0], "t2m": [281.0]})
    assert bring_table_forward(table, [moment(0)], "t2m") is table
