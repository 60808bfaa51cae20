"""The pipelines that are made to die."""

from __future__ import annotations

from almanac.partitioning import Grid
from almanac.pipeline import Freshness, Output, Pipeline, hours

CELLS = 256


def pipeline_of(lane: int) -> Pipeline:
    """256 cells in 16 tiles."""
    return Pipeline(
        name=f"crash_{lane}",
        entity="cell_id",
        partitions=Grid(rows=16, cols=16, tile=4),
        outputs=(Output(name="value"),),
        features="crash_v1",
        model="crash@champion",
        schedule="0 * * * *",
        freshness=Freshness(fresh_for=hours(24), usable_for=hours(48)),
        coverage_min=1.0,
        generations_kept=1,
    )
