"""Read a GRIB file of one variable on a regular grid: each message is one hour's field, or the file is refused.

Where an hour stands in the file twice, equal fields are one. Unequal ones are
refused by hour and number, unless the declaration prefers one: ERA5 has its
first release (expver 0005) beside the final one (0001). Points are placed by
their own coordinates, whatever order they are written in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations
from features.sources import WINDOW_VALUES_MAX
from features.sources.grib_images import HEADER_BYTES, IMAGES, image_points
from features.sources.units import same_unit

MESSAGES_MAX = 1_000_000
TAIL_BYTES_MAX = 1_000_000
POINTS_ANY_GRID_MAX = 1_000_000
"""A message may say so many points on any grid, and is told how its axes differ; more only on a grid that has more."""
COUNTS = ("numberOfDataPoints", "numberOfValues", "numberOfGroupsOfDataValues", "numberOfGroups")
"""Keys of a message by which memory is taken as it is unpacked."""
SECTION_HEAD_BYTES = 5
"""Its length and number, before what a section holds."""
DEGREES_TOLERANCE = 1e-4  # GRIB 1 stores millidegrees
REMEDY = "replace the file, or download it again"
ALIKE = (
    "paramId", "dataType", "number", "typeOfLevel", "level", "stepType", "startStep", "endStep",
    "derivedForecast", "percentileValue", "probabilityType", "scaledValueOfLowerLimit", "scaledValueOfUpperLimit",
    "constituentType", "wavelength", "directionNumber", "frequencyNumber",
)  # fmt: skip
"""Keys by which two fields of one variable mean different things: a file has one value of each."""
RELEASE = "expver"
"""The key by which ECMWF tells releases of one field apart."""
NO_VALUE = float(np.finfo(np.float64).max)
"""What stands for a point without a value while a message is read."""

Values = NDArray[np.float32]
Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Field:
    """One message of the variable.

    Args:
        number: of the message in the file, from 1.
        hour: datetime64[us]: the moment that it is valid at.
        values: float32 (cells,) in the grid's order, NaN where the message has none.
        keys: what it says of `ALIKE`, of `RELEASE` and of the preferred key; None where it does not have the key.
    """

    number: int
    hour: np.datetime64
    values: Values
    keys: dict[str, str | None]

    def equals(self, other: _Field) -> bool:
        """Whether both have the same value at each point."""
        return bool(np.array_equal(self.values, other.values, equal_nan=True))

    def __str__(self) -> str:
        known = self.values[~np.isnan(self.values)]
        says = f"{float(known.min()):g} to {float(known.max()):g}" if len(known) else "no values"
        return f"message {self.number} ({says})"


def read_grib(
    path: Path, grid: Grid, observed: GridObservations
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.float32]]]:
    """Times, datetime64[us] (T,), ascending, and values, float32 (T, rows, cols).

    Raises:
        SourceError: truncated, unreadable, another variable, unit or grid, or an hour twice; names the message.
    """
    hours: dict[np.datetime64, list[_Field]] = {}
    others: dict[str, None] = {}
    known: dict[str, Places] = {}
    found = 0
    for number, message in _messages(path):
        try:
            name = _name(message)
            if name != observed.variable:
                others[name] = None
                continue
            found += 1
            if found * grid.cells > WINDOW_VALUES_MAX:
                raise SourceError(f"{path} has more than {WINDOW_VALUES_MAX:,} values: cut it")
            field = _field(path, (number, message), grid, observed, known)
        except _damages() as error:
            raise SourceError(f"{path}: message {number} cannot be decoded ({_first_line(error)}): {REMEDY}") from error
        same_hour = hours.setdefault(field.hour, [])
        if not any(field.keys == other.keys and field.equals(other) for other in same_hour):
            same_hour.append(field)
    if not hours:
        raise SourceError(
            f"{path} holds {', '.join(others) or 'none'}, expected {observed.variable}: give a file of that variable"
        )
    fields = [_one(path, hours[hour], observed) for hour in sorted(hours)]
    _check_alike(path, fields)
    values = np.stack([field.values for field in fields]).reshape(len(fields), grid.rows, grid.cols)
    return np.array([field.hour for field in fields], dtype="datetime64[us]"), values


def _one(path: Path, fields: list[_Field], observed: GridObservations) -> _Field:
    """The field of an hour: its only one, one of equals, or the preferred one."""
    if observed.prefer is not None and len(fields) > 1:
        key, wanted = observed.prefer
        fields = [field for field in fields if _says(field.keys[key], wanted)] or fields
    first = fields[0]
    other = next((field for field in fields if not field.equals(first)), None)
    if other is None:
        return first
    differing = [key for key in first.keys if first.keys[key] != other.keys[key]]
    by = ", ".join(f"{key} {first.keys[key]} and {other.keys[key]}" for key in differing) or "nothing but their values"
    remedy = "remove one of them"
    if differing:
        key = RELEASE if RELEASE in differing else differing[0]
        remedy += f", or declare which counts, as GridObservations(prefer=({key!r}, {str(first.keys[key])!r}))"
    if observed.prefer is not None:
        remedy += f"; the declared {observed.prefer} does not decide between them"
    raise SourceError(
        f"{path} has the hour {_hour(first)} twice, with unequal values: {first} and {other} differ in {by}: {remedy}"
    )


def _says(found: str | None, wanted: str) -> bool:
    """Whether a key has the preferred value; `1` prefers `0001` as well."""
    if found is None:
        return False
    return found == wanted or (found.isdecimal() and wanted.isdecimal() and int(found) == int(wanted))


def _check_alike(path: Path, fields: list[_Field]) -> None:
    """Refuse a file whose fields mean different things, though each hour stands there once."""
    first = fields[0]
    for field in fields:
        for key in ALIKE:
            if field.keys[key] != first.keys[key]:
                raise SourceError(
                    f"{path} has {key} {first.keys[key]} at {_hour(first)} (message {first.number}) and "
                    f"{field.keys[key]} at {_hour(field)} (message {field.number}): give one value per hour and cell "
                    "(no ensemble members, levels, forecast steps or percentiles)"
                )


def _hour(field: _Field) -> str:
    return f"{field.hour.astype('datetime64[m]')}".replace("T", " ")


def _messages(path: Path) -> Iterator[tuple[int, Any]]:
    """The file's messages with their numbers; each is released once the next one is asked for.

    A file that was cut ends inside a message, and one that was damaged has bytes
    between messages: eccodes passes over both in silence.

    Raises:
        SourceError: there is none, or something lies between them; says after which and where.
    """
    import eccodes

    eccodes.codes_grib_multi_support_on()  # several fields in one message are several messages here
    end = 0
    with path.open("rb") as file:
        for number in range(1, MESSAGES_MAX + 1):
            try:
                message = eccodes.codes_grib_new_from_file(file)
            except eccodes.CodesInternalError as error:
                raise SourceError(
                    f"{path} is truncated or damaged in message {number} ({_first_line(error)}), after {end:,} of "
                    f"{path.stat().st_size:,} bytes: {REMEDY}"
                ) from None
            if message is None:
                break
            try:
                start = int(eccodes.codes_get_message_offset(message))
                if start > end and _bytes(path, end, min(start - end, TAIL_BYTES_MAX)).strip(b"\0"):
                    raise SourceError(
                        f"{path} has {start - end:,} bytes that are no GRIB before message {number}, from byte "
                        f"{end:,} on: take them off (grib_copy leaves a bulletin's header out), or {REMEDY}"
                    )
                end = max(end, start + _size(path, start, int(eccodes.codes_get_message_size(message))))
                yield number, message
            finally:
                eccodes.codes_release(message)
        else:
            raise SourceError(f"{path} has more than {MESSAGES_MAX:,} messages: cut it")
    if end == 0:
        raise SourceError(f"{path} holds no GRIB message: give a GRIB file, or one that ends in .parquet")
    if _bytes(path, end, TAIL_BYTES_MAX).strip(b"\0"):  # messages may be padded with zeros
        raise SourceError(
            f"{path} is truncated or damaged: its last whole message ends after {end:,} of "
            f"{path.stat().st_size:,} bytes: {REMEDY}"
        )


def _bytes(path: Path, start: int, most: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(most)


def _size(path: Path, start: int, size: int) -> int:
    """Bytes of a message in the file; of one with several fields eccodes gives the size of one of them."""
    head = _bytes(path, start, 16)
    return int.from_bytes(head[8:16], "big") if head[7:8] == b"\x02" else size


def _damages() -> tuple[type[Exception], ...]:
    """What reading a message raises where it does not hold what its head says."""
    import eccodes

    return (eccodes.CodesInternalError, ValueError, OverflowError)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _said(message: Any, key: str) -> str | None:
    """A key of a message as text; None where it does not have it."""
    import eccodes

    try:
        return str(eccodes.codes_get_string(message, key))
    except eccodes.KeyValueNotFoundError:
        return None


def _name(message: Any) -> str:
    """The variable of a message by its name in CF, or by GRIB's short name where it has none there."""
    name = _said(message, "cfVarName")
    return name if name is not None and name != "unknown" else _said(message, "shortName") or "unknown"


def _field(
    path: Path, numbered: tuple[int, Any], grid: Grid, observed: GridObservations, known: dict[str, Places]
) -> _Field:
    """A numbered message as a field; `known` has the places of points by what eccodes calls a grid."""
    import eccodes

    number, message = numbered

    unit = _said(message, "units")
    if unit is not None and not same_unit(unit, observed.unit):
        raise SourceError(
            f"{path}: message {number} has {observed.variable} in {unit}, declared is {observed.unit}: declare the "
            "file's unit and send events in it, or give a file in the declared one"
        )
    _check_points(path, (number, message), grid)
    if _said(message, "alternativeRowScanning") == "1":  # eccodes gives coordinates as if each row began at one end
        eccodes.codes_set(message, "swapScanningAlternativeRows", 1)
    eccodes.codes_set(message, "missingValue", NO_VALUE)
    given = eccodes.codes_get_values(message)
    axes = _said(message, "md5GridSection") or ""
    if axes not in known:
        known[axes] = _places(path, message, grid)
    places = known[axes]
    values = np.empty(grid.cells, np.float32)
    with np.errstate(over="ignore"):  # NO_VALUE itself
        values[places] = np.where(given == NO_VALUE, np.nan, given)
    keys = (*ALIKE, RELEASE, *([observed.prefer[0]] if observed.prefer else ()))
    return _Field(number=number, hour=_moment(message), values=values, keys={key: _said(message, key) for key in keys})


def _check_points(path: Path, numbered: tuple[int, Any], grid: Grid) -> None:
    """Refuse by its header a message whose values would need more memory than the grid has points.

    A few hundred bytes may say billions of points, all of one value.
    """
    import eccodes

    number, message = numbered
    sizes = [int(eccodes.codes_get_size(message, "values"))]
    sizes += [int(size) for key in COUNTS if (size := _said(message, key)) is not None]
    sides = [_said(message, key) for key in ("Ni", "Nj")]
    if all(side is not None and side.isdecimal() for side in sides):
        sizes.append(int(sides[0] or 0) * int(sides[1] or 0))
    most = max(grid.cells, POINTS_ANY_GRID_MAX)
    if max(sizes) > most:
        raise SourceError(
            f"{path}: message {number} says that it has {max(sizes):,} points, more than {most:,}; the declared grid "
            f"has {grid.cells:,}: {REMEDY}"
        )
    kind = IMAGES.get(_said(message, "packingType") or "")
    if kind is None or (start := _said(message, "offsetSection7")) is None:
        return
    at = int(start)
    whole = bytes(eccodes.codes_get_message(message))
    length = int.from_bytes(whole[at : at + 4], "big")
    if length <= SECTION_HEAD_BYTES:  # all its values are one
        return
    head = whole[at + SECTION_HEAD_BYTES :][:HEADER_BYTES]
    points = image_points(head)
    if points is None or points > max(sizes):
        says = "does not begin as one" if points is None else f"has {points:,} points"
        raise SourceError(f"{path}: message {number} has {max(sizes):,} points, and its {kind} image {says}: {REMEDY}")


def _moment(message: Any) -> np.datetime64:
    """When a field is valid; of one that is gathered over a time, the end of it."""
    import eccodes

    day, clock = (int(eccodes.codes_get(message, key)) for key in ("validityDate", "validityTime"))
    midnight = date(day // 10_000, day // 100 % 100, day % 100).isoformat()
    passed = clock // 100 * 3600 + clock % 100 * 60 + int(_said(message, "second") or 0)
    return np.datetime64(midnight, "us") + np.timedelta64(passed, "s")


def _places(path: Path, message: Any, grid: Grid) -> Places:
    """For each point of a message, in the message's order, its place in the grid."""
    import eccodes

    shape = _said(message, "gridType")
    if shape != "regular_ll":
        raise SourceError(f"{path} has a grid of type {shape}, expected regular_ll: give latitudes and longitudes")
    latitudes = np.asarray(eccodes.codes_get_array(message, "latitudes"))
    longitudes = np.asarray(eccodes.codes_get_array(message, "longitudes"))
    rows = np.rint((grid.north - latitudes) / grid.step)
    east = (longitudes - grid.west + DEGREES_TOLERANCE) % 360 - DEGREES_TOLERANCE  # 350 may be written for -10
    cols = np.rint(east / grid.step)
    _check_axis(path, "latitude", latitudes, rows, grid.north - rows * grid.step, (grid.rows, grid.north, -grid.step))
    _check_axis(path, "longitude", longitudes, cols, grid.west + cols * grid.step, (grid.cols, grid.west, grid.step))
    places = np.asarray(rows * grid.cols + cols, dtype=np.int64)
    if len(places) != grid.cells or len(np.unique(places)) != grid.cells:
        raise SourceError(f"{path} has {len(places):,} points, expected {grid.cells:,}, each once: {REMEDY}")
    return places


def _check_axis(
    path: Path,
    axis: str,
    degrees: NDArray[np.float64],
    at: NDArray[np.float64],
    meant: NDArray[np.float64],
    expected: tuple[int, float, float],
) -> None:
    """Refuse points that do not lie on an axis of the grid, or not on all of it."""
    count, first, step = expected
    apart = np.abs((degrees - meant + 180) % 360 - 180).max()
    used = np.unique(at)
    if apart <= DEGREES_TOLERANCE and len(used) == count and used[0] == 0 and used[-1] == count - 1:
        return
    found = list(dict.fromkeys(degrees.tolist()))
    worst = int(np.abs((degrees - meant + 180) % 360 - 180).argmax())
    beside = f", {degrees[worst]:.9g} beside {meant[worst]:.9g}" if apart > DEGREES_TOLERANCE else ""
    raise SourceError(
        f"{path} has other coordinates: {axis}s expected {count} from {first:g} to {first + (count - 1) * step:g}, "
        f"found {len(found)} from {found[0]:g} to {found[-1]:g}{beside}: give a file on the declared Grid, which has "
        "one step for both axes, or declare the file's"
    )
