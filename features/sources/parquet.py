"""Read a Parquet file of observations: one row for each cell and hour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations
from features import parquet_files
from features.sources import WINDOW_VALUES_MAX


def read_parquet(
    path: Path, grid: Grid, observed: GridObservations, entity: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.float32]]]:
    """Times, datetime64[us] (T,), ascending, and values, float32 (T, rows, cols); NaN where the file has null.

    The file has the columns `entity` (whole numbers), `observed_at` (timestamp
    with a time zone) and the variable, in any order of rows.

    Raises:
        SourceError: unreadable, other columns, cells that are not the grid's, or a cell twice in an hour with unequal
            values; equal ones are one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [entity, "observed_at", observed.variable]
    try:
        footer = parquet_files.footer(path)
        schema = footer.schema.to_arrow_schema()
        absent = [name for name in names if name not in schema.names]
        if absent:
            raise SourceError(
                f"{path} has no column {', '.join(absent)} (found: {', '.join(schema.names[:20])}): "
                f"give the columns {', '.join(names)}"
            )
        if again := [name for name in names if schema.names.count(name) > 1]:
            raise SourceError(f"{path} has more than one column {', '.join(again)}: give each once")
        _check_types(path, [schema.field(name) for name in names])
        if (rows := footer.num_rows) > WINDOW_VALUES_MAX:
            raise SourceError(f"{path} has {rows:,} rows, more than {WINDOW_VALUES_MAX:,}: cut it")
        table = parquet_files.read(path, names, error=SourceError)
        cells = table[entity].cast(pa.int64())
        moments = table["observed_at"].cast(pa.timestamp("us", tz="UTC"))
        values = table[observed.variable].cast(pa.float32(), safe=False)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:200]
        raise SourceError(f"{path} is not a whole Parquet file ({reason}): replace it") from None
    if table.num_rows == 0:
        raise SourceError(f"{path} has no rows: give at least one hour of observations")
    for name, column in ((entity, cells), ("observed_at", moments)):
        if column.null_count:
            raise SourceError(f"{path} has {column.null_count:,} nulls in {name}: fill or drop those rows")
    number = cells.to_numpy()
    moment = pc.cast(moments, pa.int64()).to_numpy().view("datetime64[us]")
    return _arrange(path, grid, number, moment, np.asarray(values.to_numpy(), np.float32))


def _check_types(path: Path, fields: list[Any]) -> None:
    import pyarrow.types as types

    entity, observed_at, variable = fields
    if not types.is_integer(entity.type):
        raise SourceError(f"{path}: {entity.name} is {entity.type}: give whole numbers, the cells of the grid")
    if not types.is_timestamp(observed_at.type) or observed_at.type.tz is None:
        raise SourceError(f"{path}: observed_at is {observed_at.type}: give timestamps with a time zone, such as UTC")
    if not (types.is_floating(variable.type) or types.is_integer(variable.type)):
        raise SourceError(f"{path}: {variable.name} is {variable.type}: give numbers")


def _arrange(
    path: Path,
    grid: Grid,
    cells: np.ndarray[Any, Any],
    moments: np.ndarray[Any, Any],
    values: np.ndarray[Any, np.dtype[np.float32]],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.float32]]]:
    """Put rows in any order into a block; cells that are absent, foreign, or twice with unequal values are refused."""
    if cells.min() != 0 or cells.max() != grid.cells - 1:
        raise SourceError(
            f"{path} has other coordinates: cells expected 0 to {grid.cells - 1} of a {grid.rows} x {grid.cols} grid, "
            f"found {cells.min()} to {cells.max()}: give a file on the declared Grid, or declare the file's"
        )
    times, hour = np.unique(moments, return_inverse=True)
    if len(times) * grid.cells > len(cells):
        raise SourceError(
            f"{path} has {len(cells):,} rows for {len(times):,} hours x {grid.cells:,} cells: "
            "give each cell once in each hour"
        )
    block = np.full(len(times) * grid.cells, np.nan, np.float32)
    seen = np.zeros(len(block), bool)
    place = hour * grid.cells + cells
    block[place], seen[place] = values, True
    unequal = (block[place] != values) & ~(np.isnan(block[place]) & np.isnan(values))
    if unequal.any():
        row = int(np.argmax(unequal))
        other = int(np.flatnonzero(place == place[row])[-1])
        raise SourceError(
            f"{path} has cell {cells[row]} at {moments[row]} twice, with unequal values: row {row + 1} has "
            f"{values[row]:g}, row {other + 1} has {values[other]:g}: remove one of them"
        )
    if not seen.all():
        first = int(np.argmin(seen))
        raise SourceError(
            f"{path} lacks cell {first % grid.cells} at {times[first // grid.cells]} and has another twice: "
            "give each cell once in each hour"
        )
    return times, block.reshape(len(times), grid.rows, grid.cols)
