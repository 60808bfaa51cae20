"""Rows to train on and to measure on: cells x hours, cut by time, with Feast's features and the observed truth.

The held-out window is the last `Training.holdout` of the observations, by the
time a forecast speaks about (`valid_at`). A row of an output with horizon h is
used for training only if its truth was known when the first held-out forecast
of that output was made, h before the window: no row learns from the future of
any forecast that it is measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import HOUR, format_time
from almanac.errors import DeclarationError, FeatureError, SourceError
from almanac.pipeline import Output, Pipeline
from almanac.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

TRAINING_HOURS_MIN = 72
"""Hours of forecasts that every output needs before the held-out window."""
ROWS_AT_ONCE_MAX = 500_000
"""Rows retrieved at once: some 150 MB. Each retrieval reads the keys and times of the files anew."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What was observed, hour by hour.

    Args:
        first: the first hour.
        values: float32 (hours, cells), in the variable's unit.
    """

    first: datetime
    values: Floats

    def at(self, rows: Rows, offset_hours: int) -> Floats:
        """The observed value of each row's cell, that many hours after the row's."""
        return self.values[rows.hours + offset_hours, rows.cells]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Forecasts to make: one cell at one hour each; hours count from the truth's first."""

    hours: Integers
    cells: Integers

    def __len__(self) -> int:
        return len(self.hours)

    def pick(self, chosen: NDArray[Any]) -> Rows:
        """Some of the rows."""
        return Rows(hours=self.hours[chosen], cells=self.cells[chosen])


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which hours are for what, counted from the truth's first hour; ends are included.

    Args:
        first: the first hour that has features.
        held_out: the first held-out hour, by `valid_at`.
        last: the last observed hour.
    """

    first: int
    held_out: int
    last: int

    def training_end(self, horizon_hours: int) -> int:
        """The last hour whose forecast may be trained on: see the module's docstring."""
        return self.held_out - 2 * horizon_hours

    def measured(self, horizon_hours: int) -> tuple[int, int]:
        """First and last hour whose forecast is measured."""
        return self.held_out - horizon_hours, self.last - horizon_hours


def horizon_hours(pipeline: Pipeline, output: Output) -> int:
    """Whole hours ahead.

    Raises:
        DeclarationError: the output has no horizon, or one that is not whole hours.
    """
    if output.horizon is None or output.horizon % HOUR:
        raise DeclarationError(
            f"pipeline {pipeline.name}: output {output.name} has the horizon {output.horizon}, "
            "but `almanac train` makes forecasts of whole hours: declare outputs with horizons(…)"
        )
    return output.horizon // HOUR


def split(pipeline: Pipeline, first: int, last: int) -> Split:
    """Cut the hours with features, `first` to `last`, by the declared holdout.

    Raises:
        SourceError: too little is left to train on; says how much there is and is needed.
    """
    holdout = pipeline.training.holdout // HOUR
    found = Split(first=first, held_out=last - holdout + 1, last=last)
    longest = max(horizon_hours(pipeline, output) for output in pipeline.outputs)
    hours = found.training_end(longest) - first + 1
    if hours < TRAINING_HOURS_MIN:
        raise SourceError(
            f"{max(last - first + 1, 0)} hours of features are too few to train {pipeline.name}: with {holdout} hours "
            f"held out, {max(hours, 0)} are left for the longest horizon and {TRAINING_HOURS_MIN} are needed: "
            "give more observations, or shorten Training.holdout"
        )
    return found


def sample(pipeline: Pipeline, cut: Split) -> Rows:
    """At most `Training.rows_max` rows before the held-out window, drawn with the declared seed, in time order."""
    shortest = min(horizon_hours(pipeline, output) for output in pipeline.outputs)
    cells = len(_cells(pipeline))
    count = (cut.training_end(shortest) - cut.first + 1) * cells
    size = min(count, pipeline.training.rows_max)
    drawn = np.random.default_rng(pipeline.training.seed).choice(count, size=size, replace=False, shuffle=False)
    drawn.sort()
    return Rows(hours=cut.first + drawn // cells, cells=drawn % cells)


def every_row(pipeline: Pipeline, first: int, last: int) -> Iterator[Rows]:
    """All cells at the hours `first` to `last`, both included, some hours at a time."""
    cells = _cells(pipeline)
    step = max(1, ROWS_AT_ONCE_MAX // len(cells))
    for start in range(first, last + 1, step):
        hours = np.arange(start, min(start + step - 1, last) + 1)
        yield Rows(hours=np.repeat(hours, len(cells)), cells=np.tile(cells, len(hours)))


def features(pipeline: Pipeline, settings: Settings, truth: Truth, rows: Rows) -> pa.Table:
    """Feast's features of each row as of its hour: the FeatureService's columns, float32.

    Raises:
        FeatureError: a column is not a number, or missing for some rows.
    """
    import pyarrow as pa

    from features.offline.reading import historical

    start = np.datetime64(truth.first.replace(tzinfo=None), "us")
    moments = start + rows.hours.astype("timedelta64[h]")
    entities = pa.table(
        {
            pipeline.entity: pa.array(rows.cells),
            "event_timestamp": pa.array(moments).cast(pa.timestamp("us", tz="UTC")),
        }
    )
    found = historical(pipeline, settings, entities).drop_columns([pipeline.entity, "event_timestamp"])
    for name in found.column_names:
        column = found[name]
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise FeatureError(f"feature {name} is {column.type}, expected a number: correct the feature view")
        absent = int((~np.isfinite(column.to_numpy())).sum())
        if absent:
            raise FeatureError(
                f"feature {name} is missing in {absent} of {len(column)} rows "
                f"from {format_time(truth.first + timedelta(hours=int(rows.hours[0])))}: run the ingest step again"
            )
    return found.cast(pa.schema([(name, pa.float32()) for name in found.column_names]))


def read_truth(pipeline: Pipeline, settings: Settings, now: datetime) -> tuple[Truth, int, str]:
    """Everything observed in the training window before `now`, the first hour of it that has features, and whose it is.

    Raises:
        SourceError: the source cannot be used.
    """
    from features.grid import HISTORY_HOURS
    from features.sources import open_source

    source = open_source(pipeline, settings, now=now)
    last = source.latest(now)
    begin = max(last - pipeline.training.window, source.earliest + HISTORY_HOURS * HOUR)
    first = max(source.earliest, begin - 24 * HOUR)  # a day more, for the baseline "same hour yesterday"
    block = source.window(first, last)
    values = np.ascontiguousarray(block.values, dtype=np.float32).reshape(block.sizes["time"], -1)
    return Truth(first=first, values=values), (begin - first) // HOUR, source.describe()


def _cells(pipeline: Pipeline) -> Integers:
    from features.sources import grid_of

    return np.arange(grid_of(pipeline)[0].cells)
