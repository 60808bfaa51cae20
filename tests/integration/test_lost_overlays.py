"""Overlays that Redis evicted, or that somebody deleted: missed by the lookup, and brought back by the reconciler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from almanac import metrics
from almanac.clock import utc_now
from almanac.pipeline import Pipeline
from almanac.settings import load_settings
from almanac.stack import health, status
from almanac.stack import redis as stack_redis
from almanac.stack.places import Places
from almanac.stack.servers import running_redis
from almanac.steady import SystemClock
from serving_cache import layout
from serving_cache.lookup.postgres_place import PostgresPlace
from serving_cache.lookup.redis_place import RedisPlace
from serving_cache.lookup.service import Service
from serving_cache.overlaid import SLICES, slice_key, slice_of
from serving_cache.postgres import PostgresStore
from serving_cache.reconciler import PROCESS, SLICES_PER_STEP, Reconciler
from serving_cache.redis import RedisStore
from tests.generations import (
    bucket_pipeline,
    grid_pipeline,
    list_pipeline,
    migrated,
    overlay_of,
    published_generation,
)

CELL = "17"
OTHERS = ("3", "5", "9")


@dataclass(frozen=True)
class Stores:
    """A pipeline with a generation and overlays of some cells, newer than it, in both stores."""

    grid: Pipeline
    postgres: PostgresStore
    cache: RedisStore
    raw: redis.Redis
    urls: tuple[str, str]
    reconciler: Reconciler

    def key(self, cell: str = CELL) -> str:
        return layout.overlay_key(self.grid.name, cell)

    def asked(self, cell: str = CELL) -> tuple[str, str, tuple[str, ...]]:
        """Source and place of what a lookup answers, and what it says about the places."""

        async def answered() -> tuple[str, str, tuple[str, ...]]:
            places = [RedisPlace(self.urls[0], limit_seconds=5), PostgresPlace(self.urls[1], limit_seconds=5)]
            service = Service(places, fresh_for=None, clock=SystemClock())
            try:
                outcome = await service.lookup(self.grid, [int(cell)], None)
                return (
                    outcome.settled(int(cell)).candidate.source.value,
                    outcome.place,
                    (*outcome.reasons, *outcome.doubts),
                )  # type: ignore[union-attr]
            finally:
                await service.close()

        return asyncio.run(answered())


@pytest.fixture
def stores(postgres_url: str, tmp_path: Path) -> Iterator[Stores]:
    grid = migrated(postgres_url, grid_pipeline())
    (tmp_path / "redis").mkdir()
    with ExitStack() as stack:
        redis_url = stack.enter_context(running_redis(tmp_path / "redis"))
        postgres = stack.enter_context(PostgresStore(postgres_url))
        cache = stack.enter_context(RedisStore(redis_url))
        raw = stack.enter_context(redis.Redis.from_url(redis_url))
        published_generation(postgres, grid, 281.5, utc_now() - timedelta(minutes=20))
        overlays = [overlay_of(cell, utc_now() - timedelta(minutes=1), at) for at, cell in enumerate((CELL, *OTHERS))]
        for store in (postgres, cache):
            store.put_overlays(grid.name, overlays)
        reconciler = Reconciler([grid], postgres, cache)
        reconciler.step(0.0)
        yield Stores(grid, postgres, cache, raw, (redis_url, postgres_url), reconciler)


def once_round(stores: Stores) -> None:
    """As many steps as it takes to look at every slice, before the next proof is due."""
    for step in range(SLICES // SLICES_PER_STEP):
        stores.reconciler.step(1.0 + step / SLICES)


HARMS: dict[str, Callable[[Stores], object]] = {
    "deleted": lambda s: s.raw.delete(s.key()),
    "expired": lambda s: s.raw.pexpire(s.key(), 0),
    "unlinked with others": lambda s: s.raw.unlink(s.key(), *map(s.key, OTHERS)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_overlay_that_redis_lost_is_read_from_postgres_and_brought_back(stores: Stores, harm: str) -> None:
    assert stores.asked() == ("stream", "redis", ())
    HARMS[harm](stores)
    assert stores.asked() == ("stream", "postgres", ("redis lost an overlay of this entity",))
    once_round(stores)
    assert stores.asked() == ("stream", "redis", ())
    assert stores.raw.exists(*map(stores.key, (CELL, *OTHERS))) == 4


def test_a_field_of_an_overlay_is_missed_as_the_whole(stores: Stores) -> None:
    stores.raw.hdel(stores.key(), "weather-v1")
    assert stores.asked()[:2] == ("stream", "postgres")


def test_a_slice_that_redis_lost_is_noticed_and_filled_again(stores: Stores) -> None:
    own = slice_key(stores.grid.name, slice_of(CELL))
    stores.raw.delete(own, stores.key())
    assert stores.asked() == ("stream", "postgres", ("redis may have lost overlays",))
    stores.cache.put_overlays(stores.grid.name, [overlay_of("99", utc_now(), 1)])  # as a sink would, meanwhile
    assert stores.asked()[:2] == ("stream", "postgres")
    stores.reconciler.step(1.0)
    assert stores.asked() == ("stream", "redis", ())


def test_a_slice_that_is_lost_while_it_is_filled_is_not_called_whole(stores: Stores) -> None:
    name, number = stores.grid.name, slice_of(CELL)
    stores.raw.delete(slice_key(name, number))
    word = stores.cache.begin_slices(name, [number])
    stores.raw.delete(slice_key(name, number))
    stores.cache.put_overlays(name, [overlay_of(CELL, utc_now(), 5)])
    assert stores.cache.seal_slices(name, [number], word) == 0
    assert stores.cache.unsealed_slices(name) == [number]


def test_without_postgres_what_redis_still_has_is_answered_with_the_reason(stores: Stores) -> None:
    stores.raw.delete(stores.key())
    nowhere = Stores(
        stores.grid, stores.postgres, stores.cache, stores.raw,
        (stores.urls[0], "postgresql://u:p@127.0.0.1:1/d"), stores.reconciler,
    )  # fmt: skip
    source, place, reasons = nowhere.asked()
    assert (source, place) == ("batch", "redis")
    assert "redis lost an overlay of this entity" in reasons


def test_an_overlay_that_would_change_nothing_costs_no_question_to_postgres(stores: Stores) -> None:
    published_generation(stores.postgres, stores.grid, 283.0, utc_now())
    stores.reconciler.step(1.0)
    stores.raw.delete(stores.key())
    assert stores.asked() == ("batch", "redis", ())


def test_a_note_without_an_overlay_in_postgres_goes(stores: Stores) -> None:
    stores.cache.put_overlays(stores.grid.name, [overlay_of("40", utc_now(), 1)])  # Postgres never had it
    stores.raw.delete(stores.key("40"))
    once_round(stores)
    assert stores.asked("40") == ("batch", "redis", ())


def test_a_redis_that_evicts_answers_nothing_older_than_postgres_does(stores: Stores) -> None:
    """Real eviction: whatever goes, the stream's prediction is the answer."""
    stores.raw.config_set("maxmemory-policy", "allkeys-random")
    stores.raw.config_set("maxmemory", stores.raw.info("memory")["used_memory"] + 100_000)
    for number in range(600):
        stores.raw.set(f"ballast:{number}", b"x" * 1_000)
    assert stores.raw.info("stats")["evicted_keys"] > 100
    assert {stores.asked(cell)[0] for cell in (CELL, *OTHERS)} == {"stream"}


def test_a_redis_that_may_evict_is_said(stores: Stores, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert stack_redis.may_evict(stores.urls[0]) is None
    stores.raw.config_set("maxmemory-policy", "volatile-lru")
    for second in (1.0, 2.0):
        stores.reconciler.step(second)
    said = [record.message for record in caplog.records if "maxmemory-policy is volatile-lru" in record.message]
    assert len(said) == 1
    assert metrics.REDIS_MAY_EVICT.labels(PROCESS)._value.get() == 1
    assert "maxmemory-policy is volatile-lru, so it may evict" in str(stack_redis.may_evict(stores.urls[0]))
    stores.raw.config_set("maxmemory-policy", "noeviction")
    stores.reconciler.step(3.0)
    assert metrics.REDIS_MAY_EVICT.labels(PROCESS)._value.get() == 0
    assert any("keeps what it was given" in record.message for record in caplog.records)


def test_the_status_of_the_stack_warns_of_a_redis_that_may_evict(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = load_settings(state_dir=tmp_path, redis_url=stores.urls[0])

    def survey(*asked: object) -> list[health.ProgramStatus]:
        row: dict[str, Any] = {"state": "running", "pid": 1, "since": None, "restarts": 0, "address": None}
        return [health.ProgramStatus(name="redis", why_not=None, warns_of=health.warns_of("redis", known), **row)]

    monkeypatch.setattr(health, "survey", survey)
    monkeypatch.setattr(health, "alerts", lambda settings: [])
    monkeypatch.setattr(status, "Supervisor", lambda places: SimpleNamespace(alive=lambda: True))
    for policy, warned in (("noeviction", False), ("allkeys-lru", True), ("volatile-ttl", True), ("noeviction", False)):
        stores.raw.config_set("maxmemory-policy", policy)
        assert status.report(Places.of(tmp_path), as_json=False)  # it is healthy all the same
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
        assert [f"WARNING redis: maxmemory-policy is {policy}, so it may evict" in line for line in lines] == [
            True
        ] * warned


def test_an_overlay_that_is_put_again_is_kept_on(stores: Stores) -> None:
    moment: datetime = utc_now() - timedelta(minutes=1)
    stores.cache.put_overlays(stores.grid.name, [overlay_of("8", moment, 1)], timedelta(seconds=1_000))
    stores.raw.expire(stores.key("8"), 10)
    assert stores.cache.put_overlays(stores.grid.name, [overlay_of("8", moment, 1)], timedelta(seconds=1_000)) == 0
    assert stores.raw.ttl(stores.key("8")) > 900  # type: ignore[operator]


@pytest.mark.parametrize("made", [bucket_pipeline, list_pipeline])
def test_the_record_tells_who_has_predictions_of_its_own_from_who_is_new(
    postgres_url: str, store: PostgresStore, made: Callable[[], Pipeline]
) -> None:
    users = migrated(postgres_url, made())
    assert store.predicted(users, ["user-1é"]) == set()  # nothing is published
    published_generation(store, users, 1.0)
    store.put_overlays(users.name, [overlay_of("in the stream", utc_now(), 1)])
    asked = ["user-1é", "user-2é", "in the stream", "a stranger", "user-1é'); --"]
    assert store.predicted(users, asked) == {"user-1é", "user-2é", "in the stream"}
    grid = migrated(postgres_url, grid_pipeline())
    published_generation(store, grid, 1.0)
    assert store.predicted(grid, [17, 3]) == {17, 3}
