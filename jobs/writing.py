"""Staging what was scored, beside the scoring of what comes next."""

from __future__ import annotations

import contextvars
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from almanac.errors import Unavailable
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from jobs.stages import Stage

if TYPE_CHECKING:
    from serving_cache.records import Attempt, StagedPartition

log = logging.getLogger(__name__)


class Writer:
    """Stages what was scored, in order, in a thread of its own, while the next piece is scored.

    One piece is written and one waits at most, so that a shard of any size takes
    the memory of a few pieces. What a write raises, the next call raises.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, attempt: Attempt, record: Stage) -> None:
        from serving_cache.postgres import PostgresStore
        from serving_cache.redis import RedisStore

        self._pipeline, self._attempt, self._record = pipeline, attempt, record
        self._store = PostgresStore(settings.need("postgres_url"))
        self._cache = RedisStore(settings.redis_url) if settings.redis_url else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stage")
        self._pending: Future[int] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        self._store.close()
        if self._cache is not None:
            self._cache.close()

    def put(self, ready: list[StagedPartition], refused: dict[int, str], report: str = "") -> int:
        """Hand over a piece, once the one before is written; returns how many partitions that staged.

        Args:
            report: where a person finds the rows of what is refused, below the state directory.
        """
        done = self.finish()
        self._pending = self._thread.submit(contextvars.copy_context().run, self._write, ready, refused, report)
        return done

    def finish(self) -> int:
        """Wait for what was handed over; returns how many partitions it staged."""
        pending, self._pending = self._pending, None
        return 0 if pending is None else pending.result()

    def _write(self, ready: list[StagedPartition], refused: dict[int, str], report: str) -> int:
        with self._record.step("postgres"):
            staged = self._store.stage(self._attempt, ready)
            for partition, reason in refused.items():
                self._store.quarantine(self._attempt, partition, reason, report=report, staged_too=False)
        with self._record.step("redis"):
            self._warm_redis(ready)
        return len(staged)

    def _warm_redis(self, ready: list[StagedPartition]) -> None:
        """Put the blocks into Redis now; what fails here, publishing or the reconciler makes good."""
        if self._cache is None or not ready:
            return
        try:
            self._cache.put_blocks(self._pipeline.name, {part.block.hash: part.block.encoded for part in ready})
        except Unavailable as error:
            log.warning("redis stays pending for generation blocks: %s", error)
