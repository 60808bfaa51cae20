"""What all sources share: the hours of a window, and their labelled array."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import xarray

from almanac.clock import HOUR, floor_hour, micros_of
from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations
from features.sources import WINDOW_VALUES_MAX

Hours = np.ndarray[tuple[int], np.dtype[np.datetime64]]


def datetime64(when: datetime) -> np.datetime64:
    """An aware time as NumPy's UTC without a zone, to the microsecond."""
    return np.datetime64(micros_of(when), "us")


def hours_between(start: datetime, end: datetime, grid: Grid) -> Hours:
    """The whole hours from `start` to `end`, both included, as datetime64[us].

    Raises:
        SourceError: not whole hours, reversed, or more values than fit in memory.
    """
    if floor_hour(start) != start or floor_hour(end) != end or end < start:
        raise SourceError(f"a window from {start} to {end} is not made of whole hours in order: floor both to the hour")
    count = (end - start) // HOUR + 1
    if count * grid.cells > WINDOW_VALUES_MAX:
        raise SourceError(
            f"a window of {count:,} hours x {grid.cells:,} cells has more than {WINDOW_VALUES_MAX:,} values: "
            "ask for fewer hours"
        )
    return np.asarray(datetime64(start) + np.arange(count) * np.timedelta64(1, "h").astype("timedelta64[us]"))


def observations(
    values: np.ndarray[Any, np.dtype[np.float32]], times: Hours, grid: Grid, observed: GridObservations
) -> xarray.DataArray:
    """Label values of shape (time, cells) or (time, row, col)."""
    return xarray.DataArray(
        values.reshape(len(times), grid.rows, grid.cols),
        dims=("time", "row", "col"),
        coords={
            "time": times.astype("datetime64[ns]"),
            "latitude": ("row", grid.north - np.arange(grid.rows) * grid.step),
            "longitude": ("col", grid.west + np.arange(grid.cols) * grid.step),
        },
        name=observed.variable,
        attrs={"units": observed.unit},
    )
