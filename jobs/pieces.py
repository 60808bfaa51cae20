"""A shard's features a piece at a time, so that what a task holds does not grow with its shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from almanac.pipeline import Pipeline
from almanac.settings import Settings
from jobs import inputs
from jobs.digests import spans_of
from jobs.members import Members, grouped
from jobs.plan import Plan

if TYPE_CHECKING:
    import pyarrow as pa

FETCHED_ROWS_MAX = 500_000
"""Rows of one retrieval: reading a view's files costs much the same for some of their rows as for all."""
LISTS_WEIGHT = 4
"""Rows of numbers that take as much memory as one row with lists."""


def rows_at_once(pipeline: Pipeline, rows_max: int) -> int:
    """How many rows of a pipeline's features take as much memory as so many rows of numbers."""
    return rows_max if pipeline.ranking is None else rows_max // LISTS_WEIGHT


def pieces_of(
    pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int], rows_max: int
) -> Iterator[tuple[list[int], pa.Table]]:
    """The features of some partitions, in their order; from what the gate kept, if it did.

    Args:
        rows_max: of a piece; a partition of more is a piece by itself.

    Returns:
        The partitions that a table is about, and the table; without rows if nobody falls into them.
    """
    kept = inputs.kept_of(pipeline, settings, plan, partitions)
    if kept is not None:
        yield from cut(kept, partitions, rows_max)
        return
    members, fetched_max = Members(pipeline, settings, plan), rows_at_once(pipeline, FETCHED_ROWS_MAX)
    for group in grouped(partitions, [members.count([part]) for part in partitions], fetched_max):
        yield from cut(inputs.fetch(pipeline, settings, plan, group, members), group, rows_max)


def cut(table: pa.Table, partitions: Sequence[int], rows_max: int) -> Iterator[tuple[list[int], pa.Table]]:
    """Some partitions of a table in which each one's rows stand together."""
    import pyarrow as pa

    spans = {part: (start, end) for part, start, end in spans_of(table)}
    sizes = [end - start for start, end in (spans.get(part, (0, 0)) for part in partitions)]
    for group in grouped(partitions, sizes, rows_max):
        runs: list[tuple[int, int]] = []
        for start, end in (spans[part] for part in group if part in spans):
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        slices = [table.slice(start, end - start) for start, end in runs] or [table.slice(0, 0)]
        yield group, pa.concat_tables(slices).combine_chunks()
