"""Keeps Redis in step with Postgres: `python -m serving_cache.reconciler`. Ends on SIGTERM or SIGINT.

Once a second it compares the two pointers, and looks for the marker that is gone
when Redis was emptied; it repairs what a death between Postgres and Redis left,
within two seconds. Every half a minute, and after either server was away, it
proves that the blocks are there and brings overlays that did not arrive. It
logs a line whenever a pipeline's state changes, and no other.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import FrameType

from almanac.clock import utc_now
from almanac.errors import AlmanacError, BlockError, Unavailable
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_overlays, sync_redis

log = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 2.0
PROOF_SECONDS = 30.0
OVERLAY_MARGIN = timedelta(minutes=2)
"""Overlays stored this long before the last proof are brought again: transactions commit late, clocks differ."""


class Stopped(BaseException):
    """A signal asked the process to end. Every step may be cut short anywhere."""


@dataclass
class _Watch:
    """What is known of one pipeline."""

    pipeline: Pipeline
    state: str = ""
    proven_at: float | None = None
    overlays_since: datetime | None = None


class Reconciler:
    """Compares the stores and repairs Redis.

    Args:
        pipelines: those to keep in step.
        postgres, cache: the stores.
    """

    def __init__(self, pipelines: Iterable[Pipeline], postgres: PostgresStore, cache: RedisStore) -> None:
        self._watches = [_Watch(pipeline) for pipeline in pipelines]
        self._postgres = postgres
        self._cache = cache

    def step(self, steady: float) -> bool:
        """Look at every pipeline once; returns False if a server did not answer.

        Args:
            steady: a monotonic reading in seconds.
        """
        answered = True
        for watch in self._watches:
            try:
                self._say(watch, self._reconcile(watch, steady))
            except Unavailable as error:
                watch.proven_at = None  # what was missed meanwhile is unknown
                self._say(watch, f"waiting: {error}", level=logging.WARNING)
                answered = False
            except AlmanacError as error:
                self._say(watch, f"not in step: {error}", level=logging.ERROR)
        return answered

    def _reconcile(self, watch: _Watch, steady: float) -> str:
        name = watch.pipeline.name
        wanted = self._postgres.pointer(name)
        if wanted is None:
            self._cache.pointer_and_marker(name)  # says whether Redis answers
            return "nothing is published yet"
        try:
            found, marker = self._cache.pointer_and_marker(name)
        except BlockError:
            found, marker = None, None
        if found is not None and found.epoch > wanted.epoch:
            return (
                f"not in step: Redis is at epoch {found.epoch}, ahead of Postgres at {wanted.epoch} "
                f"(was an older backup restored?): run `almanac rebuild-cache {name}`"
            )
        unproven = watch.proven_at is None
        if unproven or marker is None or steady - (watch.proven_at or 0.0) >= PROOF_SECONDS:
            started = utc_now()
            sync_redis(watch.pipeline, self._postgres, self._cache, overlays=marker is None)
            since = None if unproven or watch.overlays_since is None else watch.overlays_since - OVERLAY_MARGIN
            sync_overlays(watch.pipeline, wanted, (self._postgres, self._cache), since)
            watch.proven_at, watch.overlays_since = steady, started
        elif found is None or found.epoch < wanted.epoch:
            sync_redis(watch.pipeline, self._postgres, self._cache)
        return f"in step at epoch {wanted.epoch}"

    def _say(self, watch: _Watch, state: str, level: int = logging.INFO) -> None:
        if state != watch.state:
            watch.state = state
            log.log(level, "reconciler pipeline=%s %s", watch.pipeline.name, state)


def run(reconciler: Reconciler) -> None:
    """Step for ever; less often while a server is away."""
    wait_seconds = PERIOD_SECONDS
    while True:
        answered = reconciler.step(time.monotonic())
        wait_seconds = PERIOD_SECONDS if answered else min(wait_seconds * 1.5, BACKOFF_SECONDS_MAX)
        time.sleep(wait_seconds)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped


def main() -> int:
    """Reconcile every declared pipeline until a signal comes."""
    from almanac.declarations import pipelines
    from almanac.settings import settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        found = settings()
        with PostgresStore(found.need("postgres_url")) as postgres, RedisStore(found.need("redis_url")) as cache:
            run(Reconciler(pipelines().values(), postgres, cache))
    except Stopped:
        log.info("reconciler stopped")
    except AlmanacError as error:
        print(f"reconciler: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
