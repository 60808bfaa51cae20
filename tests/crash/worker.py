"""What a forked worker does: runs of one pipeline, one after another, until a failpoint ends or stops it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from almanac import failpoints
from almanac.blocks import Block, block_hash
from almanac.errors import AlmanacError, UsageError
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.reconciler import Reconciler
from serving_cache.records import Attempt, StagedPartition
from serving_cache.redis import RedisStore
from serving_cache.rollback import roll_back
from serving_cache.sync import sync_redis
from tests.crash.declared import pipeline_of
from tests.generations import start_of

VIRTUAL_START = datetime(2026, 1, 1, tzinfo=UTC)
STEP = timedelta(hours=2)
"""Between two runs by the clock that retention goes by: what was left is soon dropped."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one worker is to do.

    Args:
        start: the real time that as_of counts from; value: the first run's, which is what it predicts everywhere.
        runs: how many to make; failpoint: where it ends, at the nth time; None to go through.
        stop: be stopped there rather than killed.
    """

    lane: int
    postgres_url: str
    redis_url: str
    start: datetime
    value: int
    runs: int
    seed: int
    failpoint: str | None = None
    nth: int = 1
    stop: bool = False


def work(task: Task, done: Callable[[int], None]) -> None:
    """Make the runs; `done` is told the value of each that was published."""
    if task.failpoint is not None:
        failpoints.arm(_ending(task.failpoint, task.nth, signal.SIGSTOP if task.stop else signal.SIGKILL))
    pipeline, chance = pipeline_of(task.lane), random.Random(task.seed)
    with PostgresStore(task.postgres_url) as store, RedisStore(task.redis_url) as cache:
        if task.failpoint == "reconcile.compared":
            Reconciler([pipeline], store, cache).step(0.0)
        for value in range(task.value, task.value + task.runs):
            attempt = _stage(pipeline, store, cache, task.start, value)
            now = VIRTUAL_START + value * STEP
            if chance.random() < 0.03 and task.failpoint is None:
                store.reject(attempt, "its run failed before publishing")
                continue
            attempt = store.take_over(pipeline.name, attempt.generation)
            try:
                store.publish(attempt, pipeline, now=now)
            except AlmanacError:
                if store.held(pipeline.name) is None:
                    raise
                store.clear_rollback(pipeline.name)  # a death came between a rollback and this
                store.publish(attempt, pipeline, now=now)
            done(value)
            sync_redis(pipeline, store, cache)
            store.retire(pipeline, now=now)
            if chance.random() < 0.05 or (task.failpoint or "").startswith("rollback"):
                with contextlib.suppress(UsageError):  # after rollbacks in a row there is nothing to go back to
                    roll_back(pipeline, store, cache)
                store.clear_rollback(pipeline.name)
            if chance.random() < 0.1:
                Reconciler([pipeline], store, cache).step(0.0)


def _stage(pipeline: Pipeline, store: PostgresStore, cache: RedisStore, start: datetime, value: int) -> Attempt:
    as_of = start + timedelta(milliseconds=value)
    plan = store.begin_generation(
        pipeline,
        start_of(pipeline, f"run {value}", as_of, model="crash-v1"),
        now=VIRTUAL_START + value * STEP,
    )
    every = list(range(pipeline.partitions.count))
    for shard in (every[:8], every[8:]):
        parts = [
            StagedPartition(partition=p, block=_block(pipeline, p, value), as_of=as_of, computed_at=as_of)
            for p in store.pending(plan, shard)
        ]
        store.stage(plan, parts)
        blocks = [part.block.encoded for part in parts]
        cache.put_blocks(pipeline.name, {block_hash(data): data for data in blocks})
        failpoints.passing("score.cached")
    return plan


def _block(pipeline: Pipeline, partition: int, value: int) -> Block:
    assert isinstance(pipeline.partitions, Grid)
    keys = np.array(list(pipeline.partitions.entities(partition)), dtype=np.int64)
    return Block(keys=keys, columns={"value": np.full(len(keys), value, dtype=np.float32)})


def _ending(failpoint: str, nth: int, sign: signal.Signals) -> Callable[[str], None]:
    passed = 0

    def action(name: str) -> None:
        nonlocal passed
        if name == failpoint:
            passed += 1
            if passed == nth:
                os.kill(os.getpid(), sign)

    return action
