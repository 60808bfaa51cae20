"""A simulated atmosphere: air temperature as a pure function of seed, time and position.

Every value is a sum of a climate that depends on latitude and season, a daily
cycle that is strong over land and weak over sea and damped by passing cloud,
travelling synoptic waves whose strength comes and goes over weeks, and a small
smooth noise. There is no state: any past hour can be computed by any process,
and gives the same numbers. Waves are smooth in time and move across the grid,
so that what the neighbours upstream saw, and how the last hours went, tells a
model more than "as now" and "as yesterday" do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.clock import DAY, EPOCH, HOUR, floor_hour
from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations

if TYPE_CHECKING:
    import xarray

Floats = NDArray[np.float64]

VERSION = 1  # raise it when the same seed gives other numbers
DAY_HOURS = 24
CHUNK_CELLS = 16_384  # bounds the table of waves to some 60 MB however large the grid
DECIMALS = 3  # values are rounded to 1 mK, so that the last bits of a sum never show
KM_PER_DEGREE = 111.2


@dataclass(frozen=True, kw_only=True)
class Band:
    """A family of travelling waves, drawn at random within limits.

    Args:
        waves: how many.
        spread: standard deviation of their sum, in kelvin (cloud: in shares).
        period: shortest and longest, in hours.
        length: shortest and longest wavelength, in kilometres.
        heading: least and greatest direction of travel, in degrees north of east.
    """

    waves: int
    spread: float
    period: tuple[float, float]
    length: tuple[float, float]
    heading: tuple[float, float]


SYNOPTIC = Band(waves=14, spread=2.0, period=(60, 240), length=(900, 3500), heading=(-50, 50))
CLOUD = Band(waves=5, spread=0.22, period=(60, 200), length=(1200, 3500), heading=(-40, 40))
NOISE = Band(waves=120, spread=0.22, period=(3, 14), length=(90, 500), heading=(-180, 180))


class _Waves:
    """The waves of one band: sum over k of a_k(t) cos(x.q_k - w_k t + p_k), by one matrix product."""

    def __init__(self, band: Band, random: np.random.Generator) -> None:
        draw = random.random((6, band.waves))

        def between(limits: tuple[float, float], share: Floats) -> Floats:
            # evenly in the logarithm: as many short as long ones
            return np.asarray(limits[0] * (limits[1] / limits[0]) ** share)

        self.omega = 2 * math.pi / between(band.period, draw[0])
        number = 2 * math.pi / between(band.length, draw[1])
        heading = np.radians(band.heading[0] + (band.heading[1] - band.heading[0]) * draw[2])
        self.east, self.north = number * np.cos(heading), number * np.sin(heading)
        self.phase = 2 * math.pi * draw[3]
        self.strength_omega = 2 * math.pi / (DAY_HOURS * (8 + 25 * draw[4]))
        self.strength_phase = 2 * math.pi * draw[5]
        self.amplitude = band.spread * math.sqrt(2 / band.waves)

    def basis(self, x: Floats, y: Floats) -> Floats:
        """(2 waves, cells) from kilometres east and north."""
        place = np.outer(self.east, x) + np.outer(self.north, y) + self.phase[:, None]
        return np.concatenate([np.cos(place), np.sin(place)])

    def weights(self, hours: Floats) -> Floats:
        """(hours, 2 waves) from hours since the epoch."""
        turn = np.outer(hours, self.omega)
        strength = self.amplitude * (1 + 0.4 * np.sin(np.outer(hours, self.strength_omega) + self.strength_phase))
        return np.concatenate([strength * np.cos(turn), strength * np.sin(turn)], axis=1)


class SimulatedAtmosphere:
    """A `Source` of simulated air temperature, in kelvin, that reaches up to now, for a grid of any size."""

    clock_shift = timedelta(0)

    def __init__(self, grid: Grid, observed: GridObservations, seed: int) -> None:
        if observed.unit != "K":
            raise SourceError(
                f"the simulated atmosphere gives air temperature in K, but {observed.variable} is declared in "
                f"{observed.unit!r}: name a file of observations in ALMANAC_SOURCE_DATA"
            )
        self._grid, self._observed, self._seed = grid, observed, seed
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([VERSION, abs(seed), int(seed < 0)])))
        self._bands = [_Waves(SYNOPTIC, random), _Waves(NOISE, random)]
        self._cloud = _Waves(CLOUD, random)
        self._land = random.random((4, 6))

    @property
    def earliest(self) -> datetime:
        """The simulation begins with Unix time."""
        return EPOCH

    @property
    def identity(self) -> str:
        """Seed and grid."""
        grid = self._grid
        return (
            f"simulated v{VERSION} seed={self._seed} {grid.rows}x{grid.cols} "
            f"north={grid.north} west={grid.west} step={grid.step}"
        )

    def describe(self) -> str:
        """One line for a person."""
        return f"simulated atmosphere, seed {self._seed}, {self._grid.rows} x {self._grid.cols} cells"

    def latest(self, now: datetime) -> datetime:
        """The hour that has begun."""
        return floor_hour(now)

    def window(self, start: datetime, end: datetime) -> xarray.DataArray:
        """All hours from `start` to `end`; see `Source.window`."""
        from features.sources.window import hours_between, observations

        times = hours_between(start, end, self._grid)
        if start < EPOCH:
            raise SourceError(
                f"the simulated atmosphere begins at {EPOCH:%Y-%m-%d}, not {start:%Y-%m-%d}: ask for later hours"
            )
        first_day = (floor_hour(start) - EPOCH) // DAY
        last_day = (floor_hour(end) - EPOCH) // DAY
        skipped = int((floor_hour(start) - EPOCH) / HOUR) - first_day * DAY_HOURS
        values = np.empty((len(times), self._grid.cells), np.float32)
        for begin in range(0, self._grid.cells, CHUNK_CELLS):
            chunk = slice(begin, min(begin + CHUNK_CELLS, self._grid.cells))
            field = _Field(self, np.arange(chunk.start, chunk.stop))
            # Whole days, whatever was asked: sums of equal shape round equally, so windows that overlap agree.
            for day in range(first_day, last_day + 1):
                offset = (day - first_day) * DAY_HOURS - skipped
                part = slice(max(offset, 0), min(offset + DAY_HOURS, len(times)))
                values[part, chunk] = field.day(day)[part.start - offset : part.stop - offset]
        return observations(values, times, self._grid, self._observed)

    def land(self, x: Floats, y: Floats) -> Floats:
        """How much like land a place behaves, 0 (sea) to 1, from kilometres east and north."""
        total = np.zeros_like(x)
        for share, angle, phase, weight in zip(*self._land, strict=True):
            number = 2 * math.pi / (180 * (900 / 180) ** share)
            turn = 2 * math.pi * angle
            total += (0.5 + weight) * np.cos(number * (x * math.cos(turn) + y * math.sin(turn)) + 2 * math.pi * phase)
        return np.asarray(1 / (1 + np.exp(-3 * total)))

    @property
    def parts(self) -> tuple[Grid, list[_Waves], _Waves]:
        """Grid, temperature waves, cloud waves."""
        return self._grid, self._bands, self._cloud


class _Field:
    """The atmosphere over some cells, one day at a time."""

    def __init__(self, atmosphere: SimulatedAtmosphere, cells: NDArray[np.int64]) -> None:
        grid, self._bands, self._cloud = atmosphere.parts
        row, col = np.divmod(cells.astype(np.float64), grid.cols)
        self._latitude: Floats = np.asarray(grid.north - row * grid.step)
        self._longitude: Floats = np.asarray(grid.west + col * grid.step)
        # A flat map about the grid's middle latitude: good enough, and straight waves stay straight.
        middle = grid.north - (grid.rows - 1) * grid.step / 2
        x = self._longitude * KM_PER_DEGREE * math.cos(math.radians(middle))
        y = self._latitude * KM_PER_DEGREE
        self._basis = np.concatenate([waves.basis(x, y) for waves in self._bands])
        self._cloud_basis = self._cloud.basis(x, y)
        self._swing = 0.3 + 4.2 * atmosphere.land(x, y)

    def day(self, day: int) -> Floats:
        """(24, cells) kelvin, from midnight UTC of a day counted from the epoch."""
        hours = day * DAY_HOURS + np.arange(DAY_HOURS, dtype=np.float64)
        weights = np.concatenate([waves.weights(hours) for waves in self._bands], axis=1)
        season = np.cos(2 * math.pi * (hours / (DAY_HOURS * 365.2425) - 0.55))
        climate = 301.0 - 0.0068 * self._latitude**2 + np.outer(season, 0.12 * self._latitude)
        clear = np.clip(0.75 + self._cloud.weights(hours) @ self._cloud_basis, 0.15, 1.35)
        solar = 2 * math.pi / DAY_HOURS * (hours[:, None] + self._longitude / 15 - 14.5)
        daily = 0.5 * self._swing * clear * (np.cos(solar) + 0.18 * np.cos(2 * solar))
        return np.asarray(np.round(climate + daily + weights @ self._basis, DECIMALS))
