"""Redis follows Postgres: after a death in between, an outage, or a Redis that was emptied."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import redis

from almanac.clock import utc_now
from almanac.errors import Unavailable
from almanac.pipeline import Pipeline
from almanac.stack.redis import prepare
from almanac.stack.server import free_port
from almanac.stack.servers import running
from serving_cache import layout
from serving_cache.postgres import PostgresStore
from serving_cache.postgres_notices import Notices
from serving_cache.reconciler import PROOF_SECONDS, Reconciler
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import grid_pipeline, migrated, overlay_of, published_generation

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60


@pytest.fixture
def pipeline(store: PostgresStore, postgres_url: str) -> Pipeline:
    found = migrated(postgres_url, grid_pipeline())
    published_generation(store, found, 1.0)
    return found


def test_a_death_between_the_stores_is_repaired(pipeline: Pipeline, store: PostgresStore, cache: RedisStore) -> None:
    reconciler = Reconciler([pipeline], store, cache)
    assert reconciler.step(0.0)
    assert cache.pointer(pipeline.name) == store.pointer(pipeline.name)
    published_generation(store, pipeline, 2.0)  # and the publisher dies before Redis follows
    assert reconciler.step(1.0)
    assert cache.pointer(pipeline.name) == store.pointer(pipeline.name)
    store.rollback(pipeline.name, now=utc_now())
    assert reconciler.step(2.0)
    pointer = cache.pointer(pipeline.name)
    assert pointer is not None
    assert (pointer.epoch, pointer.generation.generation) == (3, 1)


@pytest.mark.parametrize("lost", ["everything", "pointer", "marker", "a block", "a manifest"])
def test_what_redis_lost_comes_back(
    lost: str, pipeline: Pipeline, store: PostgresStore, cache: RedisStore, raw: redis.Redis
) -> None:
    store.put_overlays(pipeline.name, [overlay_of("5", utc_now(), 1)])
    reconciler = Reconciler([pipeline], store, cache)
    reconciler.step(0.0)
    manifest = store.manifest(pipeline.name, 1)
    keys = {
        "everything": list(raw.scan_iter(match=layout.pointer_key(pipeline.name).removesuffix("pointer") + "*")),
        "pointer": [layout.pointer_key(pipeline.name)],
        "marker": [layout.marker_key(pipeline.name), layout.overlay_key(pipeline.name, "5")],
        "a block": [layout.block_key(pipeline.name, manifest[3].block_hash)],
        "a manifest": [layout.manifest_key(pipeline.name, 1)],
    }
    assert raw.delete(*keys[lost]) == len(keys[lost])
    noticed_at_once = lost in ("everything", "pointer", "marker")
    reconciler.step(1.0 if noticed_at_once else PROOF_SECONDS)
    assert cache.pointer(pipeline.name) == store.pointer(pipeline.name)
    assert cache.manifest(pipeline.name, 1) == manifest
    assert cache.missing_blocks(pipeline.name, 1, [entry.block_hash for entry in manifest.values()]) == []
    assert set(cache.overlays(pipeline.name, "5")) == {"weather-v1"}


def test_overlays_that_did_not_reach_redis_come_with_the_next_proof(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore
) -> None:
    reconciler = Reconciler([pipeline], store, cache)
    reconciler.step(0.0)
    now = utc_now()
    late = [
        overlay_of("5", now, 1),
        overlay_of("6", now - timedelta(days=2), 1),
        overlay_of("7", now, 1, model="weather-v9"),
    ]
    store.put_overlays(pipeline.name, late)
    reconciler.step(PROOF_SECONDS - 1)
    assert cache.overlays(pipeline.name, "5") == {}
    reconciler.step(PROOF_SECONDS)
    found = [set(cache.overlays(pipeline.name, entity)) for entity in "567"]
    assert found == [{"weather-v1"}, set(), {"weather-v9"}]  # a generation by v9 is to find its own when it comes


def test_redis_down_while_publishing_follows_when_it_returns(
    pipeline: Pipeline, store: PostgresStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="serving_cache.reconciler")
    server = prepare(tmp_path, free_port())
    with RedisStore(server.address) as cache:
        reconciler = Reconciler([pipeline], store, cache)
        with running(server, tmp_path / "log"):
            assert reconciler.step(0.0)
        published_generation(store, pipeline, 2.0)
        with pytest.raises(Unavailable):
            sync_redis(pipeline, store, cache)
        assert [reconciler.step(float(n)) for n in range(1, 4)] == [False] * 3
        pointer = store.pointer(pipeline.name)
        assert pointer is not None
        assert pointer.epoch == 2
        with running(server, tmp_path / "log"):
            assert reconciler.step(4.0)
            assert reconciler.step(5.0)
            assert cache.pointer(pipeline.name) == pointer
    states = [record.getMessage().partition(pipeline.name)[2] for record in caplog.records]
    assert [state[:12] for state in states] == [" in step at ", " waiting: Re", " in step at "]


def test_a_redis_that_is_ahead_is_left_and_named(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    from msgspec.structs import replace

    caplog.set_level(logging.INFO, logger="serving_cache.reconciler")
    pointer = store.pointer(pipeline.name)
    assert pointer is not None
    ahead = replace(pointer, epoch=99)
    cache.move_pointer(ahead, cache.mark(pipeline.name))
    assert Reconciler([pipeline], store, cache).step(0.0)
    assert cache.pointer(pipeline.name) == ahead
    assert "rebuild" in caplog.text


def test_an_unpublished_pipeline_is_no_error(store: PostgresStore, cache: RedisStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    assert Reconciler([pipeline], store, cache).step(0.0)
    assert cache.pointer(pipeline.name) is None


def test_a_move_is_heard_of_and_redis_follows(
    pipeline: Pipeline, store: PostgresStore, cache: RedisStore, people: psycopg.Connection, postgres_url: str
) -> None:
    reconciler = Reconciler([pipeline], store, cache)
    moves: list[Callable[[], object]] = [
        lambda: published_generation(store, pipeline, 2.0),
        lambda: store.rollback(pipeline.name, now=utc_now()),
    ]
    with Notices(postgres_url) as notices:
        assert notices.wait(PATIENCE_SECONDS)  # it has just begun to listen
        reconciler.step(0.0)
        for epoch, move in enumerate(moves, start=2):
            move()
            assert notices.wait(PATIENCE_SECONDS)
            reconciler.step(1.0)
            pointer = cache.pointer(pipeline.name)
            assert pointer is not None
            assert pointer.epoch == epoch
        people.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'almanac notices'"
        )
        assert notices.wait(PATIENCE_SECONDS)  # it broke
        assert notices.wait(PATIENCE_SECONDS)  # it listens again
        assert not notices.wait(0.0)
        store.clear_rollback(pipeline.name)
        published_generation(store, pipeline, 3.0)
        assert notices.wait(PATIENCE_SECONDS)


def test_without_a_postgres_time_passes_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with Notices("postgresql://127.0.0.1:1/almanac") as notices:
        assert [notices.wait(0.0) for _ in range(3)] == [False] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "127.0.0.1:1/almanac cannot tell of moves" in caplog.text


DECLARATION = """
from almanac.partitioning import Grid
from almanac.pipeline import Freshness, Pipeline, horizons, hours, minutes

declared = Pipeline(
    name="{name}", entity="cell_id", partitions=Grid(rows=8, cols=8, tile=2), outputs=horizons("t2m", hours=(1, 6)),
    features="weather_v1", model="weather@champion", schedule="0 * * * *",
    freshness=Freshness(fresh_for=minutes(90), usable_for=hours(24)),
)
"""


def wait_until(what: Callable[[], bool]) -> None:
    """Return once it holds; fail after `PATIENCE_SECONDS`."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < give_up_at, "it never held"
        time.sleep(0.05)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_process_repairs_redis_and_ends_when_told(
    end: signal.Signals,
    pipeline: Pipeline,
    store: PostgresStore,
    cache: RedisStore,
    tmp_path: Path,
    redis_url: str,
    postgres_url: str,
) -> None:
    declaration = tmp_path / "declared.py"
    declaration.write_text(DECLARATION.format(name=pipeline.name))
    environment = {
        **os.environ,
        "ALMANAC_POSTGRES_URL": postgres_url,
        "ALMANAC_REDIS_URL": redis_url,
        "ALMANAC_PIPELINES": str(declaration),
        "ALMANAC_STATE_DIR": str(tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "serving_cache.reconciler"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: cache.pointer(pipeline.name) == store.pointer(pipeline.name))
            published_generation(store, pipeline, 2.0)
            wait_until(lambda: cache.pointer(pipeline.name) == store.pointer(pipeline.name))
            cache.clear(pipeline.name)
            wait_until(lambda: cache.pointer(pipeline.name) == store.pointer(pipeline.name))
        finally:
            process.send_signal(end)
        said = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert said.count("reconciler stopped") == 1
    assert said.count("in step at epoch 2") == 1
