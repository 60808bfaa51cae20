"""The Parquet files of a grid pipeline's features: which hours they hold, what they were made from, and their writing.

What a file was made from is the source's observations, the declared grid and variable, and all the code that this
module can run, found by following imports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import HOUR, utc_now
from almanac.code.following import code_of
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features import grid as grid_module
from features.files import replacing
from features.layout import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    MADE_FROM,
    STATIC_SINCE,
    day_file,
    made_from,
    static_file,
    view_dir,
)
from features.sources import Source, grid_of

if TYPE_CHECKING:
    import pyarrow as pa

STATIC_VIEWS = ("cell_position",)
CELL_HOURS_AT_ONCE_MAX = 2_000_000  # bounds the memory of one step to about half a gigabyte
HISTORY = timedelta(hours=grid_module.HISTORY_HOURS)


class GridFiles:
    """The offline files of one pipeline; the caller holds the lock."""

    def __init__(self, pipeline: Pipeline, settings: Settings, source: Source) -> None:
        self._grid, self._observed = grid_of(pipeline)
        self._entity, self._source = pipeline.entity, source
        self._views = grid_module.views(self._observed.variable)
        self._folders = {view: view_dir(settings.features_dir, pipeline.name, view) for view in self._views}
        made_by = f"{source.identity}\0{self._grid!r}\0{self._observed!r}\0{code_of((__name__,)).digest}"
        self._origin = hashlib.blake2b(made_by.encode(), digest_size=16).hexdigest()

    @property
    def _hourly(self) -> dict[str, Path]:
        return {view: folder for view, folder in self._folders.items() if view not in STATIC_VIEWS}

    def drop_foreign(self) -> None:
        """Remove files of another source or grid, or made by other code: features of two kinds must not mix."""
        for folder in self._folders.values():
            for path in folder.glob("*.parquet"):
                if made_from(path).get("origin") != self._origin:
                    path.unlink()

    def held(self, day: date) -> set[int]:
        """The hours of a day that the files of all views hold."""
        found = [set(made_from(day_file(folder, day)).get("hours", ())) for folder in self._hourly.values()]
        return set.intersection(*found)

    def write_day(self, day: date, first: int, last: int) -> int:
        """Write each view's file of a day, with its hours `first` to `last`; returns the rows written."""
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        step = max(1, CELL_HOURS_AT_ONCE_MAX // self._grid.cells)
        paths = {view: day_file(folder, day) for view, folder in self._hourly.items()}

        def write(temporary: dict[str, Path]) -> None:
            import pyarrow.parquet as pq

            with ExitStack() as stack:
                writers = {
                    view: stack.enter_context(
                        pq.ParquetWriter(path, self._schema(view, range(first, last + 1)), compression="zstd")
                    )
                    for view, path in temporary.items()
                }
                for hour in range(first, last + 1, step):
                    columns, moments = self._features(start + hour * HOUR, start + min(hour + step - 1, last) * HOUR)
                    for view, writer in writers.items():
                        writer.write_table(self._table(view, columns, moments, writer.schema))

        _replace_all(paths, write)
        return len(paths) * (last - first + 1) * self._grid.cells

    def write_static(self, as_of: datetime) -> int:
        """Write the views that hold at all times, where absent; returns the rows written."""
        absent = {view: static_file(self._folders[view]) for view in STATIC_VIEWS if view in self._folders}
        absent = {view: path for view, path in absent.items() if not path.exists()}
        if not absent:
            return 0
        columns, _ = self._features(as_of, as_of)
        moments = np.array([STATIC_SINCE.replace(tzinfo=None)], "datetime64[us]")

        def write(temporary: dict[str, Path]) -> None:
            import pyarrow.parquet as pq

            for view, path in temporary.items():
                table = self._table(view, columns, moments, self._schema(view, range(0)))
                pq.write_table(table, path, compression="zstd")

        _replace_all(absent, write)
        return len(absent) * self._grid.cells

    def _features(self, first: datetime, last: datetime) -> tuple[grid_module.Columns, np.ndarray[Any, Any]]:
        block = self._source.window(first - HISTORY, last)
        times = block["time"].values
        columns = grid_module.grid_features(block.values, times, self._grid, self._observed.variable)
        return columns, times[grid_module.HISTORY_HOURS :].astype("datetime64[us]")

    def _schema(self, view: str, hours: range) -> pa.Schema:
        import pyarrow as pa

        fields = [
            pa.field(self._entity, pa.int64(), nullable=False),
            # Microseconds: DuckDB 2 cannot cast nanoseconds in Feast's offline store.
            pa.field(EVENT_TIMESTAMP, pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field(CREATED_TIMESTAMP, pa.timestamp("us", tz="UTC"), nullable=False),
            *(pa.field(name, pa.float32()) for name in self._views[view]),
        ]
        metadata = {"origin": self._origin, "hours": list(hours), "source": self._source.describe()}
        return pa.schema(fields, metadata={MADE_FROM: json.dumps(metadata)})

    def _table(
        self, view: str, columns: grid_module.Columns, moments: np.ndarray[Any, Any], schema: pa.Schema
    ) -> pa.Table:
        import pyarrow as pa

        cells = self._grid.cells
        size = len(moments) * cells
        created = np.full(size, np.datetime64(utc_now().replace(tzinfo=None), "us"))
        arrays = [np.tile(np.arange(cells, dtype=np.int64), len(moments)), np.repeat(moments, cells), created]
        arrays += [columns[name].reshape(size) for name in self._views[view]]
        fields = zip(arrays, schema, strict=True)
        return pa.table([pa.array(array).cast(field.type) for array, field in fields], schema=schema)


def _replace_all(paths: dict[str, Path], write: Callable[[dict[str, Path]], None]) -> None:
    """Write several files at once, then move each into place; a death in between leaves whole files."""
    with ExitStack() as stack:
        write({view: stack.enter_context(replacing(path)) for view, path in paths.items()})
