"""The server of `/metrics`, and what importing the metrics costs."""

from __future__ import annotations

import ast
import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from almanac import metrics
from almanac.errors import AlmanacError, StackError, UsageError
from almanac.metrics import serve
from almanac.metrics_server import REQUESTS_AT_ONCE_MAX, MetricsServer, forget
from serving_cache.lookup.counting import Counts
from serving_cache.lookup.routes import Routes
from serving_cache.lookup.web import Request, Response, Router
from tests.generations import grid_pipeline

ROOT = Path(__file__).resolve().parents[2]


class Health:
    """What a process says of itself, changed by tests."""

    ready: str | None = None
    live: str | None = None


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def server(health: Health) -> Iterator[MetricsServer]:
    found = serve(
        0,
        process="tested",
        why_not_ready=lambda: health.ready,
        why_not_live=lambda: health.live,
        pages={"/alerts": lambda: b"{}"},
    )
    assert found is not None
    yield found
    found.close()


def get(server: MetricsServer, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{server.port}{path}", headers=headers)


def test_metrics_are_in_the_format_that_is_asked_for(server: MetricsServer) -> None:
    metrics.STREAM_EVENTS.labels("tested").inc(3)
    plain = get(server, "/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(plain.text)}
    assert [s.value for s in families["almanac_stream_events"].samples if s.labels == {"pipeline": "tested"}] == [3]
    assert "_created" not in plain.text
    asked = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert asked.headers["Content-Type"].startswith("application/openmetrics-text")
    assert asked.text.endswith("# EOF\n")


def test_live_and_ready_are_two_things(server: MetricsServer, health: Health) -> None:
    assert (get(server, "/livez").text, get(server, "/readyz").text) == ("live\n", "ready\n")
    health.ready = "waits for Redis"
    assert get(server, "/livez").status_code == 200
    assert (get(server, "/readyz").status_code, get(server, "/readyz").text) == (503, "waits for Redis\n")
    assert 'almanac_ready{process="tested"} 0.0' in get(server, "/metrics").text
    health.ready, health.live = None, "hangs"
    assert [get(server, path).status_code for path in ("/livez", "/readyz")] == [503, 503]
    health.live = None
    assert 'almanac_ready{process="tested"} 1.0' in get(server, "/metrics").text


def test_other_paths_say_which_there_are(server: MetricsServer) -> None:
    assert get(server, "/alerts?x=1").json() == {}
    answer = get(server, "/")
    assert (answer.status_code, answer.text) == (404, "there are /metrics, /livez, /readyz, /alerts\n")
    assert httpx.post(f"http://127.0.0.1:{server.port}/metrics").status_code == 501


def test_clients_that_say_nothing_take_only_the_room_there_is(server: MetricsServer) -> None:
    """More connections than the limit are closed at once, and when the silent ones leave there is room again."""
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(REQUESTS_AT_ONCE_MAX)]
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as beyond:
            beyond.settimeout(30)
            assert beyond.recv(1) == b""
        assert threading.active_count() - before <= REQUESTS_AT_ONCE_MAX
    finally:
        for connection in silent:
            connection.close()
    for _ in range(200):
        try:
            assert get(server, "/livez").status_code == 200
            break
        except httpx.TransportError:
            continue
    else:
        pytest.fail("no room was made")


def test_without_a_port_nothing_listens() -> None:
    assert serve(None, process="tested") is None


@pytest.mark.parametrize(
    ("port", "host", "kind", "says"),
    [
        (99_999, "127.0.0.1", UsageError, "99999 does not exist"),
        (0, "no.such.host.invalid", UsageError, "ALMANAC_METRICS_HOST"),
        (0, "192.0.2.1", UsageError, "ALMANAC_METRICS_HOST"),
    ],
)
def test_where_it_cannot_listen_is_one_line(port: int, host: str, kind: type[AlmanacError], says: str) -> None:
    with pytest.raises(kind, match=says):
        serve(port, process="tested", host=host)


def test_a_port_in_use_is_named(server: MetricsServer) -> None:
    with pytest.raises(StackError, match=f"port {server.port} on 127.0.0.1 is in use"):
        serve(server.port, process="tested")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_metrics_import_little_and_dag_parsing_imports_no_metrics() -> None:
    heavy = "{'pandas', 'numpy', 'feast', 'airflow', 'confluent_kafka', 'psycopg', 'redis'}"
    assert run(f"import sys, almanac.metrics; print({heavy} & set(sys.modules))") == "set()"
    parsed = ast.parse((ROOT / "dags" / "almanac_pipelines.py").read_text())
    ours = {"almanac", "jobs", "features", "serving_cache", "streaming", "pipelines"}
    imported = [
        node.module
        for node in parsed.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ours
    ]
    assert imported
    code = f"import sys, {', '.join(imported)}; from almanac.declarations import pipelines; pipelines(); "
    assert run(f"{code} print('almanac.metrics' in sys.modules, 'prometheus_client' in sys.modules)") == "False False"


def test_a_mistake_of_the_lookup_is_counted_as_a_500() -> None:
    async def broken(self: Routes, request: Request, name: str, **parameters: str) -> Response:
        raise RuntimeError("a mistake")

    async def asked() -> None:
        with patch.object(Routes, "point", broken):
            routes = Routes({"grid": grid_pipeline("grid")}, None, b"{}")
            routes.counts = Counts()
            handler, parameters = Router(routes.table()).find("GET", "/v1/grid/point")
            with pytest.raises(RuntimeError):
                await handler(Request(method="GET", path="", query_string="", headers={}, body=b""), **parameters)

    asyncio.run(asked())
    labels = {"pipeline": "grid", "interface": "rest", "status": "500"}
    assert metrics.REGISTRY.get_sample_value("almanac_lookup_errors_total", labels) == 1


@pytest.mark.parametrize("variable", ["", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_what_is_forgotten_counts_nothing_whatever_a_library_did_to_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("almanac_test_lag", "Of a partition", ["partition"], registry=registry)
    gauge.labels(0).set(7)
    gauge.labels(1).set(2)
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    forget(gauge, 0)
    shown = {sample.labels["partition"]: sample.value for family in registry.collect() for sample in family.samples}
    assert shown == ({"0": 0, "1": 2} if variable else {"1": 2})
