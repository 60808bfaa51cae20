"""Step 3: score the partitions of one shard and stage them."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from almanac.blocks import Block
from almanac.clock import utc_now
from almanac.errors import FeatureError, PredictionError, Unavailable
from almanac.pipeline import Pipeline
from almanac.registry import ModelVersion, Registry
from almanac.settings import Settings
from jobs.digests import partition_digests, spans_of
from jobs.lacking import explained
from jobs.pieces import pieces_of
from jobs.plan import Plan
from jobs.stages import Stage, stage

if TYPE_CHECKING:
    import pyarrow as pa

    from almanac.scoring import Scorer
    from serving_cache.records import Attempt, StagedPartition

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 50_000
"""Rows of a shard that are scored, and then staged, together: what bounds its memory."""


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
    quarantined: dict[int, str] = {}
    staged = rows = 0
    tables = pieces_of(pipeline, settings, plan, todo, ROWS_AT_ONCE)
    with _Writer(pipeline, settings, attempt, record) as writer:
        while True:
            with record.step("features"):
                about, table = next(tables, ([], None))
            if table is None:
                break
            with record.step("score"):
                refused: dict[int, str] = {}
                ready = _staged(pipeline, plan, scorer, (about, table), refused)
                refused = explained(pipeline, settings, table, refused, plan.moment)
            quarantined |= refused
            rows += sum(len(part.block.keys) for part in ready)
            with record.step("waiting"):
                staged += writer.put(ready, refused)
        with record.step("waiting"):
            staged += writer.finish()
    record.partitions, record.rows = staged, rows
    log.info(
        "scored pipeline=%s generation=%d partitions=%d quarantined=%d rows=%d",
        pipeline.name,
        plan.generation,
        staged,
        len(quarantined),
        rows,
    )
    return ShardResult(staged=staged, skipped=len(partitions) - len(todo), quarantined=quarantined, rows=rows)


class _Writer:
    """Stages what was scored, in order, in a thread of its own, while the next piece is scored.

    One piece is written and one waits at most, so that a shard of any size takes
    the memory of a few pieces. What a write raises, the next call raises.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, attempt: Attempt, record: Stage) -> None:
        self._pipeline, self._settings, self._attempt, self._record = pipeline, settings, attempt, record
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stage")
        self._pending: Future[int] | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    def put(self, ready: list[StagedPartition], refused: dict[int, str]) -> int:
        """Hand over a piece, once the one before is written; returns how many partitions that staged."""
        done = self.finish()
        self._pending = self._thread.submit(contextvars.copy_context().run, self._write, ready, refused)
        return done

    def finish(self) -> int:
        """Wait for what was handed over; returns how many partitions it staged."""
        pending, self._pending = self._pending, None
        return 0 if pending is None else pending.result()

    def _write(self, ready: list[StagedPartition], refused: dict[int, str]) -> int:
        from serving_cache.postgres import PostgresStore

        with self._record.step("postgres"), PostgresStore(self._settings.need("postgres_url")) as store:
            staged = store.stage(self._attempt, ready)
            for partition, reason in refused.items():
                store.quarantine(self._attempt, partition, reason, staged_too=False)
        with self._record.step("redis"):
            _warm_redis(self._pipeline, self._settings, ready)
        return len(staged)


def _staged(
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
