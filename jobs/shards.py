"""Shards: the partitions of a run cut into the lists that one task scores each."""

from __future__ import annotations

from collections.abc import Sequence

from almanac.pipeline import Pipeline

SHARDS_MAX = 256
"""Mapped tasks of one run; Airflow's own limit is 1,024, and its overhead grows with them."""


def cut(pipeline: Pipeline, partitions: Sequence[int]) -> list[list[int]]:
    """Partitions, in their order, as shards of `shard_partitions`; larger ones if they would be too many."""
    size = max(pipeline.shard_partitions, -(-len(partitions) // SHARDS_MAX))
    return [list(partitions[start : start + size]) for start in range(0, len(partitions), size)]
