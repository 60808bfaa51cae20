"""What a piece of a shard is scored to: one staged partition for each, with its block and the digest of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from almanac.blocks import Block
from almanac.clock import utc_now
from almanac.errors import FeatureError, PredictionError
from almanac.list_blocks import empty_block
from almanac.pipeline import Pipeline
from jobs.digests import partition_digests, spans_of
from jobs.plan import Plan

if TYPE_CHECKING:
    import pyarrow as pa

    from almanac.scoring import Scorer
    from serving_cache.records import StagedPartition


def staged_of(
    pipeline: Pipeline,
    plan: Plan,
    scorer: Scorer,
    piece: tuple[Sequence[int], pa.Table],
    refused: dict[int, str],
) -> list[StagedPartition]:
    """The partitions of a piece, ready to be staged; those that cannot be scored go to `refused`."""
    about, table = piece
    ready = list(_blocks(pipeline, plan, scorer, table, refused))
    empty = sorted(set(about) - {part.partition for part in ready} - refused.keys())
    ready += [_empty(pipeline, plan, part) for part in empty]
    digests = partition_digests(table, about)
    return [replace(part, input_digest=digests[part.partition]) for part in ready]


def _blocks(
    pipeline: Pipeline, plan: Plan, scorer: Scorer, table: pa.Table, refused: dict[int, str]
) -> Iterator[StagedPartition]:
    """One staged partition for each that has rows, which stand together.

    All are scored in one call; only when that fails is it scored partition by
    partition, to find the ones to blame.
    """
    from serving_cache.records import StagedPartition

    keys = keys_of(table, pipeline)
    features = table.select(list(scorer.inputs)) if set(scorer.inputs) <= set(table.column_names) else table
    try:
        whole = scorer.score(features)
    except (FeatureError, PredictionError):
        whole = None
    for partition, start, end in spans_of(table):
        if whole is not None:
            columns = {name: values[start:end] for name, values in whole.items()}
        else:
            try:
                columns = scorer.score(features.slice(start, end - start))
            except (FeatureError, PredictionError) as error:
                refused[partition] = str(error)
                continue
        mine = keys[start:end]
        if not bool(np.all(mine[1:] > mine[:-1])):
            order = np.argsort(mine, kind="stable")
            mine, columns = mine[order], {name: values[order] for name, values in columns.items()}
        yield StagedPartition(
            partition=partition, block=Block(keys=mine, columns=columns), as_of=plan.moment, computed_at=utc_now()
        )


def keys_of(table: pa.Table, pipeline: Pipeline) -> np.ndarray:
    """A table's entities as a block has them: int64, or UTF-8 bytes; the latter are as wide as the longest."""
    column = table.column(pipeline.entity)
    if pipeline.partitions.key_type is int:
        return np.asarray(column.to_numpy(), dtype=np.int64)
    texts = [text.encode() for text in column.to_pylist()]
    return np.array(texts, dtype=f"S{max((len(text) for text in texts), default=1) or 1}")


def _empty(pipeline: Pipeline, plan: Plan, partition: int) -> StagedPartition:
    """A bucket that nobody falls into: covered, with nothing in it."""
    from serving_cache.records import StagedPartition

    block = empty_block(pipeline.stored_columns, whole_keys=pipeline.partitions.key_type is int)
    return StagedPartition(partition=partition, block=block, as_of=plan.moment, computed_at=utc_now())
