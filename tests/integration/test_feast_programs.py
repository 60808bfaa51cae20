"""Feast's command line, feature server and UI on both of our stores, beside Feast's own: the same words and answers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from click.testing import CliRunner
from feast import FeatureStore
from feast.cli.cli import cli

from almanac.stack.server import HOST, free_port
from features.packed.views import keys_of
from features.store import redis_connection
from tests.feast_repository import ASKED, BEGAN, HOURS, STORES, entity_rows, write_repository

pytestmark = pytest.mark.filterwarnings("ignore")  # whatever Feast's programs warn of in their own process

START_SECONDS_MAX = 60
POLL_SECONDS = 0.02
LATER = (BEGAN + timedelta(hours=HOURS)).isoformat()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[dict[str, Path]]:
    """Both repositories, applied and materialized by `feast`."""
    folder = tmp_path_factory.mktemp("programs")
    before = os.getcwd()
    try:
        made = {name: write_repository(folder, name, redis_connection(redis_url)) for name in STORES}
        for path in made.values():
            assert "driver_stats" in feast(path, "plan")
            assert "driver_stats" in feast(path, "apply")
            feast(path, "materialize", BEGAN.isoformat(), (BEGAN + timedelta(hours=2)).isoformat())
            feast(path, "materialize-incremental", (BEGAN + timedelta(hours=4)).isoformat())
        yield made
    finally:
        os.chdir(before)


def feast(repository: Path, *words: str) -> str:
    """What a command of Feast printed."""
    done = CliRunner().invoke(cli, ["-c", str(repository), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return str(done.output)


def both(repositories: dict[str, Path], *words: str) -> tuple[Any, Any]:
    """What a command printed as JSON, with ours and with Feast's stores."""
    found = [feast(path, *words) for path in repositories.values()]
    ours, feasts = (json.loads(text[text.index("[" if text.lstrip().startswith("[") else "{") :]) for text in found)
    return ours, feasts


@contextmanager
def serving(app: Any) -> Iterator[httpx.Client]:
    """One of Feast's servers on a port of its own; yields a client of it."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=port, log_level="error", lifespan="on"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    give_up_at = time.monotonic() + START_SECONDS_MAX
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended"
            assert time.monotonic() < give_up_at, "the server did not start"
            time.sleep(POLL_SECONDS)
        with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=START_SECONDS_MAX) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(START_SECONDS_MAX)


def test_the_command_line(repositories: dict[str, Path]) -> None:
    words = [word for name in ASKED for word in ("-f", name)]
    online = ("get-online-features", "-e", "driver_id=2", "-e", "driver_id=9", *words)
    ours, feasts = both(repositories, *online)
    assert ours == feasts
    assert (ours["trips"], ours["doubled"]) == ([204, None], [4.8, None])
    ours, feasts = both(repositories, "get-historical-features", "-d", entity_rows(), *words[:4])
    assert sorted(ours, key=str) == sorted(feasts, key=str)
    assert {row["trips"] for row in ours} == {100, 203, 305, None}
    for command in (("feature-views", "list"), ("feature-services", "list"), ("entities", "list")):
        assert feast(repositories["ours"], *command) == feast(repositories["feasts"], *command)


def test_the_feature_server(repositories: dict[str, Path]) -> None:
    from feast.feature_server import get_app

    asked = {"features": ASKED, "entities": {"driver_id": [1, 9]}}
    pushed = {"driver_id": [3], "rate": [7.5], "trips": [70], "event_timestamp": [LATER], "created": [LATER]}
    found: dict[str, list[Any]] = {}
    for name, path in repositories.items():
        with serving(get_app(FeatureStore(str(path)))) as client:
            answers = [client.post("/get-online-features", json=asked)]
            service = {"feature_service": "everything", "entities": {"driver_id": [1, 2]}, "full_feature_names": True}
            answers.append(client.post("/get-online-features", json=service))
            push = {"push_source_name": "driver_push", "df": pushed, "to": "online"}
            assert client.post("/push", json=push).status_code == 200
            answers.append(client.post("/get-online-features", json={**asked, "entities": {"driver_id": [3]}}))
            row = {**pushed, "driver_id": [9]}
            written = client.post("/write-to-online-store", json={"feature_view_name": "driver_stats", "df": row})
            assert written.status_code == 200, written.text
            answers.append(client.post("/get-online-features", json=asked))
            materialize = {"start_ts": BEGAN.isoformat(), "end_ts": LATER, "feature_views": ["driver_stats"]}
            assert client.post("/materialize", json=materialize).status_code == 200
            answers.append(client.post("/get-online-features", json=asked))
            assert client.get("/health").status_code == 200
        assert {answer.status_code for answer in answers} == {200}
        found[name] = [_plain(answer.json()) for answer in answers]
    assert found["ours"] == found["feasts"]
    assert found["ours"][2]["trips"] == [70]
    assert found["ours"][3]["trips"] == [104, 70]
    assert found["ours"][4]["trips"] == [105, 70]


def _plain(answer: dict[str, Any]) -> dict[str, list[Any]]:
    """Values by name."""
    names, results = answer["metadata"]["feature_names"], answer["results"]
    return {name: found["values"] for name, found in sorted(zip(names, results, strict=True), key=lambda pair: pair[0])}


def test_the_ui(repositories: dict[str, Path]) -> None:
    from feast.ui_server import get_app

    with ExitStack() as stack:
        pages: dict[str, list[Any]] = {}
        for name, path in repositories.items():
            store = FeatureStore(str(path))
            client = stack.enter_context(serving(get_app(store, store.project)))
            assert client.get("/health").status_code == 200
            assert "<html" in client.get("/").text
            views = client.get("/api/v1/feature_views", params={"project": store.project})
            assert views.status_code == 200, views.text
            found = views.json()["featureViews"]
            pages[name] = sorted(view["spec"]["name"] for view in found)
        assert pages["ours"] == pages["feasts"]
        assert "driver_stats" in pages["ours"]


def test_teardown_leaves_no_rows(repositories: dict[str, Path], redis_url: str) -> None:
    store = FeatureStore(str(repositories["ours"]))
    pattern = keys_of(store.project, store.get_feature_view("driver_stats")).pattern
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(match=pattern))
        feast(repositories["ours"], "teardown")
        assert not list(client.scan_iter(match=pattern))
