"""Bring offline features up to a time: from hourly observations to a Parquet file a day and view.

Each file says in its own metadata which hours it holds and what they were made
from, so that a refresh writes only what is absent, and rewrites what came from
another source or from other code. Files are replaced whole; two refreshes at
once take turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import DAY, HOUR, floor_hour, format_time, need_utc, utc_now
from almanac.errors import SourceError
from almanac.pipeline import Interactions, Pipeline
from almanac.settings import Settings
from features import grid as grid_module
from features.files import locked, replacing
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
from features.sources import Source, grid_of, open_source
from features.tables import examine

if TYPE_CHECKING:
    import pyarrow as pa

STATIC_VIEWS = ("cell_position",)
CELL_HOURS_AT_ONCE_MAX = 2_000_000  # bounds the memory of one step to about half a gigabyte
HISTORY = timedelta(hours=grid_module.HISTORY_HOURS)


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What a refresh found and did.

    Args:
        as_of: the newest observed hour at or before the cutoff: the features' watermark.
        clock_shift: what was added to the observations' own times; zero unless replayed.
        hours_written: hours of the files that were written; zero when all was there.
        rows: rows written, over all views.
    """

    as_of: datetime
    clock_shift: timedelta
    hours_written: int
    rows: int


def refresh(pipeline: Pipeline, settings: Settings, cutoff: datetime, *, window: timedelta) -> Ingested:
    """Make the offline features of all hours from `cutoff - window` up to `cutoff` exist.

    Rows that exist stay, and are not written again. Hours whose history lies before the
    source's first hour have no features. The files of a pipeline without a source are
    kept up by somebody else: they are examined, and nothing is written.

    Raises:
        SourceError: the source has too little before the cutoff, or cannot be used.
        FeatureError: the files of a pipeline without a source are not what its views say.
        Unavailable: another refresh held the lock too long.
    """
    cutoff = need_utc(cutoff)
    if pipeline.source is None:
        return Ingested(as_of=examine(pipeline, settings, cutoff), clock_shift=timedelta(0), hours_written=0, rows=0)
    if isinstance(pipeline.source, Interactions):
        from features.interactions.ingest import refresh_interactions

        found = refresh_interactions(pipeline, settings, cutoff, window=window)
        return Ingested(as_of=found.as_of, clock_shift=found.clock_shift, hours_written=found.files, rows=found.rows)
    source = open_source(pipeline, settings)
    as_of = source.latest(cutoff)
    if as_of < source.earliest + HISTORY:
        raise SourceError(
            f"features at {format_time(as_of)} need {grid_module.HISTORY_HOURS} hours of history, but observations "
            f"begin at {format_time(source.earliest)} ({source.describe()}): ask for a later time"
        )
    hours = rows = 0
    with locked(settings.features_dir / pipeline.name / "ingest.lock"):
        files = _Files(pipeline, settings, source)
        files.drop_foreign()
        for day, wanted in _days(_first(cutoff - window, as_of, source), as_of):
            held = files.held(day)
            if not wanted <= held:
                every = wanted | held
                rows += files.write_day(day, min(every), max(every))
                hours += max(every) - min(every) + 1
        rows += files.write_static(as_of)
    return Ingested(as_of=as_of, clock_shift=source.clock_shift, hours_written=hours, rows=rows)


def reach(pipeline: Pipeline, settings: Settings, cutoff: datetime) -> datetime:
    """How far features as of a cutoff would reach: the `as_of` of a refresh, which is not made.

    Raises:
        SourceError, FeatureError: as `refresh`.
    """
    if pipeline.source is None:
        return examine(pipeline, settings, cutoff)
    if isinstance(pipeline.source, Interactions):
        from features.interactions.ingest import reach_of_interactions

        return reach_of_interactions(pipeline, settings, cutoff)
    return open_source(pipeline, settings).latest(cutoff)


def _first(start: datetime, as_of: datetime, source: Source) -> datetime:
    """The first hour to have: at or after `start`, with its full history, and `as_of` at the latest."""
    rounded = floor_hour(start) if floor_hour(start) == start else floor_hour(start) + HOUR
    return min(max(rounded, source.earliest + HISTORY), as_of)


def _days(first: datetime, last: datetime) -> Iterator[tuple[date, set[int]]]:
    """Each day from `first` to `last` with its hours that lie between, both included."""
    day = first.date()
    while day <= last.date():
        begin = first.hour if day == first.date() else 0
        end = last.hour if day == last.date() else 23
        yield day, set(range(begin, end + 1))
        day += DAY


class _Files:
    """The offline files of one pipeline; the caller holds the lock."""

    def __init__(self, pipeline: Pipeline, settings: Settings, source: Source) -> None:
        self._grid, self._observed = grid_of(pipeline)
        self._entity, self._source = pipeline.entity, source
        self._views = grid_module.views(self._observed.variable)
        self._folders = {view: view_dir(settings.features_dir, pipeline.name, view) for view in self._views}
        code = Path(grid_module.__file__).read_bytes()
        self._origin = hashlib.blake2b(source.identity.encode() + b"\0" + code, digest_size=16).hexdigest()

    @property
    def _hourly(self) -> dict[str, Path]:
        return {view: folder for view, folder in self._folders.items() if view not in STATIC_VIEWS}

    def drop_foreign(self) -> None:
        """Remove files made from another source or by other code: features of two kinds must not mix."""
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
