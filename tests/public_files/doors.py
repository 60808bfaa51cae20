"""What comes of a file: read as its own library reads it, value by value, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from almanac.model_graph import check_graph
from almanac.partitioning import Buckets, Grid
from almanac.pipeline import Freshness, GridObservations, Output, Pipeline, hours
from almanac.scoring import Scorer
from features import parquet_files
from features.declared_types import Misfit, declared
from features.sources.grib import read_grib
from jobs.training.adding import own_form
from tests.compatibility.tables import Converted, Taken

DEFAULT_GRID = Grid(rows=33, cols=49, tile=8)
"""Declared for a file whose points lie on no grid that could be declared."""
DEGREES_DECIMALS = 3
ROWS = np.random.default_rng(7).normal(size=(40, 16)).astype(np.float32)
"""What models are asked."""


class Differs(Exception):
    """The project read something else than the file's own library."""


def grib(path: Path, variable: str) -> Taken | Converted:
    """A variable of a GRIB file, on the grid that ecCodes finds in it."""
    unit, grid, fields = _fields_of(path, variable)
    times, values = read_grib(path, grid, GridObservations(variable=variable, unit=unit, valid_range=(-1e30, 1e30)))
    expected = dict(fields)
    if [str(time) for time in times] != sorted(expected):
        raise Differs(f"hours {times.tolist()} instead of {sorted(expected)}")
    for time, field in zip(times, values, strict=True):
        points = expected[str(time)]
        for row, col in np.ndindex(grid.rows, grid.cols):
            place = _place(grid.north - row * grid.step, grid.west + col * grid.step)
            if not _same(float(field[row, col]), points[place]):
                raise Differs(f"{field[row, col]} instead of {points[place]} at {place} of {time}")
    return Taken(f"{len(times)} hour{'' if len(times) == 1 else 's'} of {grid.rows} × {grid.cols} points")


def _fields_of(path: Path, variable: str) -> tuple[str, Grid, list[tuple[str, dict[tuple[float, float], float]]]]:
    """Unit and grid of a variable's first message, and each message's hour and values by latitude and longitude."""
    import eccodes

    unit, grid, fields = "1", DEFAULT_GRID, []
    eccodes.codes_grib_multi_support_on()
    with path.open("rb") as file:
        while (message := _next(file)) is not None:
            try:
                names = {_said(message, "cfVarName"), _said(message, "shortName")}
                if variable not in names:
                    continue
                if not fields:
                    unit, grid = _said(message, "units") or "1", _grid_of(message)
                if _said(message, "gridType") == "regular_ll":
                    fields.append((_hour(message), _points(message)))
            finally:
                eccodes.codes_release(message)
    return unit, grid, fields


def _next(file: Any) -> Any:
    import eccodes

    try:
        return eccodes.codes_grib_new_from_file(file)
    except eccodes.CodesInternalError:  # what the project says of it is the outcome
        return None


def _said(message: Any, key: str) -> str | None:
    import eccodes

    try:
        return str(eccodes.codes_get_string(message, key))
    except eccodes.KeyValueNotFoundError:
        return None


def _grid_of(message: Any) -> Grid:
    import eccodes

    if _said(message, "gridType") != "regular_ll":
        return DEFAULT_GRID
    first, last = (
        float(eccodes.codes_get(message, f"latitudeOf{which}GridPointInDegrees")) for which in ("First", "Last")
    )
    west = float(eccodes.codes_get(message, "longitudeOfFirstGridPointInDegrees"))
    return Grid(
        rows=int(eccodes.codes_get(message, "Nj")), cols=int(eccodes.codes_get(message, "Ni")), tile=8,
        north=max(first, last), west=west - 360 if west >= 180 else west,
        step=float(eccodes.codes_get(message, "iDirectionIncrementInDegrees")),
    )  # fmt: skip


def _hour(message: Any) -> str:
    import eccodes

    day, clock = (int(eccodes.codes_get(message, key)) for key in ("validityDate", "validityTime"))
    text = f"{day:08d}"
    return f"{text[:4]}-{text[4:6]}-{text[6:]}T{clock // 100:02d}:{clock % 100:02d}:00.000000"


def _points(message: Any) -> dict[tuple[float, float], float]:
    """The values where ecCodes' own iterator places them; NaN where there is none."""
    import eccodes

    if _said(message, "alternativeRowScanning") == "1":  # its iterator takes each row to begin at one end
        eccodes.codes_set(message, "swapScanningAlternativeRows", 1)
    missing = float(eccodes.codes_get(message, "missingValue"))
    found: dict[tuple[float, float], float] = {}
    iterator = eccodes.codes_grib_iterator_new(message, 0)
    try:
        while point := eccodes.codes_grib_iterator_next(iterator):
            latitude, longitude, value = point
            found[_place(latitude, longitude)] = float("nan") if value == missing else value
    finally:
        eccodes.codes_grib_iterator_delete(iterator)
    return found


def _place(latitude: float, longitude: float) -> tuple[float, float]:
    east = round(longitude % 360, DEGREES_DECIMALS) % 360
    return round(latitude, DEGREES_DECIMALS) + 0.0, east


def _same(ours: float, theirs: float) -> bool:
    return (np.isnan(ours) and np.isnan(theirs)) or ours == float(np.float32(theirs))


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], str, pa.DataType], ...] = (
    (pa.types.is_floating, "DOUBLE", pa.float64()),
    (pa.types.is_integer, "INT64", pa.int64()),
    (pa.types.is_boolean, "BOOL", pa.bool_()),
    (pa.types.is_timestamp, "UNIX_TIMESTAMP", pa.timestamp("us", tz="UTC")),
    (pa.types.is_binary, "BYTES", pa.binary()),
)


def parquet(path: Path, columns: str) -> Taken | Converted:
    """Every column of a Parquet file as the Feast type that is nearest to its own; `columns` is not used."""
    ours, theirs = parquet_files.read(path), pq.read_table(path)
    if ours.column_names != theirs.column_names or ours.num_rows != theirs.num_rows:
        raise Differs(f"columns {ours.column_names} and {ours.num_rows} rows")
    kinds, refused = list[str](), list[str]()
    for name, column in zip(ours.column_names, ours.columns, strict=True):
        kind, wanted = next(
            ((kind, wanted) for fits, kind, wanted in _KINDS if fits(column.type)), ("STRING", pa.string())
        )
        try:
            made = declared(column, kind)
        except Misfit as misfit:
            refused.append(f"{name} {misfit.says}")
            continue
        expected = theirs[name].cast(wanted, safe=kind != "UNIX_TIMESTAMP")
        if kind == "UNIX_TIMESTAMP":
            expected = pc.floor_temporal(expected, unit="second")
        if not made.equals(expected):
            raise Differs(f"column {name} as {kind}")
        kinds.append(kind)
    told = ", ".join(f"{kinds.count(kind)} as {kind}" for kind in dict.fromkeys(kinds))
    besides = f"; refused: {'; '.join(refused)}" if refused else ""
    return Taken(f"{ours.num_rows:,} rows, columns: {told}{besides}")


def onnx(path: Path, inputs: str) -> Taken | Converted:
    """A graph as `almanac models add` takes it; `inputs` are the columns' names, as `--inputs`."""
    import onnxruntime

    pipeline = Pipeline(
        name="rides", entity="station", partitions=Buckets(count=2), outputs=(Output(name="rides"),),
        features="rides_v1", model="rides@champion", schedule="0 * * * *",
        freshness=Freshness(fresh_for=hours(1), usable_for=hours(2)),
    )  # fmt: skip
    data, names = path.read_bytes(), tuple(inputs.split(","))
    check_graph(path.name, data)
    scorer = Scorer.open(own_form(path.name, data, pipeline, names), "m", entity="station")
    ours: NDArray[Any] = scorer.score({name: ROWS[:, at] for at, name in enumerate(names)})["rides"]
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {session.get_inputs()[0].name: ROWS[:, : len(names)]})
    if not np.array_equal(ours, np.asarray(theirs).reshape(-1)):
        raise Differs("another answer than onnxruntime's")
    return Taken(f"{len(ROWS)} answers from {len(names)} columns")


DOORS: dict[str, Callable[[Path, str], Taken | Converted]] = {"grib": grib, "parquet": parquet, "onnx": onnx}
