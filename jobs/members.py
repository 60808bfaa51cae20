"""Which entities fall into which partition: a grid's cells by arithmetic, keys of buckets as the views know them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from almanac.partitioning import Buckets, Grid
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from jobs.digests import PARTITION
from jobs.plan import Plan

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


class Members:
    """The entities of a run's partitions. Keys of buckets are listed once, at the first question.

    Args:
        pipeline: whose partitions.
        settings: where its features are.
        plan: the run; keys are those that every view knows at its `as_of`.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, plan: Plan) -> None:
        self._pipeline, self._settings, self._plan = pipeline, settings, plan
        self._listed: tuple[pa.Array, np.ndarray[Any, Any]] | None = None

    def of(self, partitions: Sequence[int]) -> pa.Table:
        """Entities of some partitions, in the order of the partitions and ascending within each.

        Returns:
            The entity column and `_partition`.

        Raises:
            FeatureError: a key in the views' files cannot be an entity's.
        """
        import pyarrow as pa

        wanted = np.asarray(partitions, dtype=np.int32)
        grid = self._pipeline.partitions
        if isinstance(grid, Grid):
            cells = [cells_of(grid, part) for part in partitions]
            keys: Any = pa.array(np.concatenate([np.empty(0, dtype=np.int64), *cells]))
            sizes = [len(part) for part in cells]
        else:
            listed, starts = self._buckets(grid)
            rows = [np.arange(starts[part], starts[part + 1]) for part in partitions]
            keys = listed.take(pa.array(np.concatenate([np.empty(0, dtype=np.int64), *rows])))
            sizes = [len(part) for part in rows]
        owners = pa.array(np.repeat(wanted, sizes))
        return pa.table({self._pipeline.entity: keys, PARTITION: owners})

    def count(self, partitions: Sequence[int]) -> int:
        """How many entities some partitions have."""
        grid = self._pipeline.partitions
        if isinstance(grid, Grid):
            return sum(len(cells_of(grid, part)) for part in partitions)
        _, starts = self._buckets(grid)
        return int(sum(starts[part + 1] - starts[part] for part in partitions))

    def _buckets(self, buckets: Buckets) -> tuple[pa.Array, np.ndarray[Any, Any]]:
        """All keys by bucket, ascending within each; and where each bucket begins."""
        import pyarrow as pa

        from features.tables import entities, tables_of

        if self._listed is None:
            kind = pa.int64() if buckets.key_type is int else pa.string()
            keys, owners = [pa.array([], kind)], [np.empty(0, dtype=np.int32)]
            for some in entities(tables_of(self._pipeline, self._settings), self._pipeline, self._plan.moment):
                keys.append(pa.array(some, kind))
                owners.append(np.array(buckets.partitions_of(some), np.int32))
            places = np.concatenate(owners)
            order = np.argsort(places, kind="stable")
            starts = np.searchsorted(places[order], np.arange(buckets.count + 1))
            self._listed = pa.concat_arrays(keys).take(pa.array(order)), starts
        return self._listed


def cells_of(grid: Grid, partition: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The cells of a tile, ascending: `Grid.entities` as an array."""
    row, col = (place * grid.tile for place in divmod(partition, grid.tile_cols))
    rows = np.arange(row, min(row + grid.tile, grid.rows), dtype=np.int64)
    cols = np.arange(col, min(col + grid.tile, grid.cols), dtype=np.int64)
    return (rows[:, None] * grid.cols + cols).ravel()


def grouped(things: Sequence[T], sizes: Sequence[int], most: int) -> Iterator[list[T]]:
    """Things one after the other, together as long as their sizes come to no more than `most`; larger ones alone."""
    group: list[T] = []
    held = 0
    for thing, size in zip(things, sizes, strict=True):
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(thing)
        held += size
    if group:
        yield group
