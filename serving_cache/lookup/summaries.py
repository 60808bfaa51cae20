"""What callers may know of a declaration, as `/v1/pipelines` says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from almanac.partitioning import Grid
from almanac.pipeline import Pipeline

_GRID = ("rows", "cols", "north", "west", "step")
_RANKING = ("item", "length", "kept", "attributes")


def summary(pipeline: Pipeline) -> dict[str, Any]:
    """What callers may know of a declaration; durations in seconds."""
    fresh, grid = pipeline.fresh, pipeline.partitions
    return {
        "name": pipeline.name,
        "description": pipeline.description,
        "entity": pipeline.entity,
        "grid": {name: getattr(grid, name) for name in _GRID} if isinstance(grid, Grid) else None,
        "outputs": [
            {
                "name": output.name,
                "unit": output.unit,
                "horizon_seconds": output.horizon.total_seconds() if output.horizon else None,
            }
            for output in pipeline.outputs
        ],
        "ranking": None if pipeline.ranking is None else {name: getattr(pipeline.ranking, name) for name in _RANKING},
        "fresh_for_seconds": pipeline.freshness.fresh_for.total_seconds(),
        "usable_for_seconds": pipeline.freshness.usable_for.total_seconds(),
        "model": pipeline.model,
        "schedule": pipeline.schedule,
        "stream": pipeline.stream is not None,
        "fresh": None
        if fresh is None
        else {"deadline_seconds": fresh.deadline.total_seconds(), "concurrency": fresh.concurrency},
        "default": dict(pipeline.default) if isinstance(pipeline.default, Mapping) else pipeline.default,
    }
