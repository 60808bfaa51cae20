"""Keeps Redis in step with Postgres: `python -m serving_cache.reconciler`. Ends on SIGTERM or SIGINT.

When Postgres tells of a move, and once a second, it compares the two pointers (at one
epoch, what they name and since when: Postgres may have lost commits), and looks for
the marker that is gone when Redis was emptied; it repairs what a death between Postgres
and Redis left, within two seconds. Every half a minute, and after either server was away,
it proves that the blocks are there and brings overlays that did not arrive. Some of
the overlays that there should be are looked for at each step, all of them in half a
minute: what was evicted or deleted is brought back. A Redis that may evict is said. It
logs a line whenever a pipeline's state changes, and no other; `/metrics` and
`/readyz` say the same to machines.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from almanac import metrics
from almanac.clock import utc_now
from almanac.errors import AlmanacError, BlockError, Unavailable
from almanac.failpoints import passing
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from serving_cache.daemon import run_until_stopped
from serving_cache.overlaid import SLICES
from serving_cache.postgres import PostgresStore
from serving_cache.postgres_notices import Notices
from serving_cache.redis import RedisStore
from serving_cache.redis_overlays import RedisServer
from serving_cache.sync import of_lost_commits, restore_overlays, sync_overlays, sync_redis

log = logging.getLogger("serving_cache.reconciler")

PROCESS = "reconciler"
"""Its name in metrics."""
PERIOD_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 2.0
PROOF_SECONDS = 30.0
HEAD_START_SECONDS = 0.05
"""Who moved the pointer mostly brings Redis along, which needs not be done twice."""
HUNG_SECONDS_MAX = 300.0
"""A step has time limits far below this; one that takes longer hangs."""
SLICES_PER_STEP = 2
"""Slices of each pipeline's overlays that are looked at in a step: all of `SLICES` within half a minute."""
OVERLAY_MARGIN = timedelta(minutes=2)
"""Overlays stored this long before the last proof are brought again: transactions commit late, clocks differ."""


@dataclass
class _Watch:
    """What is known of one pipeline."""

    pipeline: Pipeline
    state: str = ""
    trouble: str | None = None
    proven_at: float | None = None
    overlays_since: datetime | None = None
    next_slice: int = 0


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
        self._stepped_at = time.monotonic()
        self._server: RedisServer | None = None

    def step(self, steady: float) -> bool:
        """Look at every pipeline once; returns False if a server did not answer.

        Args:
            steady: a monotonic reading in seconds.
        """
        answered = True
        self._look_at_server()
        for watch in self._watches:
            name = watch.pipeline.name
            with metrics.RECONCILER_SECONDS.labels(name).time():
                outcome = self._look(watch, steady)
            answered = answered and outcome != "unavailable"
            in_step = outcome in ("in_step", "repaired")
            metrics.RECONCILER_SYNCS.labels(name, outcome).inc()
            metrics.RECONCILER_IN_STEP.labels(name).set(1 if in_step or outcome == "unpublished" else 0)
            if in_step:
                metrics.RECONCILER_LAST_IN_STEP.labels(name).set(utc_now().timestamp())
        self._stepped_at = time.monotonic()
        return answered

    def _look(self, watch: _Watch, steady: float) -> str:
        """Bring one pipeline into step; returns the outcome as the metrics name it."""
        try:
            outcome, state = self._reconcile(watch, steady)
            self._say(watch, state)
            watch.trouble = state if outcome == "refused" else None
        except Unavailable as error:
            watch.proven_at = None  # what was missed meanwhile is unknown
            watch.trouble, outcome = f"waiting: {error}", "unavailable"
            self._say(watch, watch.trouble, level=logging.WARNING)
        except AlmanacError as error:
            watch.trouble, outcome = f"not in step: {error}", "refused"
            self._say(watch, watch.trouble, level=logging.ERROR)
        return outcome

    def _look_at_server(self) -> None:
        """Say whether Redis may evict, and take nothing for granted of one that was restarted or replaced."""
        try:
            found = self._cache.server()
        except AlmanacError:
            return  # who needs an answer of it says what is wrong
        before, self._server = self._server, found
        metrics.REDIS_MAY_EVICT.labels(PROCESS).set(1 if found.why_it_may_evict else 0)
        metrics.REDIS_EVICTED_KEYS.labels(PROCESS).set(found.evicted_keys)
        may_evict, might_evict = found.why_it_may_evict is not None, before is not None and before.why_it_may_evict
        if may_evict and not might_evict:
            log.warning("redis at %s: %s", self._cache.where, found.why_it_may_evict)
        elif might_evict and not may_evict:
            log.info("redis at %s keeps what it was given from now on", self._cache.where)
        if before is not None and before.run_id != found.run_id:
            for watch in self._watches:
                watch.proven_at = None

    def why_not_ready(self) -> str | None:
        """What keeps a pipeline's Redis from being in step; None when nothing does."""
        return next((f"{watch.pipeline.name}: {watch.trouble}" for watch in self._watches if watch.trouble), None)

    def why_not_live(self) -> str | None:
        """Whether a step hangs."""
        passed = time.monotonic() - self._stepped_at
        return None if passed <= HUNG_SECONDS_MAX else f"the reconciler has hung for {passed:.0f} s: restart it"

    def _reconcile(self, watch: _Watch, steady: float) -> tuple[str, str]:
        name = watch.pipeline.name
        wanted = self._postgres.pointer(name)
        if wanted is None:
            self._cache.pointer_and_marker(name)  # says whether Redis answers
            return "unpublished", "nothing is published yet"
        try:
            found, marker = self._cache.pointer_and_marker(name)
        except BlockError:
            found, marker = None, None
        passing("reconcile.compared")
        if found is not None and found.epoch > wanted.epoch:
            return (
                "refused",
                f"not in step: Redis is at epoch {found.epoch}, ahead of Postgres at {wanted.epoch} "
                f"(was an older backup restored?): run `almanac rebuild {name}`",
            )
        moved = False
        unproven = watch.proven_at is None
        if unproven or marker is None or steady - (watch.proven_at or 0.0) >= PROOF_SECONDS:
            started = self._postgres.now()  # what it is compared with below is the server's, too
            moved = sync_redis(watch.pipeline, self._postgres, self._cache, overlays=marker is None)
            since = None if unproven or watch.overlays_since is None else watch.overlays_since - OVERLAY_MARGIN
            sync_overlays(watch.pipeline, (self._postgres, self._cache), since)
            watch.proven_at, watch.overlays_since = steady, started
        elif found is None or found.epoch < wanted.epoch or of_lost_commits(found, wanted):
            moved = sync_redis(watch.pipeline, self._postgres, self._cache)
        elif self._cache.unsealed_slices(name):
            log.warning("redis pipeline=%s lost notes of overlays: all overlays are brought again", name)
            sync_redis(watch.pipeline, self._postgres, self._cache)
        self._restore(watch)
        return "repaired" if moved else "in_step", f"in step at epoch {wanted.epoch}"

    def _restore(self, watch: _Watch) -> None:
        """Look for the overlays of the next slices, and bring back those that Redis lost."""
        name, restored = watch.pipeline.name, 0
        for _ in range(SLICES_PER_STEP):
            restored += restore_overlays(watch.pipeline, (self._postgres, self._cache), watch.next_slice)
            watch.next_slice = (watch.next_slice + 1) % SLICES
        if restored:
            metrics.RECONCILER_OVERLAYS_RESTORED.labels(name).inc(restored)
            log.warning("redis pipeline=%s lost overlays of %d entities: they are back", name, restored)

    def _say(self, watch: _Watch, state: str, level: int = logging.INFO) -> None:
        if state != watch.state:
            watch.state = state
            name = watch.pipeline.name
            log.log(level, "reconciler pipeline=%s %s", name, state, extra={"pipeline": name})


def run(reconciler: Reconciler, notices: Notices) -> None:
    """Step for ever, soon after each move of a pointer; less often while a server is away."""
    wait_seconds = PERIOD_SECONDS
    while True:
        answered = reconciler.step(time.monotonic())
        wait_seconds = PERIOD_SECONDS if answered else min(wait_seconds * 1.5, BACKOFF_SECONDS_MAX)
        if not answered:
            time.sleep(wait_seconds)
        elif notices.wait(wait_seconds):
            time.sleep(HEAD_START_SECONDS)


def reconcile(settings: Settings, pipelines: Iterable[Pipeline]) -> None:
    """Keep Redis in step until a signal comes.

    Raises:
        AlmanacError: a setting is missing or cannot be used.
    """
    with (
        PostgresStore(settings.need("postgres_url")) as postgres,
        RedisStore(settings.need("redis_url")) as cache,
        Notices(settings.need("postgres_url")) as notices,
    ):
        reconciler = Reconciler(pipelines, postgres, cache)
        server = metrics.serve(
            settings.metrics_port,
            process=PROCESS,
            host=settings.metrics_host,
            why_not_ready=reconciler.why_not_ready,
            why_not_live=reconciler.why_not_live,
        )
        try:
            run(reconciler, notices)
        finally:
            if server is not None:
                server.close()


def main() -> int:
    """Reconcile every declared pipeline until a signal comes; returns the exit code."""
    return run_until_stopped("reconciler", reconcile)


if __name__ == "__main__":
    sys.exit(main())
