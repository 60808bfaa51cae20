"""The monitor on real servers: a late generation is noticed and told, whatever is down; batch stages are shown."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from almanac import metrics
from almanac.clock import HOUR, floor_hour, utc_now
from almanac.errors import GateError
from almanac.pipeline import Pipeline
from almanac.settings import load_settings
from almanac.stack import health
from almanac.stack.server import free_port
from jobs.stages import stage
from serving_cache.monitor import Monitor
from serving_cache.monitor_alerts import Alerts
from serving_cache.monitor_reading import Eyes
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.stage_times import StageTime, record
from serving_cache.sync import sync_redis
from tests.generations import grid_pipeline, migrated, published_generation, staged_generation, staged_parts, start_of
from tests.streams import eventually

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 90
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

DECLARATION = """
from almanac.partitioning import Grid
from almanac.pipeline import Freshness, Pipeline, horizons, hours, minutes

declared = Pipeline(
    name="{name}", entity="cell_id", partitions=Grid(rows=8, cols=8, tile=2), outputs=horizons("t2m", hours=(1, 6)),
    features="weather_v1", model="weather@champion", schedule="0 * * * *",
    freshness=Freshness(fresh_for=minutes(90), usable_for=hours(24)), coverage_min=0.75, generations_kept=2,
)
"""


@pytest.fixture
def pipeline(store: PostgresStore, postgres_url: str) -> Pipeline:
    found = migrated(postgres_url, grid_pipeline())
    return found


@pytest.fixture
def eyes(postgres_url: str, redis_url: str) -> Iterator[Eyes]:
    with closing(Eyes(postgres_url, redis_url)) as found:
        yield found


def monitor_of(pipeline: Pipeline, eyes: Eyes) -> tuple[Monitor, Alerts]:
    alerts = Alerts()
    return Monitor([pipeline], eyes, alerts, now=NOON, steady=time.monotonic()), alerts


def sample(name: str, **labels: str) -> float | None:
    """A metric's value in this process."""
    return metrics.REGISTRY.get_sample_value(name, labels)


def test_the_gauge_goes_to_late_when_no_generation_came_and_back(
    pipeline: Pipeline, store: PostgresStore, eyes: Eyes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="serving_cache.monitor_alerts")
    monitor, alerts = monitor_of(pipeline, eyes)
    late = {"name": "almanac_generation_late", "pipeline": pipeline.name}
    published_generation(store, pipeline, 1.0, NOON)
    assert monitor.step(NOON + 89 * MINUTE, time.monotonic())
    assert (sample(**late), alerts.lasting()) == (0, [])
    assert sample("almanac_generation_age_seconds", pipeline=pipeline.name) == 89 * 60
    for minutes in (91, 95):
        monitor.step(NOON + minutes * MINUTE, time.monotonic())
    assert sample(**late) == 1
    assert sample("almanac_generation_late_seconds", pipeline=pipeline.name) == 5 * 60
    (alert,) = alerts.lasting()
    assert alert.starts_at == NOON + 90 * MINUTE
    assert json.loads(alerts.page())["alerts"][0]["pipeline"] == pipeline.name
    staged_generation(store, pipeline, 2.0, NOON + 60 * MINUTE)  # staged is not current
    monitor.step(NOON + 96 * MINUTE, time.monotonic())
    assert sample(**late) == 1
    published_generation(store, pipeline, 3.0, NOON + 60 * MINUTE)
    monitor.step(NOON + 97 * MINUTE, time.monotonic())
    assert (sample(**late), alerts.lasting()) == (0, [])
    assert sample("almanac_generation_late_seconds", pipeline=pipeline.name) == 0
    said = [entry.getMessage().split(pipeline.name)[0] for entry in caplog.records]
    assert said == ["generation late pipeline=", "generation no longer late pipeline="]


def test_first_triggered_at_20_40_nothing_is_late_since_20_35(
    pipeline: Pipeline, store: PostgresStore, eyes: Eyes
) -> None:
    hourly = replace(pipeline, schedule="5 * * * *")
    first = NOON + 8 * HOUR + 40 * MINUTE
    start = replace(start_of(hourly, "by hand", NOON + 8 * HOUR), as_of=NOON + 8 * HOUR)
    attempt = store.begin_generation(hourly, start, now=first)
    store.stage(attempt, staged_parts(hourly, 1.0, NOON + 8 * HOUR))
    store.publish(attempt, hourly, now=first)
    alerts = Alerts()
    monitor = Monitor([hourly], eyes, alerts, now=first - 2 * MINUTE, steady=time.monotonic())
    again = Monitor([hourly], eyes, alerts, now=first + 30 * MINUTE, steady=time.monotonic())
    for monitored in (monitor, again):
        monitored.step(first + 54 * MINUTE, time.monotonic())
        assert alerts.lasting() == []
        monitored.step(first + 56 * MINUTE, time.monotonic())
        assert [alert.starts_at for alert in alerts.lasting()] == [first + 55 * MINUTE]
        alerts.set(hourly.name, None, "", first)


def test_what_a_look_shows(pipeline: Pipeline, store: PostgresStore, eyes: Eyes, postgres_url: str) -> None:
    name = pipeline.name
    monitor, _ = monitor_of(pipeline, eyes)
    published_generation(store, pipeline, 1.0, NOON)
    attempt = staged_generation(store, pipeline, 2.0, NOON + 60 * MINUTE)
    store.quarantine(attempt, 3, "a cloud of ash")
    monitor.step(NOON, time.monotonic())
    assert sample("almanac_generation_epoch", pipeline=name) == 1
    assert sample("almanac_generation_rows", pipeline=name) == 64
    assert sample("almanac_generation_coverage", pipeline=name) == 1
    assert sample("almanac_generations", pipeline=name, state="current") == 1
    assert sample("almanac_generations", pipeline=name, state="staged") == 1
    assert sample("almanac_partitions", pipeline=name, state="staged") == 15
    assert sample("almanac_partitions", pipeline=name, state="quarantined") == 1
    assert sample("almanac_rows_scored_total", pipeline=name) == 0
    found = StageTime(
        pipeline=name, generation=attempt.generation, stage="score", shard=0, started_at=NOON, seconds=2.0,
        partitions=15, rows=60, unchanged=50, outcome="done",
    )  # fmt: skip
    for _ in range(2):
        record(postgres_url, found, now=utc_now())
    for _ in range(2):  # what was seen counts once
        monitor.step(NOON, time.monotonic())
    assert sample("almanac_rows_scored_total", pipeline=name) == 20
    assert sample("almanac_rows_unchanged_total", pipeline=name) == 100
    assert sample("almanac_stage_seconds_count", pipeline=name, stage="score", outcome="done") == 2
    assert sample("almanac_run_stage_seconds", pipeline=name, stage="score") == 4
    assert sample("almanac_run_stage_seconds", pipeline=name, stage="publish") == 0


def test_with_postgres_away_redis_tells_and_an_empty_redis_tells_nothing(
    pipeline: Pipeline, store: PostgresStore, redis_url: str
) -> None:
    nobody = f"postgresql://u:p@127.0.0.1:{free_port()}/almanac"
    with closing(Eyes(nobody, redis_url)) as eyes, RedisStore(redis_url) as cache:
        monitor, alerts = monitor_of(pipeline, eyes)
        assert not monitor.step(NOON + 600 * MINUTE, time.monotonic())
        assert alerts.lasting() == []  # nothing is known, so nothing is said
        published_generation(store, pipeline, 1.0, NOON)
        sync_redis(pipeline, store, cache)
        assert monitor.step(NOON + 80 * MINUTE, time.monotonic())
        assert alerts.lasting() == []
        assert monitor.step(NOON + 91 * MINUTE, time.monotonic())
        assert [alert.pipeline for alert in alerts.lasting()] == [pipeline.name]
        cache.clear(pipeline.name)
        assert not monitor.step(NOON + 92 * MINUTE, time.monotonic())
        assert "the current one is for 2026-03-01T12:00:00Z" in alerts.lasting()[0].reason


def test_a_stage_is_recorded_however_it_ends_and_a_lost_record_fails_nothing(
    pipeline: Pipeline, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = load_settings(postgres_url=postgres_url)
    with stage("score", pipeline.name, here, generation=5, shard=2) as done, done.step("features"):
        done.rows, done.partitions = 40, 2
    with pytest.raises(GateError), stage("gate_features", pipeline.name, here, generation=5):
        raise GateError("half of it\nis missing")
    with PostgresStore(postgres_url) as store:
        scored, gated = store.stage_times(pipeline.name, 5)
        assert store.stage_times(pipeline.name, 6) == []
    assert (scored.stage, scored.shard, scored.rows, scored.outcome) == ("score", 2, 40, "done")
    assert set(scored.steps) == {"features"}
    assert (gated.outcome, gated.reason) == ("GateError", "half of it is missing")
    nobody = load_settings(postgres_url=f"postgresql://u:p@127.0.0.1:{free_port()}/almanac")
    with stage("publish", pipeline.name, nobody, generation=5):
        pass
    assert "the time of stage publish" in caplog.text


class Receiver:
    """A webhook's other end; refuses its first `failures` calls."""

    def __init__(self, failures: int) -> None:
        self.bodies: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                nonlocal failures
                body = self.rfile.read(int(self.headers["Content-Length"]))
                failures -= 1
                self.send_response(503 if failures >= 0 else 200)
                self.end_headers()
                if failures < 0:
                    receiver.bodies.append(json.loads(body))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Metric and pipeline to value, as Prometheus would read it; empty while nobody answers."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.TransportError:
        return {}
    return {
        (found.name, found.labels.get("pipeline", "")): found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
    }


def test_the_processes_show_metrics_and_tell_the_webhook(
    pipeline: Pipeline, store: PostgresStore, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    declaration = tmp_path / "declared.py"
    declaration.write_text(DECLARATION.format(name=pipeline.name))
    hour = floor_hour(utc_now())
    published_generation(store, pipeline, 1.0, hour - timedelta(hours=5))
    receiver = Receiver(failures=1)
    ports = {"monitor": free_port(), "reconciler": free_port()}
    started: dict[str, subprocess.Popen[str]] = {}
    for name, port in ports.items():
        environment = {
            **os.environ, "ALMANAC_POSTGRES_URL": postgres_url, "ALMANAC_REDIS_URL": redis_url,
            "ALMANAC_PIPELINES": str(declaration), "ALMANAC_STATE_DIR": str(tmp_path),
            "ALMANAC_METRICS_PORT": str(port), "ALMANAC_LOG_FORMAT": "json",
            "ALMANAC_ALERT_WEBHOOK_URL": receiver.url,
        }  # fmt: skip
        started[name] = subprocess.Popen(
            [sys.executable, "-m", f"serving_cache.{name}"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
    monitor, reconciler = ports["monitor"], ports["reconciler"]
    late = ("almanac_generation_late", pipeline.name)
    try:
        eventually(lambda: scraped(monitor).get(late) == 1)
        eventually(lambda: scraped(reconciler).get(("almanac_reconciler_in_step", pipeline.name)) == 1)
        eventually(lambda: [body["status"] for body in receiver.bodies] == ["firing"])
        assert httpx.get(f"http://127.0.0.1:{monitor}/readyz").text == "ready\n"
        assert httpx.get(f"http://127.0.0.1:{reconciler}/readyz").status_code == 200
        (shown,) = httpx.get(f"http://127.0.0.1:{monitor}/alerts").json()["alerts"]
        assert shown["pipeline"] == pipeline.name
        here = load_settings(monitor_url=f"http://127.0.0.1:{monitor}")
        assert [(alert["name"], alert["pipeline"]) for alert in health.alerts(here)] == [(shown["name"], pipeline.name)]
        assert health.ask("monitor", here, None) is None
        published_generation(store, pipeline, 2.0, hour)
        eventually(lambda: scraped(monitor).get(late) == 0)
        eventually(lambda: [body["status"] for body in receiver.bodies] == ["firing", "resolved"])
        assert scraped(monitor)["almanac_generation_epoch", pipeline.name] == 2
        assert health.alerts(here) == []
    finally:
        said = {}
        for name, process in started.items():
            process.send_signal(signal.SIGTERM)
            said[name] = process.communicate(timeout=PATIENCE_SECONDS)[1]
        receiver.close()
    assert [process.returncode for process in started.values()] == [0, 0], said
    labels = {"alertname": "AlmanacGenerationLate", "pipeline": pipeline.name, "severity": "critical"}
    assert receiver.bodies[0]["commonLabels"] == labels
    lines = [json.loads(line) for line in said["monitor"].splitlines()]
    assert [line["level"] for line in lines if "late" in line["message"]] == ["warning", "info"]
    assert {line["process"] for line in lines} == {"monitor"}
    assert "secret" not in said["monitor"]
