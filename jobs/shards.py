"""Shards: the partitions of a run cut into the lists that one task scores each.

By measured cost, so that a task lasts tens of seconds: less, and Airflow's
overhead of a task counts; more, and a retry repeats much. Before anything was
measured, and for a pipeline that declares it, by number of partitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from almanac.partitioning import Grid, Partitioning
from almanac.pipeline import SHARD_PARTITIONS, Pipeline
from jobs.costs import Costs

SHARD_SECONDS = 30.0
SHARD_ROWS_MAX = 1_000_000
SHARDS_AT_ONCE = 2
"""Shards of one run that Airflow has at work at once: a run of some length is cut into a multiple of it, or the others
would wait for the last one."""
ALONE_SECONDS_MAX = 15.0
"""A run up to this is one shard: a second task would cost more than it saves."""
SHARDS_MAX = 256
"""Mapped tasks of one run; Airflow's own limit is 1,024, and its overhead grows with them."""


def cut(
    pipeline: Pipeline, partitions: Sequence[int], costs: Costs | None = None, rows: Mapping[int, int] | None = None
) -> list[list[int]]:
    """Partitions, in their order, as shards.

    Args:
        costs: as measured; None before the first run.
        rows: of each partition; one that is absent counts as the mean of the others.
    """
    if not partitions:
        return []
    if costs is None or pipeline.shard_partitions is not None:
        size = max(pipeline.shard_partitions or SHARD_PARTITIONS, ceil(len(partitions) / SHARDS_MAX))
        return [list(partitions[start : start + size]) for start in range(0, len(partitions), size)]
    known = rows or {}
    usual = sum(known.values()) / len(known) if known else 1.0
    sizes = [float(known.get(partition, usual)) for partition in partitions]
    total = sum(sizes)
    wanted = max(ceil(total * costs.row / SHARD_SECONDS), ceil(total / SHARD_ROWS_MAX), 1)
    if total * costs.row > ALONE_SECONDS_MAX:
        wanted = ceil(wanted / SHARDS_AT_ONCE) * SHARDS_AT_ONCE
    return _evenly(partitions, sizes, min(wanted, SHARDS_MAX, len(partitions)))


def _evenly(partitions: Sequence[int], sizes: Sequence[float], count: int) -> list[list[int]]:
    """So many shards of about equal size, none of them empty."""
    share = (sum(sizes) or 1.0) / count
    shards: list[list[int]] = [[]]
    held = 0.0
    for place, (partition, size) in enumerate(zip(partitions, sizes, strict=True)):
        left = len(partitions) - place
        full = held + size / 2 > share * len(shards) or left <= count - len(shards)
        if shards[-1] and full and len(shards) < count:
            shards.append([])
        shards[-1].append(partition)
        held += size
    return shards


def rows_of_grid(partitioning: Partitioning) -> dict[int, int]:
    """Cells of each tile; empty for buckets, whose sizes nobody declares."""
    if not isinstance(partitioning, Grid):
        return {}
    grid = partitioning
    heights = [min(grid.tile, grid.rows - row * grid.tile) for row in range(grid.tile_rows)]
    widths = [min(grid.tile, grid.cols - col * grid.tile) for col in range(grid.tile_cols)]
    return {
        row * grid.tile_cols + col: high * wide for row, high in enumerate(heights) for col, wide in enumerate(widths)
    }
