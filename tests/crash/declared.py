"""The pipelines that are made to die."""

from __future__ import annotations

from almanac.partitioning import Grid
from almanac.pipeline import Freshness, Output, Pipeline, hours
from tests.generations import grid_pipeline

CELLS = 256


def pipeline_of(lane: int) -> Pipeline:
    """256 cells in 16 tiles, which count all or not at all."""
    return grid_pipeline(
        f"crash_{lane}",
        partitions=Grid(rows=16, cols=16, tile=4),
        outputs=(Output(name="value"),),
        freshness=Freshness(fresh_for=hours(24), usable_for=hours(48)),
        coverage_min=1.0,
        generations_kept=1,
    )
