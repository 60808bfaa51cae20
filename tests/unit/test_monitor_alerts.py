"""Alerts and their webhook, against a receiver that refuses, fails for a while, or is not there."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from almanac import metrics
from almanac.clock import parse_time
from almanac.errors import UsageError
from almanac.stack.server import free_port
from serving_cache import monitor_alerts
from serving_cache.monitor_alerts import LATE, WEBHOOK_ATTEMPTS_MAX, Alert, Alerts, Kind, Webhook, webhook_body

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PATIENCE_SECONDS = 60


class Receiver:
    """Answers each call with the next status; the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.calls: list[dict[str, Any]] = []
        left = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.calls.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook?token=secret"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_alerts, "WEBHOOK_WAIT_SECONDS", 0.01)


def counted(pipeline: str, outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value(
        "almanac_alerts_sent_total", {"pipeline": pipeline, "outcome": outcome}
    ) or 0.0  # fmt: skip


def wait_until(what: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < give_up_at, "it never held"
        time.sleep(0.01)


def alert_of(pipeline: str) -> Alert:
    return Alert(name="AlmanacGenerationLate", pipeline=pipeline, reason="none came", starts_at=NOON)


@pytest.mark.parametrize(
    ("statuses", "outcome", "calls"),
    [
        ((200,), "sent", 1),
        ((503, 429, 200), "sent", 3),
        ((400,), "failed", 1),  # asking again would not help
        ((500,), "failed", WEBHOOK_ATTEMPTS_MAX),
    ],
)
def test_a_receiver_is_told_again_only_where_that_may_help(
    statuses: tuple[int, ...], outcome: str, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"p_{outcome}_{calls}"
    with closing(Receiver(*statuses)) as receiver, closing(Webhook(receiver.url)) as webhook:
        webhook.tell(alert_of(name))
        wait_until(lambda: counted(name, outcome) == 1)
        assert len(receiver.calls) == calls
    assert ("was not told" in caplog.text) is (outcome == "failed")
    assert "secret" not in caplog.text


def test_nobody_there_is_said_without_the_url(caplog: pytest.LogCaptureFixture) -> None:
    with closing(Webhook(f"http://user:secret@127.0.0.1:{free_port()}/secret")) as webhook:
        webhook.tell(alert_of("p_nobody"))
        wait_until(lambda: counted("p_nobody", "failed") == 1)
    assert "ConnectError" in caplog.text
    assert "secret" not in caplog.text


def test_more_than_can_wait_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_alerts, "WAITING_MAX", 1)
    hold = threading.Event()
    monkeypatch.setattr(Webhook, "_send", lambda self, alert, kind: hold.wait(PATIENCE_SECONDS))
    with closing(Webhook("http://127.0.0.1/")) as webhook:
        for _ in range(2):  # one is being sent and one waits, or the first still waits and there is no room
            webhook.tell(alert_of("p_many"))
        webhook.tell(alert_of("p_many"))
        assert counted("p_many", "failed") >= 1
        hold.set()
        wait_until(webhook._waiting.empty)  # before what it sends by is the real one again


@pytest.mark.parametrize("url", ["ftp://x/", "x", "http://", "http://[::1", "http://x:99999/"])
def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError, match="ALMANAC_ALERT_WEBHOOK_URL"):
        Webhook(url)


def test_the_body_is_alertmanagers() -> None:
    body = webhook_body(alert_of("weather"))
    assert body["version"] == "4"
    assert body["status"] == "firing"
    (entry,) = body["alerts"]
    assert entry["labels"] == {"alertname": "AlmanacGenerationLate", "pipeline": "weather", "severity": "critical"}
    assert parse_time(entry["startsAt"]) == NOON
    assert entry["endsAt"].startswith("0001-01-01")
    ended = webhook_body(Alert(name="A", pipeline="weather", reason="", starts_at=NOON, ends_at=NOON))
    assert (ended["status"], ended["alerts"][0]["endsAt"]) == ("resolved", "2026-03-01T12:00:00Z")
    other = webhook_body(alert_of("other"))
    assert entry["fingerprint"] != other["alerts"][0]["fingerprint"]


class Told(Webhook):
    """A webhook that only remembers; forces what a receiver cannot be asked for: time passing."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def tell(self, alert: Alert, kind: Kind = LATE) -> None:
        self.alerts.append(alert)


def test_a_lasting_alert_is_told_again_after_hours_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told = Told()
    alerts = Alerts(told)
    steady = 1000.0
    monkeypatch.setattr(monitor_alerts.time, "monotonic", lambda: steady)
    for _ in range(3):
        alerts.set("weather", NOON, "none came", NOON)
    assert len(told.alerts) == 1
    steady += Alerts.REPEAT_SECONDS
    alerts.set("weather", NOON, "two did not come", NOON + timedelta(hours=4))
    assert [alert.reason for alert in told.alerts] == ["none came", "two did not come"]
    alerts.set("weather", None, "", NOON + timedelta(hours=5))
    alerts.set("weather", None, "", NOON + timedelta(hours=6))
    assert [alert.status for alert in told.alerts] == ["firing", "firing", "resolved"]
    assert told.alerts[-1].starts_at == NOON
    assert len(caplog.records) == 2
    assert alerts.lasting() == []
