"""Bring offline features up to a time: from hourly observations to a Parquet file a day and view.

Each file says in its own metadata which hours it holds and what they were made
from, so that a refresh writes only what is absent, and rewrites what came from
another source or from other code. Files are replaced whole; two refreshes at
once take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from almanac.clock import DAY, HOUR, floor_hour, format_time, need_utc
from almanac.errors import SourceError
from almanac.pipeline import Interactions, Pipeline
from almanac.settings import Settings
from features import grid as grid_module
from features.files import locked
from features.grid_files import HISTORY, GridFiles
from features.sources import Source, open_source
from features.tables import examine

if TYPE_CHECKING:
    pass


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
        files = GridFiles(pipeline, settings, source)
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
