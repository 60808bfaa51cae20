"""The recorded observations that forecasts and events are measured on."""

from __future__ import annotations

from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.settings import settings
from features.sources import grid_of
from features.sources.replay import Recording, read_recording


def recording_of(pipeline: Pipeline) -> Recording:
    """All observations of the file that the settings name for weather.

    Raises:
        UsageError: they name none.
        SourceError: it is none of the pipeline's grid.
    """
    path = settings().data_of("weather")
    if path is None:
        raise UsageError("no observations are named: set ALMANAC_SOURCE_DATA=weather=<GRIB or Parquet file>")
    return read_recording(path, *grid_of(pipeline), pipeline.entity)
