"""Going back to a generation, so that lookups see it at once: Redis is made ready before the pointer moves.

1. write what Redis lacks of the generation, which nobody reads yet; where there is no Redis, prove the rows themselves;
2. move the pointer in Postgres, and add one to its epoch;
3. move the pointer in Redis, which every lookup reads first;
4. let Redis follow in full: what else the pointer names, and what it no longer does.

A death after 2 leaves Redis an epoch behind; the reconciler mends that. A process that was paused so long between 1 and
3 that Redis may have let the blocks go leaves 3 to 4, which looks again.
"""

from __future__ import annotations

import contextlib
from time import monotonic

from almanac.clock import utc_now
from almanac.errors import Unavailable
from almanac.failpoints import passing
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.records import Publication
from serving_cache.redis import GRACE_SECONDS, Emptied, RedisStore
from serving_cache.sync import bring_generation, prove_rows, sync_redis

READY_SECONDS_MAX = GRACE_SECONDS / 2
"""Redis keeps for `GRACE_SECONDS` at least what was there when its being ready began."""


def roll_back(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore | None, to: int | None = None
) -> tuple[Publication, str]:
    """Make an earlier generation current again in Postgres, then in Redis.

    Args:
        cache: None if there is no Redis.
        to: see `PostgresStore.rollback`.

    Returns:
        What became of it, and why Redis follows later: empty if it has followed.

    Raises:
        UsageError: there is no such generation, or it cannot be gone back to; nothing changed.
        BlockError: its blocks are not those that were published; nothing changed.
        Unavailable: Postgres does not answer.
    """
    target = store.rollback_target(pipeline.name, to)
    marker, ready_until = None, monotonic() + READY_SECONDS_MAX
    if cache is not None:
        with contextlib.suppress(Unavailable):
            found = cache.mark(pipeline.name)
            bring_generation(pipeline, target, store, cache, prove=True)
            marker = found  # only now is Redis ready
    if marker is None:
        prove_rows(pipeline, target, store)
    passing("rollback.prepared")
    outcome = store.rollback(pipeline.name, target, now=utc_now(), partitioning=repr(pipeline.partitions))
    if cache is None:
        return outcome, ""
    try:
        pointer = store.pointer(pipeline.name)
        if marker is not None and monotonic() >= ready_until:
            marker = None
        if marker is not None and pointer is not None and pointer.generation.generation == target:
            with contextlib.suppress(Emptied):
                cache.move_pointer(pointer, marker)
        sync_redis(pipeline, store, cache)
    except Unavailable as error:
        return outcome, str(error)
    return outcome, ""
