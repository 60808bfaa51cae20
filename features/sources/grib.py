"""Read a GRIB file of one variable on a regular grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations
from features.sources import WINDOW_VALUES_MAX

if TYPE_CHECKING:
    import xarray

MESSAGES_MAX = 1_000_000
TAIL_BYTES_MAX = 1_000_000
DEGREES_TOLERANCE = 1e-4  # GRIB 1 stores millidegrees
REMEDY = "replace the file, or download it again"


def read_grib(
    path: Path, grid: Grid, observed: GridObservations
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.float32]]]:
    """Times, datetime64[us] (T,), and values, float32 (T, rows, cols), in the file's order.

    Raises:
        SourceError: truncated, unreadable, another variable, or other coordinates.
    """
    import xarray

    _check_whole(path)
    try:
        # No index file: data folders may be read-only, and a stale index would show old data.
        dataset = xarray.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": "", "errors": "raise"})
    except Exception as error:  # cfgrib raises whatever its parts raise
        raise SourceError(f"{path} is not GRIB of one variable on one grid ({_first_line(error)}): {REMEDY}") from error
    with dataset:
        if observed.variable not in dataset.data_vars:
            found = ", ".join(map(str, dataset.data_vars)) or "none"
            raise SourceError(f"{path} holds {found}, expected {observed.variable}: give a file of that variable")
        field = dataset[observed.variable]
        _check_coordinates(path, field, grid)
        if field.ndim == 2:  # a single hour
            field = field.expand_dims("time")
        if field.dims != ("time", "latitude", "longitude"):
            raise SourceError(
                f"{path} has dimensions {', '.join(map(str, field.dims))}, expected time, latitude, longitude: "
                "give one value per hour and cell (no ensemble members, levels or forecast steps)"
            )
        if field.size > WINDOW_VALUES_MAX:
            raise SourceError(f"{path} has {field.size:,} values, more than {WINDOW_VALUES_MAX:,}: cut it")
        moments = np.atleast_1d(field["valid_time" if "valid_time" in field.coords else "time"].values)
        try:
            values = np.asarray(field.values, dtype=np.float32)
        except Exception as error:  # as above: decoding happens here
            raise SourceError(f"{path} cannot be decoded ({_first_line(error)}): {REMEDY}") from error
    return moments.astype("datetime64[us]"), values


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check_whole(path: Path) -> None:
    """Walk over the messages: a file that was cut ends inside one, which cfgrib may pass over in silence."""
    import eccodes  # type: ignore[import-untyped]

    end = 0
    with path.open("rb") as file:
        for number in range(1, MESSAGES_MAX + 1):
            try:
                message = eccodes.codes_grib_new_from_file(file, headers_only=True)
                if message is None:
                    break
                try:
                    end = int(eccodes.codes_get_message_offset(message)) + int(eccodes.codes_get_message_size(message))
                finally:
                    eccodes.codes_release(message)
            except eccodes.CodesInternalError as error:
                raise SourceError(
                    f"{path} is truncated or damaged in message {number} ({_first_line(error)}), after {end:,} of "
                    f"{path.stat().st_size:,} bytes: {REMEDY}"
                ) from None
        else:
            raise SourceError(f"{path} has more than {MESSAGES_MAX:,} messages: cut it")
    if end == 0:
        raise SourceError(f"{path} holds no GRIB message: give a GRIB file, or one that ends in .parquet")
    if _tail(path, end).strip(b"\0"):  # messages may be padded with zeros
        raise SourceError(
            f"{path} is truncated or damaged: its last whole message ends after {end:,} of "
            f"{path.stat().st_size:,} bytes: {REMEDY}"
        )


def _tail(path: Path, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(end)
        return file.read(TAIL_BYTES_MAX)


def _check_coordinates(path: Path, field: xarray.DataArray, grid: Grid) -> None:
    axes = (("latitude", grid.rows, grid.north, -grid.step), ("longitude", grid.cols, grid.west, grid.step))
    for axis, count, first, step in axes:
        expected = first + np.arange(count) * step
        found = field.coords.get(axis)
        degrees = np.atleast_1d(found.values).astype(np.float64) if found is not None else np.empty(0)
        on_axis = degrees.ndim == 1 and len(degrees) > 0
        if not on_axis or len(degrees) != count or _apart(degrees, expected) > DEGREES_TOLERANCE:
            says = f"{len(degrees)} from {degrees[0]:g} to {degrees[-1]:g}" if on_axis else "no regular axis"
            raise SourceError(
                f"{path} has other coordinates: {axis}s expected {count} from {expected[0]:g} to {expected[-1]:g}, "
                f"found {says}: give a file on the declared Grid, or declare the file's"
            )


def _apart(degrees: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The greatest difference between two lists of angles; GRIB 2 writes 350 for -10."""
    return float(np.abs((degrees - expected + 180) % 360 - 180).max())
