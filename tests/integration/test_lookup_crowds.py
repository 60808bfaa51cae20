"""A busy process calls no store dead, and a store's restart refuses nobody once it is back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from pathlib import Path

import httpx
import psycopg
import pytest

from almanac.clock import utc_now
from almanac.stack.servers import stop
from serving_cache.postgres import PostgresStore
from tests.chaos.servers import Harmed, harmed_postgres
from tests.crowds import Said, crowd
from tests.generations import grid_pipeline, migrated, new_name, published_generation
from tests.integration.test_lookup_failures import CELL, backends, drilled
from tests.lookups import declared, environment, eventually, running_lookup, unused_port

CALLERS = 200
REQUESTS = 15  # of each caller
CROWD_SECONDS_MAX = 60


def test_200_callers_are_all_answered_and_call_no_store_dead(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with drilled(postgres_url, tmp_path) as drill:
        eventually(drill.client, drill.path, "redis")
        name = drill.grid.name

        def paths(number: int) -> Iterator[str]:
            for turn in range(REQUESTS):
                cell = (number * REQUESTS + turn) % 64
                strict = "?max_stale=60" if number % 4 == 0 else ""  # which no prediction meets
                yield f"/v1/{name}/entities/{cell}{strict}"

        answers = crowd(str(drill.client.base_url), paths, CALLERS)
        assert len(answers) == CALLERS * REQUESTS
        for said in answers:
            if "max_stale" in said.path:
                assert (said.status, "older than max_stale" in said.body["detail"]) == (503, True)
                assert "redis" not in said.body["detail"], said.body
                assert "postgres" not in said.body["detail"], said.body
            else:
                found = said.body
                assert (said.status, found["reason"], found["place"]) == (200, None, "redis"), found
                assert found["outputs"]["t2m_6h"]["value"] == 281.5
        metrics = drill.client.get("/metrics").text
        assert f'almanac_lookup_place_failures_total{{pipeline="{name}"' not in metrics
        assert drill.client.get("/readyz").json()["places"] == {"redis": "ok", "postgres": "ok"}
    assert "WARNING" not in (tmp_path / "lookup.log").read_text()


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    with harmed_postgres(tmp_path_factory.mktemp("restarted") / "postgres-server") as found:
        yield found


@pytest.fixture
def on_postgres(own_postgres: Harmed, tmp_path: Path) -> Iterator[tuple[httpx.Client, str]]:
    """A lookup without Redis, over a Postgres of its own, and a path that it answers."""
    grid = migrated(own_postgres.url, grid_pipeline(new_name()))
    with PostgresStore(own_postgres.url) as store:
        published_generation(store, grid, 281.5, utc_now() - timedelta(minutes=20))
    file = declared(tmp_path, f'grid = grid_pipeline("{grid.name}")')
    redis = f"redis://127.0.0.1:{unused_port()}"
    settings = environment(tmp_path, file, postgres=own_postgres.url, redis=redis)
    with running_lookup(settings, tmp_path / "lookup.log") as client:
        yield client, f"/v1/{grid.name}/entities/{CELL}"


def together(client: httpx.Client, path: str, callers: int = 16) -> list[httpx.Response]:
    """So many lookups at once, on connections of their own."""
    with ThreadPoolExecutor(callers) as threads:
        return list(
            threads.map(lambda _: httpx.get(f"{client.base_url}{path}", timeout=10, trust_env=False), range(callers))
        )


@pytest.mark.parametrize("way", ["killed", "stopped", "its connections ended"])
def test_the_first_lookups_after_a_restart_are_answered(
    own_postgres: Harmed, on_postgres: tuple[httpx.Client, str], way: str
) -> None:
    client, path = on_postgres
    assert {each.status_code for each in together(client, path)} == {200}
    with psycopg.connect(own_postgres.url, autocommit=True) as admin:
        assert backends(admin), "the lookup has no connection that could go stale"
        if way == "its connections ended":
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'almanac lookup'"
            )
    if way == "killed":
        with own_postgres.away():
            pass
    elif way == "stopped":
        assert own_postgres.process is not None
        stop(own_postgres.process, own_postgres.server.stop_signal)
        own_postgres.start()
    answers = together(client, path)
    assert [each.status_code for each in answers] == [200] * len(answers), [each.text for each in answers]
    assert client.get("/readyz").json()["places"]["postgres"] == "ok"


def test_two_restarts_under_200_callers_leave_the_record_answering(
    own_postgres: Harmed, on_postgres: tuple[httpx.Client, str]
) -> None:
    client, path = on_postgres
    under_way, done = threading.Event(), threading.Event()
    said: list[Said] = []

    def paths(number: int) -> Iterator[str]:
        for turn in count():
            if done.is_set():
                return
            if turn:
                under_way.set()
            cell = (number + turn) % 64
            yield path.rsplit("/", 1)[0] + f"/{cell}"

    callers = threading.Thread(target=lambda: said.extend(crowd(str(client.base_url), paths, CALLERS)))
    callers.start()
    try:
        assert under_way.wait(CROWD_SECONDS_MAX), "no caller has an answer"
        for _ in range(2):
            eventually(client, path, "postgres")
            with own_postgres.away():
                pass
    finally:
        done.set()
        callers.join()
    assert {each.status for each in said} <= {200, 503}
    assert eventually(client, path, "postgres")["epoch"] == 1
    assert client.get("/readyz").json()["places"]["postgres"] == "ok"
    answers = together(client, path)
    assert [each.status_code for each in answers] == [200] * len(answers), [each.text for each in answers]
