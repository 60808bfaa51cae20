"""A clock that steps by an hour under the reconciler and the stream worker: nothing is missed, nothing is refused.

The lookup's ages under such steps are tested in `tests/unit/test_lookup_parts.py`.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from almanac import steady
from almanac.clock import HOUR, utc_now
from almanac.errors import EventError
from serving_cache import reconciler as reconciling
from serving_cache import sync
from serving_cache.postgres import PostgresStore
from serving_cache.reconciler import PROOF_SECONDS, Reconciler
from serving_cache.redis import RedisStore
from streaming.events import parse
from tests.generations import grid_pipeline, migrated, new_name, overlay_of, published_generation
from tests.streams import event, tiny_pipeline


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
def test_the_reconciler_misses_no_overlay_when_its_clock_steps(
    step: timedelta, postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = migrated(postgres_url, grid_pipeline())
    with PostgresStore(postgres_url) as postgres, RedisStore(redis_url) as redis:
        published_generation(postgres, grid, 281.0, utc_now() - HOUR)
        watching = Reconciler([grid], postgres, redis)
        for module in (reconciling, sync):
            monkeypatch.setattr(module, "utc_now", lambda: utc_now() + step)
        assert watching.step(0.0)
        overlay = overlay_of("17", utc_now(), 1)
        postgres.put_overlays(grid.name, [overlay])  # its way to Redis was cut off
        assert watching.step(PROOF_SECONDS + 1)
        assert redis.overlays(grid.name, "17") == {overlay.model: overlay}


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
def test_the_worker_refuses_no_event_when_its_clock_steps(step: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_pipeline(new_name())
    clock = steady.SystemClock()
    monkeypatch.setattr(steady, "utc_now", lambda: utc_now() + step)
    sent = event(17, 281.0, utc_now())
    found = parse(sent.value, sent.key, None, pipeline, clock.now().now)
    assert found.entity == 17
    assert abs(clock.now().now - utc_now()) < timedelta(minutes=1)
    assert clock.now().note is not None
    if step < timedelta(0):  # what the stepped clock alone would have done
        with pytest.raises(EventError):
            parse(sent.value, sent.key, None, pipeline, utc_now() + step)
