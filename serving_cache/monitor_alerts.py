"""Alerts of the monitor: one log line when one starts and when it ends, and a webhook that is told both.

The webhook gets the JSON of Alertmanager's (version 4), so that what understands
that understands this. It is told by a thread of its own: a receiver that hangs
holds up no look at the stores.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from almanac import metrics
from almanac.clock import format_time
from almanac.errors import UsageError

log = logging.getLogger(__name__)

GENERATION_LATE = "AlmanacGenerationLate"
WEBHOOK_SECONDS_MAX = 5.0
WEBHOOK_ATTEMPTS_MAX = 4
WEBHOOK_WAIT_SECONDS = 1.0
WAITING_MAX = 100
CLOSE_SECONDS_MAX = 2.0


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert; `ends_at` is None while it lasts."""

    name: str
    pipeline: str
    reason: str
    starts_at: datetime
    ends_at: datetime | None = None

    @property
    def status(self) -> Literal["firing", "resolved"]:
        """As Alertmanager calls it."""
        return "firing" if self.ends_at is None else "resolved"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What alerts of one name are about.

    Args:
        summary: one line, with `{pipeline}` in it.
        begins, ends: what the log's lines begin with.
    """

    name: str
    summary: str
    begins: str
    ends: str

    @property
    def runbook(self) -> str:
        """The section that says what it means and what to do."""
        return f"docs/operations.md#{self.name.lower()}"


LATE = Kind(
    name=GENERATION_LATE,
    summary="A generation of {pipeline} is late",
    begins="generation late",
    ends="generation no longer late",
)


def webhook_body(alert: Alert, kind: Kind = LATE) -> dict[str, Any]:
    """The alert as Alertmanager's webhook would tell it."""
    labels = {"alertname": alert.name, "pipeline": alert.pipeline, "severity": "critical"}
    annotations = {
        "summary": kind.summary.format(pipeline=alert.pipeline),
        "description": alert.reason,
        "runbook": kind.runbook,
    }
    entry = {
        "status": alert.status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": format_time(alert.starts_at),
        "endsAt": "0001-01-01T00:00:00Z" if alert.ends_at is None else format_time(alert.ends_at),
        "generatorURL": "",
        "fingerprint": _fingerprint(labels),
    }
    return {
        "version": "4",
        "groupKey": f"{{}}:{{alertname={alert.name!r}, pipeline={alert.pipeline!r}}}",
        "truncatedAlerts": 0,
        "status": alert.status,
        "receiver": "almanac",
        "groupLabels": {"alertname": alert.name, "pipeline": alert.pipeline},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [entry],
    }


def _fingerprint(labels: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:16]


class Webhook:
    """Tells a URL of alerts, in their order, from a thread of its own.

    Args:
        url: http(s) URL; it may hold a secret, and is never written anywhere.

    Raises:
        UsageError: it is no http(s) URL.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = None
        if not known:
            raise UsageError("the alert webhook is no http(s) URL: correct or unset ALMANAC_ALERT_WEBHOOK_URL")
        self._url = url
        self._host = parts.hostname
        self._waiting: queue.Queue[tuple[Alert, Kind] | None] = queue.Queue(WAITING_MAX)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def tell(self, alert: Alert, kind: Kind = LATE) -> None:
        """Have an alert sent; when too many wait already, it is dropped and said so."""
        try:
            self._waiting.put_nowait((alert, kind))
        except queue.Full:
            self._failed(alert, f"{WAITING_MAX} others wait")

    def close(self) -> None:
        """Stop, leaving a moment for what is being sent."""
        self._stopped.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(CLOSE_SECONDS_MAX)

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            self._send(*waiting)

    def _send(self, alert: Alert, kind: Kind) -> None:
        import httpx

        body = msgspec.json.encode(webhook_body(alert, kind))
        reason = ""
        for attempt in range(WEBHOOK_ATTEMPTS_MAX):
            if attempt and self._stopped.wait(WEBHOOK_WAIT_SECONDS * 2 ** (attempt - 1)):
                break
            try:
                answer = httpx.post(
                    self._url, content=body, headers={"Content-Type": "application/json"}, timeout=WEBHOOK_SECONDS_MAX
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = type(error).__name__  # its text may hold the URL
                continue
            if answer.is_success:
                metrics.ALERTS_SENT.labels(alert.pipeline, "sent").inc()
                return
            reason = f"it answered {answer.status_code}"
            if answer.is_client_error and answer.status_code not in (408, 429):
                break
        self._failed(alert, reason)

    def _failed(self, alert: Alert, reason: str) -> None:
        log.error(
            "alert webhook at %s was not told that %s is %s (%s): look at ALMANAC_ALERT_WEBHOOK_URL",
            self._host,
            alert.name,
            alert.status,
            reason,
            extra={"pipeline": alert.pipeline},
        )
        metrics.ALERTS_SENT.labels(alert.pipeline, "failed").inc()


def alerts_page(lasting: Iterable[Alert]) -> bytes:
    """Alerts as `/alerts` shows them."""
    return msgspec.json.encode({"alerts": [msgspec.to_builtins(alert) for alert in lasting]})


class Alerts:
    """The alerts of one kind that last, by pipeline; safe to read from other threads.

    Args:
        kind: what they are about.
        webhook: is told of each start and end, and again every `REPEAT_SECONDS` while it lasts; None for nobody.
    """

    REPEAT_SECONDS = 4 * 3600.0

    def __init__(self, webhook: Webhook | None = None, kind: Kind = LATE) -> None:
        self._webhook = webhook
        self._kind = kind
        self._lasting: dict[str, Alert] = {}
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def lasting(self) -> list[Alert]:
        """The alerts that last now."""
        with self._lock:
            return list(self._lasting.values())

    def page(self) -> bytes:
        """The same as JSON."""
        return alerts_page(self.lasting())

    def set(self, pipeline: str, since: datetime | None, reason: str, now: datetime) -> None:
        """Note whether a pipeline has this alert, and say so when that changed.

        Args:
            since: since when it lasts; None when it does not.
        """
        before = self._lasting.get(pipeline)
        if since is None:
            if before is not None:
                self._end(before, now)
            return
        alert = Alert(
            name=self._kind.name,
            pipeline=pipeline,
            reason=reason,
            starts_at=since if before is None else before.starts_at,
        )
        with self._lock:
            self._lasting[pipeline] = alert
        if before is None:
            log.warning("%s pipeline=%s: %s", self._kind.begins, pipeline, reason, extra={"pipeline": pipeline})
        if before is None or time.monotonic() - self._told[pipeline] >= self.REPEAT_SECONDS:
            self._tell(alert)

    def _end(self, before: Alert, now: datetime) -> None:
        with self._lock:
            del self._lasting[before.pipeline]
        seconds = (now - before.starts_at).total_seconds()
        log.info(
            "%s pipeline=%s after %.0f s", self._kind.ends, before.pipeline, seconds,
            extra={"pipeline": before.pipeline},
        )  # fmt: skip
        self._tell(msgspec.structs.replace(before, ends_at=now))

    def _tell(self, alert: Alert) -> None:
        self._told[alert.pipeline] = time.monotonic()
        if self._webhook is not None:
            self._webhook.tell(alert, self._kind)
