"""Sources: the simulated atmosphere is a function, files are whole or refused, a replayed clock stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.errors import DeclarationError, SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations
from almanac.settings import PROJECT_ROOT, Settings, load_settings
from features.grid import grid_features
from features.sources import open_source
from features.sources.atmosphere import SimulatedAtmosphere
from features.sources.recorded import clock_shift
from pipelines.weather import weather

GRID = Grid(rows=6, cols=7, tile=4)
TINY = replace(weather, partitions=GRID)
OBSERVED = GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0))
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
START = datetime(2019, 3, 1, tzinfo=UTC)
HOURS = 60


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


# --- the simulated atmosphere


def test_windows_that_overlap_agree_to_the_bit() -> None:
    atmosphere = SimulatedAtmosphere(GRID, OBSERVED, 7)
    whole = atmosphere.window(NOON - hours(100), NOON)
    part = atmosphere.window(NOON - hours(61), NOON - hours(30))
    assert whole.dims == ("time", "row", "col")
    assert (whole.dtype, whole.shape) == (np.float32, (101, 6, 7))
    assert whole["time"].values[-1] == np.datetime64("2026-03-10T12:00")
    np.testing.assert_array_equal(part.values, whole.values[39:71])


def test_another_process_simulates_the_same_atmosphere() -> None:
    program = (
        "from datetime import UTC, datetime, timedelta; from almanac.partitioning import Grid;"
        "from features.sources.atmosphere import SimulatedAtmosphere; from pipelines.weather import weather;"
        "a = SimulatedAtmosphere(Grid(rows=6, cols=7, tile=4), weather.source, 7);"
        "t = datetime(2026, 3, 10, 12, tzinfo=UTC); print(a.window(t - timedelta(hours=3), t).values.tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    here = SimulatedAtmosphere(GRID, OBSERVED, 7).window(NOON - hours(3), NOON).values
    assert done.stdout.strip() == here.tobytes().hex()


def test_seeds_give_other_weather_of_believable_size() -> None:
    one, two = (SimulatedAtmosphere(GRID, OBSERVED, seed).window(NOON - hours(700), NOON).values for seed in (1, -1))
    assert np.abs(one - two).mean() > 1
    for values in (one, two):
        assert 255 < values.min() < values.max() < 310
        assert 1 < values.std() < 8


def test_the_north_is_colder() -> None:
    tall = Grid(rows=40, cols=2, tile=8, north=70.0, step=1.0)
    rows = SimulatedAtmosphere(tall, OBSERVED, 3).window(NOON - hours(700), NOON).values.mean(axis=(0, 2))
    assert rows[0] < rows[20] < rows[-1]


def test_history_and_neighbours_beat_both_baselines() -> None:
    grid = Grid(rows=9, cols=12, tile=4, step=1.0)
    block = SimulatedAtmosphere(grid, OBSERVED, 2019).window(NOON - hours(24 * 30 + 47), NOON)
    columns = grid_features(block.values, block["time"].values, grid, "t2m")
    inputs = np.stack([columns[name] for name in columns if name not in ("latitude", "longitude")], -1)
    inputs = np.concatenate([inputs.astype(np.float64) - 280, np.ones((*inputs.shape[:3], 1))], -1)
    observed = columns["t2m"].astype(np.float64)
    for horizon in (6, 12, 24):
        change = observed[horizon:] - observed[:-horizon]
        cut = int(len(change) * 0.75)
        known = inputs[: cut - horizon].reshape(-1, inputs.shape[-1])  # no target of these lies in the held-out end
        weights = np.linalg.solve(
            known.T @ known + 10 * np.eye(known.shape[1]), known.T @ change[: cut - horizon].reshape(-1)
        )
        error = np.abs(inputs[cut:-horizon] @ weights - change[cut:]).mean()
        as_now = np.abs(change[cut:]).mean()
        day_before = columns["t2m"] if horizon == 24 else columns[f"lag_{24 - horizon}h"]
        as_yesterday = np.abs(observed[horizon:][cut:] - day_before[cut:-horizon]).mean()
        assert error < 0.9 * min(as_now, as_yesterday), horizon


def test_latest_is_the_hour_that_has_begun() -> None:
    atmosphere = open_source(TINY, load_settings())
    assert atmosphere.latest(NOON + timedelta(minutes=59)) == NOON
    assert atmosphere.clock_shift == timedelta(0)


@pytest.mark.parametrize(("start", "end"), [(NOON, NOON - hours(1)), (NOON + timedelta(minutes=5), NOON + hours(1))])
def test_a_window_is_whole_hours_in_order(start: datetime, end: datetime) -> None:
    with pytest.raises(SourceError, match="whole hours in order"):
        SimulatedAtmosphere(GRID, OBSERVED, 1).window(start, end)


def test_other_units_are_not_simulated() -> None:
    celsius = replace(TINY, source=GridObservations(variable="t2m", unit="C", valid_range=(-90, 60)))
    with pytest.raises(SourceError, match="ALMANAC_SOURCE_DATA"):
        open_source(celsius, load_settings())


def test_a_pipeline_without_source_says_so() -> None:
    with pytest.raises(DeclarationError, match="declares no source"):
        open_source(replace(TINY, source=None, stream=None), load_settings())


# --- files


def table(count: int = HOURS, grid: Grid = GRID, start: datetime = START) -> pa.Table:
    moments = np.datetime64(start.replace(tzinfo=None), "us") + np.arange(count) * np.timedelta64(3600, "s")
    values = 280 + np.arange(count)[:, None] * 0.01 + np.arange(grid.cells)
    return pa.table(
        {
            "cell_id": np.tile(np.arange(grid.cells), count),
            "observed_at": pa.array(np.repeat(moments, grid.cells)).cast(pa.timestamp("us", tz="UTC")),
            "t2m": values.reshape(-1).astype(np.float32),
        }
    )


def found(tmp_path: Path, path: Path) -> Settings:
    return load_settings(state_dir=tmp_path / "state", source_data=f"weather={path}")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "observations.parquet"
    pq.write_table(table().take(np.random.default_rng(1).permutation(HOURS * GRID.cells)), path)  # in any order
    return path


def test_a_replayed_file_ends_at_the_current_hour(tmp_path: Path, parquet: Path) -> None:
    source = open_source(TINY, found(tmp_path, parquet), now=NOON + timedelta(minutes=20))
    assert source.latest(NOON + timedelta(minutes=20)) == NOON
    assert source.latest(NOON + hours(5)) == NOON  # the file goes no further, and does not pretend to
    assert source.earliest == NOON - hours(HOURS - 1)
    assert source.clock_shift == NOON - (START + hours(HOURS - 1))
    assert "shifted by" in source.describe()
    last = source.window(NOON - hours(1), NOON)
    np.testing.assert_allclose(last.values[1].reshape(-1), 280 + (HOURS - 1) * 0.01 + np.arange(GRID.cells), rtol=1e-6)


def test_the_shift_of_the_first_use_stays(tmp_path: Path, parquet: Path) -> None:
    settings = found(tmp_path, parquet)
    first = open_source(TINY, settings, now=NOON)
    again = open_source(TINY, settings, now=NOON + hours(100))
    assert again.clock_shift == first.clock_shift
    assert again.identity == first.identity
    assert again.latest(NOON + hours(100)) == NOON


def test_another_file_settles_the_clock_anew(tmp_path: Path, parquet: Path) -> None:
    settings = found(tmp_path, parquet)
    first = open_source(TINY, settings, now=NOON)
    pq.write_table(table(HOURS - 3), parquet)
    second = open_source(TINY, settings, now=NOON)
    assert second.clock_shift - first.clock_shift == hours(3)
    assert second.identity != first.identity


def test_a_damaged_clock_is_named(tmp_path: Path, parquet: Path) -> None:
    settings = found(tmp_path, parquet)
    settings.features_dir.mkdir(parents=True)
    (settings.features_dir / "clock.json").write_text(json.dumps({"weather": {"sha256": "x"}}))
    with pytest.raises(SourceError, match=r"clock\.json cannot be read"):
        open_source(TINY, settings, now=NOON)


@pytest.mark.parametrize(
    ("last", "shift"),
    [(NOON, hours(0)), (NOON - hours(24), hours(0)), (NOON - hours(25), hours(25)), (NOON + hours(2), hours(-2))],
)
def test_only_a_file_of_the_past_is_shifted(last: datetime, shift: timedelta) -> None:
    assert clock_shift(last, NOON) == shift


def test_hours_outside_the_file_are_refused(tmp_path: Path, parquet: Path) -> None:
    source = open_source(TINY, found(tmp_path, parquet), now=NOON)
    with pytest.raises(SourceError, match="covers"):
        source.window(NOON, NOON + hours(1))
    with pytest.raises(SourceError, match="nothing at or before"):
        source.latest(NOON - hours(HOURS))


def edited(column: str, change: Callable[[Any], Any]) -> pa.Table:
    whole = table()
    return whole.set_column(whole.column_names.index(column), column, change(whole[column]))


def nan_at(column: Any) -> pa.Array:
    values = column.to_numpy().copy()
    values[GRID.cells * 4 + 2] = np.nan
    return pa.array(values)


BAD_TABLES = {
    "other grid": (table(grid=Grid(rows=6, cols=8, tile=4)), "cells expected 0 to 41 of a 6 x 7 grid, found 0 to 47"),
    "missing cell": (table().slice(0, HOURS * GRID.cells - 1), "each cell once in each hour"),
    "twice": (pa.concat_tables([table().slice(1), table().slice(7, 1)]), "lacks cell 0 at 2019-03-01T00:00:00"),
    "gap": (pa.concat_tables([table(3), table(3, start=START + hours(5))]), "gap.*02:00 to 2019-03-01 05:00"),
    "half hours": (table(3, start=START + timedelta(minutes=30)), "between the hours"),
    "nan": (edited("t2m", nan_at), "lacks 1 of 2,520 values of t2m, the first at 2019-03-01 04:00"),
    "celsius": (edited("t2m", lambda c: pa.array(c.to_numpy() - 273.15)), "outside 180.0 to 340.0 K"),
    "naive": (edited("observed_at", lambda c: c.cast(pa.timestamp("us"))), "time zone"),
    "words": (edited("cell_id", lambda c: c.cast(pa.string())), "whole numbers"),
    "other variable": (table().rename_columns(["cell_id", "observed_at", "wind"]), "no column t2m"),
    "no rows": (table().slice(0, 0), "no rows"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_parquet_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, says = BAD_TABLES[name]
    path = tmp_path / "bad.parquet"
    pq.write_table(content, path)
    with pytest.raises(SourceError, match=says) as caught:
        open_source(TINY, found(tmp_path, path), now=NOON)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "state" / "features" / "clock.json").exists()


def test_a_cut_parquet_file_is_refused(tmp_path: Path, parquet: Path) -> None:
    parquet.write_bytes(parquet.read_bytes()[:-20])
    with pytest.raises(SourceError, match="not a whole Parquet file"):
        open_source(TINY, found(tmp_path, parquet), now=NOON)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ALMANAC_SOURCE_DATA"):
        open_source(TINY, found(tmp_path, tmp_path / "none.grib"), now=NOON)


def test_a_cell_twice_in_an_hour_is_one_if_the_values_are_equal(tmp_path: Path) -> None:
    whole, path = table(3), tmp_path / "twice.parquet"
    pq.write_table(pa.concat_tables([whole, whole.slice(45, 2)]), path)
    source = open_source(TINY, found(tmp_path, path), now=NOON)
    np.testing.assert_array_equal(source.window(NOON - hours(2), NOON).values.reshape(-1), whole["t2m"].to_numpy())
    other = whole.slice(45, 1).set_column(2, "t2m", pa.array([299.0], pa.float32()))
    pq.write_table(pa.concat_tables([whole, other]), path)
    says = r"cell 3 at 2019-03-01T01:00:00\.000000 twice, with unequal values: row 46 has 283.01, row 127 has 299"
    with pytest.raises(SourceError, match=says):
        open_source(TINY, found(tmp_path, path), now=NOON)
