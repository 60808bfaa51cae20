"""Features of a grid cell, computed from a block of hourly fields: pure NumPy, the same for batch and training.

Four views, by how they change: an event on the stream replaces the observation
view of its one cell, the other views stay as they were last materialized.
Columns hold levels, in the variable's own unit, and never differences: a model
takes the differences it wants inside its own graph, so that a new observation
moves all of them at once.

A neighbour beyond the edge of the grid is the edge cell itself (the edge is
replicated), so that no null arises; a NaN in the block reaches only the columns
that look at it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import need_utc
from almanac.errors import FeatureError
from almanac.partitioning import Grid

Columns = dict[str, NDArray[np.float32]]

LAGS_HOURS = (1, 2, 3, 6, 12, 18, 23, 24, 36, 42, 48)
MEAN_HOURS = 24
HISTORY_HOURS = 48
"""Hours before a time that its features look back on."""
CARRIED_LAGS_HOURS = tuple(sorted({hours - 1 for hours in LAGS_HOURS} - set(LAGS_HOURS)))
"""An hour before each lag: what the lag will be in an hour."""

DIRECTIONS = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}
VALUE_CELLS = (1, 3, 6, 12)
"""Distances, in cells, at which the neighbours' values are columns."""
DAY_CELLS = (3, 6, 12)
"""Distances at which the neighbours' values 24 hours ago are columns as well."""

HOUR = ("hour_sin", "hour_cos")
HISTORY = (*(f"lag_{hours}h" for hours in LAGS_HOURS), "mean_24h", "min_24h", "max_24h", "mean_24h_lag_24h")
NEIGHBOURS = (
    *(f"{side}_{cells}" for cells in VALUE_CELLS for side in DIRECTIONS),
    *(f"{side}_{cells}_lag_24h" for cells in DAY_CELLS for side in DIRECTIONS),
    "grid_mean",
    "grid_mean_lag_24h",
)
POSITION = ("latitude", "longitude")
HISTORY_HOUR = "history_hour"
CARRIED = (*(f"lag_{hours}h" for hours in CARRIED_LAGS_HOURS), HISTORY_HOUR)
"""Columns of the history view that no model looks at: with them `features.forward` brings the others forward to a later
event. `history_hour` counts whole hours since 1970, which float32 holds exactly."""


def observation_names(variable: str) -> tuple[str, ...]:
    """Columns of the observation view: the value under the variable's own name, and the hour of day."""
    return (variable, *HOUR)


def views(variable: str) -> dict[str, tuple[str, ...]]:
    """Columns of each feature view of a grid pipeline that observes `variable`, in order."""
    return {
        "cell_observation": observation_names(variable),
        "cell_history": (*HISTORY, *CARRIED),
        "cell_neighbours": NEIGHBOURS,
        "cell_position": POSITION,
    }


VIEWS = views("t2m")
"""The views of the air temperature at 2 m."""


def differences(variable: str) -> tuple[tuple[str, str], ...]:
    """Pairs of columns whose difference, left minus right, a model may look at besides the levels.

    Against the value now: every lag and neighbour. And how the air changed
    from one day to the next, here and around, and over yesterday's same hours.
    """
    plain = [f"{side}_{cells}" for cells in VALUE_CELLS for side in DIRECTIONS]
    yesterdays = [f"{side}_{cells}" for cells in DAY_CELLS for side in DIRECTIONS]
    return (
        *((column, variable) for column in (*HISTORY, *plain, "grid_mean")),
        *((column, f"{column}_lag_24h") for column in (*yesterdays, "grid_mean", "mean_24h")),
        *((f"lag_{hours}h", f"lag_{hours + 24}h") for hours in LAGS_HOURS if hours + 24 in LAGS_HOURS),
        *((f"lag_{hours}h", "lag_24h") for hours in (12, 18, 23)),
        *((f"lag_{hours}h", "lag_48h") for hours in (36, 42)),
        ("lag_18h", "mean_24h_lag_24h"),
        ("max_24h", "min_24h"),
    )


def same_hour_column(variable: str, horizon_hours: int) -> str | None:
    """The column that holds the last known value of the hour of day that a forecast speaks about, if there is one."""
    lag = -horizon_hours % 24
    if lag == 0:
        return variable
    return f"lag_{lag}h" if lag in LAGS_HOURS else None


def observation_columns(value: float, observed_at: datetime, variable: str = "t2m") -> dict[str, float]:
    """The observation view's row for one event.

    Args:
        value: what was observed, in the variable's unit.
        observed_at: when, aware; minutes count.
        variable: its name, which is the value's column.

    Raises:
        ValueError: `observed_at` has no time zone.
    """
    moment = np.array([need_utc(observed_at).replace(tzinfo=None)], dtype="datetime64[us]")
    sine, cosine = _hour_of_day(moment)
    return {variable: float(np.float32(value)), HOUR[0]: float(sine[0]), HOUR[1]: float(cosine[0])}


def grid_features(block: NDArray[np.float32], times: NDArray[Any], grid: Grid, variable: str) -> Columns:
    """All features of all cells, for each time that has its full history.

    Args:
        block: observed values, float32 (T, rows, cols), in the variable's unit.
        times: the block's hours, datetime64 in UTC, ascending, one hour apart, (T,).
        grid: where the cells are.
        variable: name of the value's column.

    Returns:
        Every column of `views(variable)`, float32 (T - HISTORY_HOURS, rows, cols), for
        `times[HISTORY_HOURS:]`.

    Raises:
        FeatureError: the block has other cells than the grid, gaps in its hours, or too few of them.
    """
    moments = _check(block, times, grid)
    now = block[HISTORY_HOURS:]
    sine, cosine = (np.broadcast_to(part[:, None, None], now.shape) for part in _hour_of_day(moments))
    return {
        variable: now,
        HOUR[0]: sine,
        HOUR[1]: cosine,
        **_history(block),
        **_carried(block, moments),
        **_neighbours(block),
        **_position(grid, len(now)),
    }


def _check(block: NDArray[np.float32], times: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """The times that have their full history, after the block and its times were found sound."""
    moments = np.asarray(times, dtype="datetime64[us]")
    if block.dtype != np.float32 or block.shape != (len(moments), grid.rows, grid.cols):
        raise FeatureError(
            f"observations are {block.dtype} {block.shape}, expected float32 "
            f"({len(moments)}, {grid.rows}, {grid.cols}): give hours x rows x cols of the declared grid"
        )
    if len(moments) <= HISTORY_HOURS:
        raise FeatureError(
            f"{len(moments)} hours of observations are too few: features look back {HISTORY_HOURS} hours, give more"
        )
    gaps = np.flatnonzero(np.diff(moments) != np.timedelta64(1, "h"))
    if len(gaps):
        raise FeatureError(
            f"hours after {moments[gaps[0]]} are missing or out of order: give every hour once, in order"
        )
    return moments[HISTORY_HOURS:]


def _hour_of_day(moments: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sine and cosine of the time of day in UTC; minutes count."""
    since_midnight = (moments - moments.astype("datetime64[D]")).astype("timedelta64[us]").astype(np.float64)
    angle = since_midnight * (2 * np.pi / 86_400e6)
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)


def _lag(block: NDArray[np.float32], hours: int) -> NDArray[np.float32]:
    """The values `hours` before each time that has its full history."""
    return block[HISTORY_HOURS - hours : len(block) - hours]


def _history(block: NDArray[np.float32]) -> Columns:
    found = {f"lag_{hours}h": _lag(block, hours) for hours in LAGS_HOURS}
    total = np.zeros(found["lag_1h"].shape, dtype=np.float64)
    total_before = np.zeros_like(total)
    least = _lag(block, 0).copy()
    greatest = least.copy()
    for hours in range(MEAN_HOURS):  # hour by hour, so that one hour and many give the same bits
        total += _lag(block, hours)
        total_before += _lag(block, hours + MEAN_HOURS)
        np.minimum(least, _lag(block, hours), out=least)
        np.maximum(greatest, _lag(block, hours), out=greatest)
    found["mean_24h"] = (total / MEAN_HOURS).astype(np.float32)
    found["min_24h"] = least
    found["max_24h"] = greatest
    found["mean_24h_lag_24h"] = (total_before / MEAN_HOURS).astype(np.float32)
    return found


def _carried(block: NDArray[np.float32], moments: NDArray[Any]) -> Columns:
    hours = moments.astype("datetime64[h]").astype(np.int64).astype(np.float32)
    found = {f"lag_{hours}h": _lag(block, hours) for hours in CARRIED_LAGS_HOURS}
    found[HISTORY_HOUR] = np.broadcast_to(hours[:, None, None], (len(moments), *block.shape[1:]))
    return found


def _neighbours(block: NDArray[np.float32]) -> Columns:
    found: Columns = {}
    now, yesterday = _lag(block, 0), _lag(block, 24)
    for cells in VALUE_CELLS:
        for side, (down, right) in DIRECTIONS.items():
            found[f"{side}_{cells}"] = _shifted(now, down * cells, right * cells)
    for cells in DAY_CELLS:
        for side, (down, right) in DIRECTIONS.items():
            found[f"{side}_{cells}_lag_24h"] = _shifted(yesterday, down * cells, right * cells)
    for name, field in (("grid_mean", now), ("grid_mean_lag_24h", yesterday)):
        mean = field.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
        found[name] = np.broadcast_to(mean[:, None, None], field.shape)
    return found


def _shifted(field: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    """Each cell's neighbour that many cells down and right, or the edge cell before it."""
    rows = np.clip(np.arange(field.shape[1]) + down, 0, field.shape[1] - 1)
    cols = np.clip(np.arange(field.shape[2]) + right, 0, field.shape[2] - 1)
    return field[:, rows[:, None], cols[None, :]]


def _position(grid: Grid, count: int) -> Columns:
    shape = (count, grid.rows, grid.cols)
    latitude = (grid.north - np.arange(grid.rows) * grid.step).astype(np.float32)
    longitude = (grid.west + np.arange(grid.cols) * grid.step).astype(np.float32)
    return {
        "latitude": np.broadcast_to(latitude[None, :, None], shape),
        "longitude": np.broadcast_to(longitude[None, None, :], shape),
    }
