"""Sources of observations: one interface over files of real ones and a simulated atmosphere."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from almanac.clock import utc_now
from almanac.errors import DeclarationError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations, Pipeline
from almanac.settings import Settings
from features.sources.dated import Dated

if TYPE_CHECKING:
    import xarray

WINDOW_VALUES_MAX = 2_000_000_000


class Source(Dated, Protocol):
    """Hourly observations of one variable on a pipeline's grid."""

    def window(self, start: datetime, end: datetime) -> xarray.DataArray:
        """All hours from `start` to `end`, both included: dims (time, row, col), float32, times in UTC without a zone.

        Raises:
            SourceError: some hour of the window was not observed.
        """
        ...


def grid_of(pipeline: Pipeline) -> tuple[Grid, GridObservations]:
    """The grid and the observed variable of a pipeline.

    Raises:
        DeclarationError: the pipeline has no source.
    """
    if not isinstance(pipeline.partitions, Grid) or not isinstance(pipeline.source, GridObservations):
        raise DeclarationError(
            f"pipeline {pipeline.name} declares no source on a Grid: "
            "give it partitions=Grid(…) and source=GridObservations(…)"
        )
    return pipeline.partitions, pipeline.source


def open_source(pipeline: Pipeline, settings: Settings, *, now: datetime | None = None) -> Source:
    """The source that the settings name: the pipeline's file in `source_data`, or else the simulated atmosphere.

    Args:
        pipeline: declares grid and variable.
        settings: `source_data`, `source_seed`; `features_dir` keeps a replayed file's shift.
        now: where a file's clock is shifted to when it is first used; default: the current time.

    Raises:
        DeclarationError: the pipeline declares no source.
        SourceError: the file cannot be used; one line that says what is expected and found.
    """
    grid, observed = grid_of(pipeline)
    path = settings.data_of(pipeline.name)
    if path is None:
        from features.sources.atmosphere import SimulatedAtmosphere

        return SimulatedAtmosphere(grid, observed, settings.source_seed)
    from features.sources.replay import open_replay

    return open_replay(pipeline, settings, path, now or utc_now())
