"""Airflow's API goes away while a run is followed: the run is followed on when it is back, and not for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from almanac import airflow_api
from almanac.airflow_api import AirflowApi
from almanac.errors import Unavailable
from almanac.settings import Settings, load_settings
from tests.lookups import unused_port

AWAY_SECONDS = 1.0


class _Airflow(BaseHTTPRequestHandler):
    """Answers as Airflow's API does about a run that is over. The real one takes ten seconds a start."""

    def do_POST(self) -> None:
        self._answer(b'{"access_token": "t"}')

    def do_GET(self) -> None:
        self._answer(
            b'{"task_instances": [], "total_entries": 0}'
            if self.path.split("?")[0].endswith("s")
            else b'{"state": "success"}'
        )

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def answering(port: int, after_seconds: float) -> Iterator[None]:
    """An API server that begins to answer only after a while."""
    begun: list[ThreadingHTTPServer] = []

    def begin() -> None:
        begun.append(ThreadingHTTPServer(("127.0.0.1", port), _Airflow))
        begun[0].serve_forever(0.05)

    timer = threading.Timer(after_seconds, begin)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if begun:
            begun[0].shutdown()
            begun[0].server_close()
        timer.join()


@pytest.fixture
def at(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, airflow_url=f"http://127.0.0.1:{unused_port()}", airflow_password="none")


def port_of(found: Settings) -> int:
    return int(found.need("airflow_url").rpartition(":")[2])


def test_a_run_is_followed_on_when_the_api_is_back(at: Settings) -> None:
    with AirflowApi(at) as api, answering(port_of(at), AWAY_SECONDS):
        assert list(api.follow("weather", "run", timeout_seconds=60)) == ["success"]


def test_it_is_not_waited_for_for_ever(at: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "AWAY_SECONDS_MAX", 0.0)
    with AirflowApi(at) as api, pytest.raises(Unavailable, match=r"did not answer .* see `almanac status`"):
        list(api.follow("weather", "run", timeout_seconds=60))
