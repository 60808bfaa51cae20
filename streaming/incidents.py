"""Incidents of the stream as alerts: what happened once and a person must know of, such as a topic that was deleted."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from serving_cache.monitor_alerts import Alert, Alerts, Kind, Webhook, alerts_page
from streaming.report import RECORDS_LOST, TOPIC_LOST, Report

LASTS = timedelta(hours=1)
"""How long an alert lasts after the incident: `almanac status` shows it so long."""
KINDS = (
    Kind(
        name=TOPIC_LOST,
        summary="A topic of {pipeline} was deleted",
        begins="topic lost",
        ends="alert of a lost topic ends",
    ),
    Kind(
        name=RECORDS_LOST,
        summary="Records of {pipeline} were deleted before they were read",
        begins="records lost",
        ends="alert of lost records ends",
    ),
)


class Incidents:
    """The alerts that the stream's threads raise.

    Args:
        webhook: is told of each start and end; None for nobody.
    """

    def __init__(self, webhook: Webhook | None = None) -> None:
        self._alerts = {kind.name: Alerts(webhook, kind) for kind in KINDS}

    def follow(self, reports: Iterable[Report], now: datetime) -> None:
        """Take note of what the threads said; of one name and pipeline the newest counts."""
        found = [(report.pipeline, incident) for report in reports for incident in report.incidents.values()]
        newest = {
            (incident.name, pipeline): incident for pipeline, incident in sorted(found, key=lambda pair: pair[1].at)
        }
        for (name, pipeline), incident in newest.items():
            since = incident.at if now - incident.at < LASTS else None
            self._alerts[name].set(pipeline, since, incident.reason, now)

    def lasting(self) -> list[Alert]:
        """The alerts that last now."""
        return [alert for alerts in self._alerts.values() for alert in alerts.lasting()]

    def page(self) -> bytes:
        """The same as JSON."""
        return alerts_page(self.lasting())
