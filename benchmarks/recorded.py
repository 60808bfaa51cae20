"""The recorded observations that forecasts and events are measured on."""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from almanac.clock import DAY
from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.settings import settings
from features.sources import grid_of
from features.sources.replay import Recording, read_recording

HELD_OUT_HOURS = 168
QUICK_DAYS = 20
QUICK_HELD_OUT_HOURS = 48
QUICK_TREES = 10
QUICK_ENDS = datetime(2026, 3, 31, tzinfo=UTC)


def week_options(description: str | None) -> argparse.Namespace:
    """The command line of what is measured on a held-out week: `held_out_hours` and `quick`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--held-out-hours", type=int, default=0, help=f"default {HELD_OUT_HOURS}")
    parser.add_argument("--quick", action="store_true", help="small and simulated: does it work? Not a measurement")
    given = parser.parse_args()
    given.held_out_hours = given.held_out_hours or (QUICK_HELD_OUT_HOURS if given.quick else HELD_OUT_HOURS)
    return given


def recording_of(pipeline: Pipeline, *, quick: bool = False) -> Recording:
    """All observations of the file that the settings name for weather; with `quick` a few simulated days instead.

    Raises:
        UsageError: the settings name no file.
        SourceError: the file is none of the pipeline's grid.
    """
    if quick:
        return _simulated(pipeline)
    path = settings().data_of("weather")
    if path is None:
        raise UsageError("no observations are named: set ALMANAC_SOURCE_DATA=weather=<GRIB or Parquet file>")
    return read_recording(path, *grid_of(pipeline), pipeline.entity)


def quick_training(pipeline: Pipeline) -> Pipeline:
    """The same pipeline with a model of few trees."""
    return replace(pipeline, training=replace(pipeline.training, trees=QUICK_TREES))


def _simulated(pipeline: Pipeline) -> Recording:
    from features.sources.atmosphere import SimulatedAtmosphere

    atmosphere = SimulatedAtmosphere(*grid_of(pipeline), seed=1)
    window = atmosphere.window(QUICK_ENDS - QUICK_DAYS * DAY, QUICK_ENDS)
    times = window["time"].values.astype("datetime64[us]")
    return Recording(path=Path("simulated"), digest="", times=times, values=window.values)
