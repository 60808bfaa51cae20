"""Real observations from a GRIB or Parquet file, with its clock shifted up to now when it is of the past."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from almanac.clock import HOUR, floor_hour, format_time
from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations, Pipeline
from almanac.settings import Settings
from features.files import locked, replacing
from features.sources import grid_of

if TYPE_CHECKING:
    import xarray

CLOCK_FILE = "clock.json"
LIVE_WITHIN = timedelta(hours=24)  # a file that ends later than this before now is live: its clock is its own


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


class Recorded(Protocol):
    """A file of the past whose clock may be shifted."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of its bytes."""
        ...

    @property
    def last(self) -> datetime:
        """Its last moment, on its own clock."""
        ...


def settle_clock(path: Path, name: str, recording: Recorded, now: datetime) -> timedelta:
    """The shift of a recording's clock: decided at its first use, kept in `path`, the same ever after.

    A whole number of hours, so that the last moment becomes one of the hour that
    ends at `now`. It may turn the hour of day: training and serving read the
    same shifted clock, so the daily cycle is learnt where it then lies.
    """
    with locked(path.with_suffix(".lock")):
        known = _read_clocks(path)
        entry = known.get(name)
        if entry is not None and entry["sha256"] == recording.digest:
            return timedelta(hours=entry["shift_hours"])
        shift = clock_shift(recording.last, now)
        known[name] = {
            "file": recording.path.name,
            "sha256": recording.digest,
            "shift_hours": shift // HOUR,
            "settled_at": format_time(now),
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        return shift


def _read_clocks(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())
        for entry in found.values():
            entry["sha256"], entry["shift_hours"] = str(entry["sha256"]), int(entry["shift_hours"])
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path} cannot be read ({error!r}): remove it, and the replayed clock is settled anew"
        ) from None


def clock_shift(last: datetime, now: datetime) -> timedelta:
    """What to add to times: none for a live recording, else whole hours that bring its last moment up to now."""
    if timedelta(0) <= now - last <= LIVE_WITHIN:
        return timedelta(0)
    return (now - last) // HOUR * HOUR


class Replay:
    """A `Source` of real observations from a file, on a shifted clock."""

    def __init__(self, recording: Recording, grid: Grid, observed: GridObservations, shift: timedelta) -> None:
        self._recording, self._grid, self._observed = recording, grid, observed
        self.clock_shift = shift

    @property
    def earliest(self) -> datetime:
        """The file's first hour, shifted."""
        return _aware(self._recording.times[0]) + self.clock_shift

    @property
    def identity(self) -> str:
        """The file's content and the shift."""
        return f"file sha256={self._recording.digest} shift_hours={self.clock_shift // HOUR}"

    def describe(self) -> str:
        """One line for a person."""
        first, last = _aware(self._recording.times[0]), self._recording.last
        text = (
            f"{self._recording.path.name}, {len(self._recording.times)} hours of {self._observed.variable}, "
            f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
        )
        if not self.clock_shift:
            return text
        return f"{text}; replayed with the clock shifted by {self.clock_shift // HOUR} hours"

    def latest(self, now: datetime) -> datetime:
        """The last observed hour at or before `now`; see `Source.latest`."""
        latest = min(self._recording.last + self.clock_shift, floor_hour(now))
        if latest < self.earliest:
            shifted = " on its shifted clock" if self.clock_shift else ""
            raise SourceError(
                f"{self._recording.path} has nothing at or before {format_time(now)}: "
                f"it begins at {format_time(self.earliest)}{shifted}; ask for a later time"
            )
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
