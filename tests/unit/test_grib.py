"""GRIB files: each message is one hour's field on the declared grid; what is twice, unlike or damaged is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from almanac.errors import DeclarationError, SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations, hours
from almanac.settings import PROJECT_ROOT, Settings, load_settings
from features.sources import open_source
from features.sources.units import same_unit
from pipelines.weather import weather

GRID = Grid(rows=6, cols=7, tile=4)
TINY = replace(weather, partitions=GRID)
OBSERVED = GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0))
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
DATA = Path(os.environ.get("ALMANAC_DATA", PROJECT_ROOT.parent / "shared" / "data"))
REAL = DATA / "era5-t2m-uk-2019-03.grib"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is absent: set ALMANAC_DATA to its folder")


def write_grib(path: Path, grid: Grid = GRID, count: int = 5, name: str = "2t", value: float = 280.0) -> None:
    with path.open("wb") as file:
        for hour in range(count):
            file.write(message_of(hour, grid=grid, name=name, value=value + hour))


def message_of(
    hour: int,
    *,
    value: float = 281.0,
    keys: dict[str, Any] | None = None,
    points: Callable[[Any], Any] = lambda field: field,
    grid: Grid = GRID,
    name: str = "2t",
) -> bytes:
    """A GRIB 2 message of an hour of 2019-03-01: `value` in the first cell, and 0.1 more in each next one.

    Args:
        keys: to set besides.
        points: makes the order in which points are written of (row, col).
    """
    import eccodes

    message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    try:
        for key, number in {
            "Ni": grid.cols,
            "Nj": grid.rows,
            "latitudeOfFirstGridPointInDegrees": grid.north,
            "latitudeOfLastGridPointInDegrees": grid.north - (grid.rows - 1) * grid.step,
            "longitudeOfFirstGridPointInDegrees": grid.west % 360,
            "longitudeOfLastGridPointInDegrees": (grid.west + (grid.cols - 1) * grid.step) % 360,
            "iDirectionIncrementInDegrees": grid.step,
            "jDirectionIncrementInDegrees": grid.step,
            "dataDate": 20190301,
            "dataTime": hour * 100,
            "shortName": name,
            **(keys or {}),
        }.items():
            eccodes.codes_set(message, key, number)
        field = (value + np.arange(grid.cells) * 0.1).reshape(grid.rows, grid.cols)
        eccodes.codes_set_values(message, np.ascontiguousarray(points(field)).reshape(-1))
        return bytes(eccodes.codes_get_message(message))
    finally:
        eccodes.codes_release(message)


def release(number: str) -> dict[str, Any]:
    """Keys of a message of one of ECMWF's releases."""
    return {"setLocalDefinition": 1, "expver": number}


def found(tmp_path: Path, path: Path) -> Settings:
    return load_settings(state_dir=tmp_path / "state", source_data=f"weather={path}")


def test_a_grib_file_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "small.grib"
    path.parent.mkdir()
    write_grib(path)
    source = open_source(TINY, found(tmp_path, path), now=NOON)
    values = source.window(NOON - hours(4), NOON).values
    np.testing.assert_allclose(values[4].reshape(-1), 284 + np.arange(GRID.cells) * 0.1, atol=0.01)
    assert [entry.name for entry in path.parent.iterdir()] == ["small.grib"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grid": Grid(rows=6, cols=7, tile=4, north=57.0)}, "latitudes expected 6 from 58 to 56.75, found 6 from 57"),
        ({"grid": Grid(rows=6, cols=8, tile=4)}, "longitudes expected 7 from -10 to -8.5, found 8 from"),
        ({"name": "sp"}, "holds sp, expected t2m"),
        ({"value": 20.0}, "outside 180.0 to 340.0 K"),
    ],
)
def test_a_foreign_grib_file_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = tmp_path / "foreign.grib"
    write_grib(path, **options)
    with pytest.raises(SourceError, match=says):
        open_source(TINY, found(tmp_path, path), now=NOON)


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -60])
def test_a_cut_grib_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.grib"
    write_grib(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"truncated or damaged|no GRIB message"):
        open_source(TINY, found(tmp_path, path), now=NOON)


def read_back(tmp_path: Path, *messages: bytes, prefer: tuple[str, str] | None = None) -> Any:
    """The first cell at each hour of a GRIB file of these messages."""
    path = tmp_path / "messages.grib"
    path.write_bytes(b"".join(messages))
    pipeline = replace(TINY, source=replace(OBSERVED, prefer=prefer))
    source = open_source(pipeline, found(tmp_path, path), now=NOON)
    return source.window(source.earliest, source.latest(NOON)).values


def first_cells(values: Any) -> list[float]:
    return [round(float(value), 1) for value in values[:, 0, 0]]


def test_an_hour_twice_with_unequal_fields_is_refused(tmp_path: Path) -> None:
    one = (message_of(0), message_of(1, value=281.0), message_of(1, value=299.0), message_of(2))
    says = r"hour 2019-03-01 01:00 twice.*message 2 \(281 to .*message 3 \(299 to .*nothing but their values"
    with pytest.raises(SourceError, match=says):
        read_back(tmp_path, *one)
    with pytest.raises(SourceError, match=says):  # a preference that does not tell them apart is none
        read_back(tmp_path, *one, prefer=("expver", "0001"))


def test_an_hour_twice_with_equal_fields_is_one(tmp_path: Path) -> None:
    values = read_back(tmp_path, message_of(1, value=299.0), message_of(0), message_of(1, value=299.0), message_of(2))
    assert first_cells(values) == [281.0, 299.0, 281.0]


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_releases_the_preferred_one_counts(tmp_path: Path, first: int) -> None:
    both = [message_of(1, value=281.0, keys=release("0001")), message_of(1, value=299.0, keys=release("0005"))]
    messages = (message_of(0, keys=release("0001")), both[first], both[1 - first], message_of(2, keys=release("0005")))
    with pytest.raises(SourceError, match=r"expver 000\d and 000\d.*prefer=\('expver', '000"):
        read_back(tmp_path, *messages)
    assert first_cells(read_back(tmp_path, *messages, prefer=("expver", "0001"))) == [281.0, 281.0, 281.0]
    assert first_cells(read_back(tmp_path, *messages, prefer=("expver", "5"))) == [281.0, 299.0, 281.0]


def test_another_preference_is_another_source(tmp_path: Path) -> None:
    path = tmp_path / "messages.grib"
    write_grib(path)
    identities = {
        open_source(replace(TINY, source=replace(OBSERVED, prefer=prefer)), found(tmp_path, path), now=NOON).identity
        for prefer in (None, ("expver", "0001"), ("expver", "0005"))
    }
    assert len(identities) == 3  # what was made from one of them is not taken for the other's


@pytest.mark.parametrize("prefer", ["expver", ("expver",), ("expver", 1), ("", "1"), ("exp ver", "0001"), ["a", "b"]])
def test_a_preference_is_checked_where_it_is_written(prefer: Any) -> None:
    with pytest.raises(DeclarationError, match=r"GridObservations\.prefer"):
        replace(OBSERVED, prefer=prefer)


MIXED = {
    "a forecast": (
        {"typeOfProcessedData": 1},
        r"dataType af at .*message 1.* and fc at 2019-03-01 01:00 \(message 2\)",
    ),
    "a forecast step": ({"dataTime": 0, "step": 1}, "startStep 0 at .* and 1 at 2019-03-01 01:00"),
    "another member": ({"productDefinitionTemplateNumber": 1, "number": 3}, "number None at .* and 3 at 2019-03-01"),
    "an ensemble's spread": (
        {"productDefinitionTemplateNumber": 2, "derivedForecast": 2},
        "derivedForecast None at .* and 2 at 2019-03-01",
    ),
    "a percentile": (
        {"productDefinitionTemplateNumber": 6, "percentileValue": 90},
        "percentileValue None at .* and 90 at 2019-03-01",
    ),
    "a probability": (
        {"productDefinitionTemplateNumber": 5, "probabilityType": 1},
        "probabilityType None at .* and 1 at 2019-03-01",
    ),
    "a constituent": (
        {"productDefinitionTemplateNumber": 40, "constituentType": 5},
        "constituentType None at .* and carbonMonoxide at 2019-03-01",
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_fields_of_other_kinds_are_refused_though_each_hour_is_there_once(tmp_path: Path, name: str) -> None:
    keys, says = MIXED[name]
    with pytest.raises(SourceError, match=says):
        read_back(tmp_path, message_of(0), message_of(1, keys=keys))


def test_two_percentiles_are_told_apart_by_theirs(tmp_path: Path) -> None:
    tenth, ninetieth = (
        message_of(hour, value=281.0 + hour, keys={"productDefinitionTemplateNumber": 6, "percentileValue": share})
        for hour, share in ((0, 10), (1, 90))
    )
    with pytest.raises(SourceError, match=r"percentileValue 10 at .* and 90 at"):
        read_back(tmp_path, tenth, ninetieth)


def test_a_grid_whose_inner_points_lie_elsewhere_is_refused_by_one_of_them(tmp_path: Path) -> None:
    grid = Grid(rows=6, cols=7, tile=4, north=58.0004, step=0.2499)
    with pytest.raises(SourceError, match=r"found 6 from 58.0004 to 56.7509, 56.7509 beside 56.75: give a file"):
        read_back(tmp_path, message_of(0, grid=grid))


def test_a_member_may_be_preferred(tmp_path: Path) -> None:
    member = {"productDefinitionTemplateNumber": 1}
    messages = [
        message_of(hour, value=280.0 + 10 * number + hour, keys={**member, "number": number})
        for hour in range(2)
        for number in range(3)
    ]
    with pytest.raises(SourceError, match="number 0 and 1"):
        read_back(tmp_path, *messages)
    assert first_cells(read_back(tmp_path, *messages, prefer=("number", "2"))) == [300.0, 301.0]


SCANS = {
    "south first": ({"jScansPositively": 1}, lambda field: field[::-1]),
    "east first": ({"iScansNegatively": 1}, lambda field: field[:, ::-1]),
    "by columns": ({"jPointsAreConsecutive": 1}, lambda field: field.T),
    "there and back": (
        {"alternativeRowScanning": 1},
        lambda field: np.stack([row[:: -1 if at % 2 else 1] for at, row in enumerate(field)]),
    ),
}


@pytest.mark.parametrize("name", SCANS)
def test_points_are_placed_by_their_coordinates(tmp_path: Path, name: str) -> None:
    keys, points = SCANS[name]
    south, north = GRID.north - (GRID.rows - 1) * GRID.step, GRID.north
    west, east = GRID.west % 360, (GRID.west + (GRID.cols - 1) * GRID.step) % 360
    ends = {}
    if "jScansPositively" in keys:
        ends = {"latitudeOfFirstGridPointInDegrees": south, "latitudeOfLastGridPointInDegrees": north}
    if "iScansNegatively" in keys:
        ends = {"longitudeOfFirstGridPointInDegrees": east, "longitudeOfLastGridPointInDegrees": west}
    values = read_back(tmp_path, message_of(0), message_of(1, keys={**keys, **ends}, points=points))
    np.testing.assert_allclose(values[1], values[0], atol=0.01)


def test_a_point_without_a_value_is_none(tmp_path: Path) -> None:
    def holed(field: Any) -> Any:
        field[1, 2] = 9999.0
        return field

    with pytest.raises(SourceError, match="lacks 1 of 84 values of t2m, the first at 2019-03-01 01:00"):
        read_back(tmp_path, message_of(0), message_of(1, keys={"bitmapPresent": 1, "missingValue": 9999}, points=holed))


def test_what_lies_between_messages_is_refused_unless_it_is_padding(tmp_path: Path) -> None:
    damaged = b"GRUB" + message_of(1)[4:]
    with pytest.raises(SourceError, match=r"bytes that are no GRIB before message 2, from byte \d+ on"):
        read_back(tmp_path, message_of(0), damaged, message_of(2))
    with pytest.raises(SourceError, match="bytes that are no GRIB before message 1, from byte 0 on"):
        read_back(tmp_path, damaged, message_of(2))
    assert len(read_back(tmp_path, message_of(0), bytes(700), message_of(1))) == 2


def test_several_fields_in_one_message_are_all_read(tmp_path: Path) -> None:
    import eccodes

    multi = eccodes.codes_grib_multi_new()
    for name, section in (("sp", 0), ("2t", 4)):
        message = eccodes.codes_new_from_message(message_of(0, name=name))
        eccodes.codes_grib_multi_append(message, section, multi)
        eccodes.codes_release(message)
    with (tmp_path / "multi.grib").open("wb") as file:
        eccodes.codes_grib_multi_write(multi, file)
    eccodes.codes_grib_multi_release(multi)
    both = (tmp_path / "multi.grib").read_bytes()
    assert both.count(b"GRIB") == 1
    assert first_cells(read_back(tmp_path, both, message_of(1, value=282.0))) == [281.0, 282.0]


def test_another_unit_is_refused_though_the_numbers_would_do(tmp_path: Path) -> None:
    path = tmp_path / "kelvin.grib"
    write_grib(path)
    wide = replace(TINY, source=GridObservations(variable="t2m", unit="degF", valid_range=(-100, 400)))
    with pytest.raises(SourceError, match=r"message 1 has t2m in K, declared is degF: declare the file's unit"):
        open_source(wide, found(tmp_path, path), now=NOON)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("m s**-1", "m/s", True),
        ("m s**-1", "m s-1", True),
        ("kg m**-2 s**-1", "kg/m2/s", True),
        ("K", "C", False),
        ("m", "mm", False),
        ("m s**-1", "m s", False),
        ("(0 - 1)", "%", False),
        ("(0 - 1)", "(0 - 1)", True),
        ("~", "K", True),
    ],
)
def test_units_are_compared_however_they_are_written(one: str, other: str, same: bool) -> None:
    assert same_unit(one, other) is same


def saying(points_a_side: int) -> bytes:
    """A message of a few hundred bytes that says so many points a side, all of one value."""
    data, at = bytearray(message_of(0)), 16
    while data[at : at + 4] != b"7777":
        size, section = int.from_bytes(data[at : at + 4], "big"), data[at + 4]
        if section == 3:
            data[at + 6 : at + 10] = (points_a_side**2).to_bytes(4, "big")
            data[at + 30 : at + 38] = points_a_side.to_bytes(4, "big") * 2
        if section == 5:
            data[at + 5 : at + 9] = (points_a_side**2).to_bytes(4, "big")
            data[at + 19] = 0
        at += size
    return bytes(data)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_message_that_says_far_more_points_is_refused_before_it_is_unpacked(side: int, tmp_path: Path) -> None:
    data = saying(side)
    assert len(data) < 1_000
    with pytest.raises(SourceError, match=rf"message 1 says that it has {side**2:,} points, more than 1,000,000"):
        read_back(tmp_path, data)


@needs_real
def test_the_real_file_is_read(tmp_path: Path) -> None:
    source = open_source(weather, found(tmp_path, REAL), now=NOON)
    values = source.window(source.earliest, source.latest(NOON)).values
    assert values.shape == (744, 33, 49)
    assert np.abs(values[6:] - values[:-6]).mean() == pytest.approx(1.298, abs=0.001)


@needs_real
@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (lambda data: data[: len(data) // 2 + 11], "truncated or damaged in message 373"),
        (lambda data: data[: 3360 * 9] + data[3360 * 12 :], "gap.*2019-03-01 08:00 to 2019-03-01 12:00"),
    ],
    ids=["bytes", "hours"],
)
def test_the_real_file_cut_is_refused(tmp_path: Path, cut: Callable[[bytes], bytes], says: str) -> None:
    path = tmp_path / "cut.grib"
    path.write_bytes(cut(REAL.read_bytes()))
    with pytest.raises(SourceError, match=says):
        open_source(weather, found(tmp_path, path), now=NOON)


@pytest.mark.parametrize("packing", ["grid_jpeg", "grid_png"])
def test_an_image_of_more_points_than_its_message_is_refused_before_it_is_unpacked(
    tmp_path: Path, packing: str
) -> None:
    sound = message_of(0, keys={"packingType": packing})
    assert first_cells(read_back(tmp_path, sound)) == [281.0]
    size, sides = (7).to_bytes(4, "big"), (6).to_bytes(4, "big")
    at = sound.index(size + sides, sound.index(b"\xff\x4f\xff\x51" if packing == "grid_jpeg" else b"IHDR"))
    hostile = sound[:at] + (60_000).to_bytes(4, "big") * 2 + sound[at + 8 :]
    with pytest.raises(SourceError, match=r"message 1 has 42 points, and its .* image has 3,600,000,000 points"):
        read_back(tmp_path, hostile)
    with pytest.raises(SourceError, match="image does not begin as one"):
        read_back(tmp_path, sound[: at - 8] + b"\0" * 8 + sound[at:])
