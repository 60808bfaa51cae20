"""Step 3: score the partitions of one shard and stage them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from almanac.blocks import Block
from almanac.clock import utc_now
from almanac.errors import FeatureError, PredictionError, Unavailable
from almanac.pipeline import Pipeline
from almanac.registry import ModelVersion, Registry
from almanac.settings import Settings
from jobs.digests import partition_digests
from jobs.inputs import PARTITION, features_of
from jobs.plan import Plan
from jobs.stages import Stage, stage

if TYPE_CHECKING:
    import pyarrow as pa

    from almanac.scoring import Scorer
    from serving_cache.records import StagedPartition

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What scoring a shard came to: partitions staged now, staged before, and quarantined."""

    staged: int
    skipped: int
    quarantined: dict[int, str]
    rows: int


def planned_version(pipeline: Pipeline, settings: Settings, plan: Plan) -> ModelVersion:
    """The version the plan named, though the alias may have moved since."""
    number = plan.model.rpartition("-v")[2]
    return Registry(settings.models_dir).resolve(f"{pipeline.model_name}@{number}")


def score_shard(pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int]) -> ShardResult:
    """Score what of a shard is not staged yet: Feast features, ONNX Runtime, Postgres, Redis.

    A partition with a missing feature or a prediction that is not a number is
    quarantined; the others go on. A retry scores only the rest.

    Raises:
        Superseded: another attempt of this run has taken over.
        Unavailable: a server did not answer; nothing is half-written, retry.
    """
    first = partitions[0] if partitions else None
    with stage("score", pipeline.name, settings, generation=plan.generation, shard=first) as record:
        return _score_shard(pipeline, settings, plan, partitions, record)


def _score_shard(
    pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int], record: Stage
) -> ShardResult:
    from almanac.scoring import Scorer
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import Attempt

    attempt = Attempt(pipeline=plan.pipeline, generation=plan.generation, token=plan.token)
    with PostgresStore(settings.need("postgres_url")) as store:
        todo = store.pending(attempt, list(partitions))
        if not todo:
            return ShardResult(staged=0, skipped=len(partitions), quarantined={}, rows=0)
        with record.step("model"):
            scorer = Scorer.load(planned_version(pipeline, settings, plan), pipeline)
        with record.step("features"):
            table = features_of(pipeline, settings, plan, todo)
        quarantined: dict[int, str] = {}
        with record.step("score"):
            ready = list(_blocks(pipeline, plan, scorer, table, quarantined))
            empty = sorted(set(todo) - {part.partition for part in ready} - quarantined.keys())
            ready += [_empty(pipeline, plan, part) for part in empty]
            digests = partition_digests(table, todo)
            ready = [replace(part, input_digest=digests[part.partition]) for part in ready]
        with record.step("postgres"):
            staged = store.stage(attempt, ready)
            for partition, reason in quarantined.items():
                store.quarantine(attempt, partition, reason, staged_too=False)
    with record.step("redis"):
        _warm_redis(pipeline, settings, ready)
    rows = sum(len(part.block.keys) for part in ready)
    record.partitions, record.rows = len(staged), rows
    log.info(
        "scored pipeline=%s generation=%d partitions=%d quarantined=%d rows=%d",
        pipeline.name,
        plan.generation,
        len(staged),
        len(quarantined),
        rows,
    )
    return ShardResult(staged=len(staged), skipped=len(partitions) - len(todo), quarantined=quarantined, rows=rows)


def _blocks(
    pipeline: Pipeline, plan: Plan, scorer: Scorer, table: pa.Table, quarantined: dict[int, str]
) -> Iterator[StagedPartition]:
    """One staged partition per group of rows; those that cannot be scored go to `quarantined`.

    The shard is scored in one call; only when that fails is it scored partition
    by partition, to find the ones to blame.
    """
    from serving_cache.records import StagedPartition

    keys = keys_of(table, pipeline)
    owners = table.column(PARTITION).to_numpy()
    features = table.select(list(scorer.inputs)) if set(scorer.inputs) <= set(table.column_names) else table
    try:
        whole = scorer.score(features)
    except (FeatureError, PredictionError):
        whole = None
    for partition in np.unique(owners):
        rows = np.flatnonzero(owners == partition)
        if whole is not None:
            columns = {name: values[rows] for name, values in whole.items()}
        else:
            try:
                columns = scorer.score(features.take(rows))
            except (FeatureError, PredictionError) as error:
                quarantined[int(partition)] = str(error)
                continue
        order = np.argsort(keys[rows], kind="stable")
        block = Block(
            keys=keys[rows][order], columns={name: np.ascontiguousarray(v[order]) for name, v in columns.items()}
        )
        yield StagedPartition(partition=int(partition), block=block, as_of=plan.moment, computed_at=utc_now())


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

    keys = np.empty(0, dtype=np.int64 if pipeline.partitions.key_type is int else "S1")
    block = Block(keys=keys, columns={name: np.empty(0, dtype=np.float32) for name in pipeline.output_names})
    return StagedPartition(partition=partition, block=block, as_of=plan.moment, computed_at=utc_now())


def _warm_redis(pipeline: Pipeline, settings: Settings, ready: Sequence[StagedPartition]) -> None:
    """Put the blocks into Redis now; what fails here, publishing or the reconciler makes good."""
    from almanac.blocks import block_hash, encode
    from serving_cache.redis import RedisStore

    if not settings.redis_url or not ready:
        return
    encoded = [encode(part.block) for part in ready]
    try:
        with RedisStore(settings.redis_url) as cache:
            cache.put_blocks(pipeline.name, {block_hash(data): data for data in encoded})
    except Unavailable as error:
        log.warning("redis stays pending for generation blocks: %s", error)
