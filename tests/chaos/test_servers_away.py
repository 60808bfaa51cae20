"""Postgres and Redis are killed in the middle of every batch step and return: a retry later, the run is whole."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from almanac.blocks import decode
from almanac.errors import Unavailable
from almanac.settings import Settings, load_settings
from features.materialize.run import materialize
from features.store import preload
from jobs.check import gate_features, gate_predictions
from jobs.plan import plan
from jobs.publish import clean_up, publish
from jobs.score import score_shard
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.acceptance.tiny_weather import weather
from tests.chaos.servers import Harmed, harmed_postgres, harmed_redis
from tests.streams import register_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
HOUR = NOW.replace(minute=0)
MOMENT_SECONDS_MAX = 0.4
TRY_PAUSE_SECONDS = 0.3
TRIES_MAX = 100
THREAD_SECONDS_MAX = 60


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Harmed]]:
    folder = tmp_path_factory.mktemp("servers")
    with harmed_postgres(folder / "postgres-server") as postgres, harmed_redis(folder / "redis-server") as redis:
        yield {"postgres": postgres, "redis": redis}


@pytest.fixture(scope="module")
def at(servers: dict[str, Harmed], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    found = load_settings(
        state_dir=tmp_path_factory.mktemp("state"),
        postgres_url=servers["postgres"].url,
        redis_url=servers["redis"].url,
    )
    preload()
    migrate(servers["postgres"].url, [weather])
    register_model(found, weather, 0.0)
    return found


class Drill:
    """Steps that are tried again as Airflow would: after `Unavailable`, and after nothing else."""

    def __init__(self, server: Harmed, chance: random.Random) -> None:
        self._server, self._chance = server, chance
        self.refusals: list[str] = []

    def __call__(self, step: Callable[[], Any]) -> Any:
        """Run a step while the server is killed at a random moment and started again."""
        harm = threading.Thread(target=self._harm)
        harm.start()
        try:
            for _ in range(TRIES_MAX):
                try:
                    return step()
                except Unavailable as error:
                    self.refusals.append(str(error))
                    time.sleep(TRY_PAUSE_SECONDS)
            raise AssertionError(f"not within {TRIES_MAX} tries: {self.refusals[-1]}")
        finally:
            harm.join(THREAD_SECONDS_MAX)

    def _harm(self) -> None:
        time.sleep(self._chance.uniform(0, MOMENT_SECONDS_MAX))
        with self._server.away():
            time.sleep(self._chance.uniform(0, MOMENT_SECONDS_MAX))


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_server_may_go_in_the_middle_of_any_step(
    name: str, servers: dict[str, Harmed], at: Settings, tmp_path: Path
) -> None:
    seed = int(os.environ.get("ALMANAC_TEST_SEED", random.randrange(2**32)))
    print(f"ALMANAC_TEST_SEED={seed}")
    drill = Drill(servers[name], random.Random(seed))
    made = drill(lambda: plan(weather, at, run_key=name, cutoff=HOUR, now=NOW))
    report = drill(lambda: gate_features(weather, at, made))
    assert report.failing == {}
    drill(lambda: materialize(weather, at, made.moment))
    for shard in made.shards:
        drill(lambda: score_shard(weather, at, made, shard))  # noqa: B023 - called at once
    assert drill(lambda: gate_predictions(weather, at, made)).failing == {}
    published = drill(lambda: publish(weather, at, made, now=NOW))
    assert not drill(lambda: clean_up(weather, at, made))
    assert (published.coverage, published.rows) == (1.0, 99)
    with PostgresStore(servers["postgres"].url) as store, RedisStore(servers["redis"].url) as cache:
        sync_redis(weather, store, cache)  # what the reconciler does when Redis is back
        pointer = cache.pointer(weather.name)
        assert pointer == store.pointer(weather.name)
        assert pointer is not None
        assert pointer.generation.generation == made.generation
        manifest = cache.manifest(weather.name, made.generation)
        blocks = cache.blocks(weather.name, {entry.block_hash for entry in manifest.values()})
        keys = [int(key) for entry in manifest.values() for key in decode(blocks[entry.block_hash]).keys]
    assert sorted(keys) == list(range(99))
    for refusal in drill.refusals:
        assert len(refusal.splitlines()) == 1
        assert "did not answer" in refusal or "cannot be reached" in refusal, refusal
