"""Real observations from a GRIB or Parquet file, with its clock shifted up to now when it is of the past."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import HOUR, floor_hour, format_time
from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations, Pipeline
from almanac.settings import Settings
from features.sources import grid_of
from features.sources.recorded import CLOCK_FILE, Replayed, settle_clock

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, kw_only=True)
class Recording:
    """All observations of a file, checked: every hour once, every cell of the grid, no NaN.

    Args:
        path: the file.
        digest: SHA-256 of its bytes, hexadecimal.
        times: its own hours, datetime64[us] in UTC, one hour apart.
        values: float32 (time, row, col).
    """

    path: Path
    digest: str
    times: np.ndarray[Any, np.dtype[np.datetime64]]
    values: np.ndarray[Any, np.dtype[np.float32]]

    @property
    def first(self) -> datetime:
        """Its first hour, on its own clock."""
        return _aware(self.times[0])

    @property
    def last(self) -> datetime:
        """Its last hour, on its own clock."""
        return _aware(self.times[-1])


def _aware(moment: np.datetime64) -> datetime:
    return datetime.fromtimestamp(int(moment.astype("datetime64[s]").astype(np.int64)), UTC)


def read_recording(path: Path, grid: Grid, observed: GridObservations, entity: str) -> Recording:
    """Read and check a file of observations; `.parquet` is Parquet, everything else GRIB.

    Raises:
        SourceError: one line with what is expected and what was found.
    """
    if not path.is_file():
        raise SourceError(
            f"{path} is not a file: correct ALMANAC_SOURCE_DATA, or leave it out for the simulated atmosphere"
        )
    if path.suffix == ".parquet":
        from features.sources.parquet import read_parquet

        times, values = read_parquet(path, grid, observed, entity)
    else:
        from features.sources.grib import read_grib

        times, values = read_grib(path, grid, observed)
    _check_hours(path, times)
    _check_values(path, times, values, observed)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Recording(path=path, digest=digest, times=times, values=values)


def _check_hours(path: Path, times: np.ndarray[Any, Any]) -> None:
    if np.any(times.astype("datetime64[h]") != times):
        raise SourceError(f"{path} has observations between the hours: give one value an hour, on the hour")
    gaps = np.flatnonzero(np.diff(times) != np.timedelta64(1, "h"))
    if len(gaps):
        before, after = (_aware(times[gaps[0] + step]) for step in (0, 1))
        raise SourceError(
            f"{path} has {len(gaps)} gap(s), the first from {before:%Y-%m-%d %H:%M} to {after:%Y-%m-%d %H:%M}: "
            "give every hour once, in order"
        )


def _check_values(
    path: Path, times: np.ndarray[Any, Any], values: np.ndarray[Any, Any], observed: GridObservations
) -> None:
    absent = ~np.isfinite(values)
    if absent.any():
        hour = _aware(times[int(np.argmax(absent.any(axis=(1, 2))))])
        raise SourceError(
            f"{path} lacks {int(absent.sum()):,} of {values.size:,} values of {observed.variable}, "
            f"the first at {hour:%Y-%m-%d %H:%M}: fill or replace them"
        )
    low, high = observed.valid_range
    least, greatest = float(values.min()), float(values.max())
    if least < low or greatest > high:
        raise SourceError(
            f"{path} has {observed.variable} from {least:.1f} to {greatest:.1f}, outside {low} to {high} "
            f"{observed.unit}: give the declared unit, or correct the declaration's valid_range"
        )


def open_replay(pipeline: Pipeline, settings: Settings, path: Path, now: datetime) -> Replay:
    """Read a file and settle its clock; see `open_source`."""
    grid, observed = grid_of(pipeline)
    recording = read_recording(path, grid, observed, pipeline.entity)
    shift = settle_clock(settings.features_dir / CLOCK_FILE, pipeline.name, recording, now)
    return Replay(recording, grid, observed, shift)


class Replay(Replayed[Recording]):
    """A `Source` of real observations from a file, on a shifted clock."""

    def __init__(self, recording: Recording, grid: Grid, observed: GridObservations, shift: timedelta) -> None:
        super().__init__(recording, shift)
        self._grid, self._observed = grid, observed

    @property
    def identity(self) -> str:
        """The file's content, the shift, and which of unequal fields counts."""
        known = super().identity
        return known if self._observed.prefer is None else f"{known} prefer={self._observed.prefer}"

    def describe(self) -> str:
        """One line for a person."""
        return self._told(f"{len(self._recording.times)} hours of {self._observed.variable}")

    def latest(self, now: datetime) -> datetime:
        """The last observed hour at or before `now`; see `Source.latest`."""
        latest = min(self._recording.last + self.clock_shift, floor_hour(now))
        if latest < self.earliest:
            raise self._nothing_until(now)
        return latest

    def window(self, start: datetime, end: datetime) -> xarray.DataArray:
        """All hours from `start` to `end`; see `Source.window`."""
        from features.sources.window import hours_between, observations

        times = hours_between(start, end, self._grid)
        last = self._recording.last + self.clock_shift
        if start < self.earliest or end > last:
            raise SourceError(
                f"{self._recording.path} covers {format_time(self.earliest)} to {format_time(last)}, "
                f"not {format_time(start)} to {format_time(end)}: ask for hours within it"
            )
        first = (start - self.earliest) // HOUR
        return observations(self._recording.values[first : first + len(times)], times, self._grid, self._observed)
