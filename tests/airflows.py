"""A stand-in for Airflow's API server: tokens that end, lists in pages, a mapped task with many shards.

A real one takes ten seconds a start, and a token of it ends no sooner than half a minute after it was given.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

TOKEN_SECONDS = 20
REQUEST_SECONDS = 7
PASSWORD = "right"


class Airflow(ThreadingHTTPServer):
    """Answers as Airflow 3.3 does, by a clock of its own that moves with each request.

    Attributes:
        page_limit: its `maximum_page_limit`.
        tasks: states of the mapped task `score`, by map index.
        started: what was asked to begin.
        other: what is answered to each login in its stead.
        after_request: called with the number of requests so far, before each is answered.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.page_limit, self.clock, self.logins = 100, 0, 0
        self.tokens: dict[str, int] = {}
        self.tasks: list[str] = []
        self.dags: list[str] = []
        self.started: list[Any] = []
        self.password = PASSWORD
        self.other: bytes | None = None
        self.after_request: Callable[[int], None] = lambda count: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        airflow = cast(Airflow, self.server)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if airflow.other is not None:
            self._send(200, airflow.other)
        elif self.path == "/auth/token":
            if body["password"] != airflow.password:
                self._answer(401, {"detail": "Invalid credentials"})
                return
            airflow.logins += 1
            airflow.tokens[f"token-{airflow.logins}"] = airflow.clock + TOKEN_SECONDS
            self._answer(201, {"access_token": f"token-{airflow.logins}"})
        elif self._refused():
            return
        elif self.path.endswith("/taskInstances/list"):
            self._page("task_instances", self._instances(), body["page_limit"], body["page_offset"])
        else:
            airflow.started.append(body)
            self._answer(200, {"id": 7, "dag_run_id": "run"})

    def do_GET(self) -> None:
        airflow = cast(Airflow, self.server)
        if self._refused():
            return
        path, asked = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        limit, offset = int(asked.get("limit", ["50"])[0]), int(asked.get("offset", ["0"])[0])
        if path.endswith("/taskInstances"):
            self._page("task_instances", self._instances(), limit, offset)
        elif path.endswith("/dags"):
            self._page("dags", [{"dag_id": dag, "is_paused": False} for dag in airflow.dags], limit, offset)
        elif path.endswith("/dags/unknown"):
            self._answer(404, {"detail": "not found"})
        elif "/logs/" in path:
            failed = {"error_detail": [{"exc_type": "DataError", "exc_value": "shard 131 has no rows"}]}
            self._answer(200, {"content": [failed]})
        else:
            self._answer(200, {"state": "failed", "completed_at": None, "is_paused": False})

    def _refused(self) -> bool:
        airflow = cast(Airflow, self.server)
        airflow.clock += REQUEST_SECONDS
        airflow.after_request(airflow.clock // REQUEST_SECONDS)
        ends = airflow.tokens.get(self.headers["authorization"].removeprefix("Bearer "))
        if ends is None:
            self._answer(403, {"detail": "Invalid JWT token"})
        elif ends <= airflow.clock:
            self._answer(401, {"detail": "Token Expired"})
        return ends is None or ends <= airflow.clock

    def _instances(self) -> list[dict[str, Any]]:
        states = cast(Airflow, self.server).tasks
        return [
            {"dag_id": "weather", "task_id": "score", "map_index": at, "rendered_map_index": None, "state": state,
             "try_number": 1} for at, state in enumerate(states)
        ]  # fmt: skip

    def _page(self, name: str, entries: list[dict[str, Any]], limit: int, offset: int) -> None:
        limit = min(limit, cast(Airflow, self.server).page_limit)
        self._answer(200, {name: entries[offset : offset + limit], "total_entries": len(entries)})

    def _answer(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Airflow]:
    """A server that answers inside."""
    with Airflow() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
