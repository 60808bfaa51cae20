"""Publishes generations in processes of their own, to be killed: `python -m tests.integration.publisher`.

Reads a line `pipeline value` on stdin for each attempt, forks, and prints the
child's pid; the child stages every partition full of the value, publishes, and
lets Redis follow. Reads another line before it waits for the child (whose pid is
its own until then), and prints the wait status. Forking saves each attempt the
imports, so that kills fall into the work.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import NOON, grid_pipeline, staged_parts, start_of


def publish(name: str, value: int) -> None:
    """One attempt at the run of this value."""
    pipeline = grid_pipeline(name)
    as_of = NOON + timedelta(hours=value)
    with PostgresStore(os.environ["POSTGRES"]) as store, RedisStore(os.environ["REDIS"]) as cache:
        plan = store.begin_generation(pipeline, start_of(pipeline, f"run {value}", as_of), now=as_of)
        every = list(range(pipeline.partitions.count))
        for shard in (every[:8], every[8:]):
            store.stage(plan, staged_parts(pipeline, value, as_of, partitions=store.pending(plan, shard)))
        store.publish(store.take_over(name, plan.generation), pipeline, now=as_of)
        sync_redis(pipeline, store, cache)
        store.retire(pipeline, now=as_of)


def main() -> None:
    """One forked attempt a line."""
    while line := sys.stdin.readline():
        name, value = line.split()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                publish(name, int(value))
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
