"""Watches the batch side, whatever Airflow thinks: `python -m serving_cache.monitor`. Ends on SIGTERM or SIGINT.

Every other second it reads each declared pipeline's state from Postgres (from
Redis when Postgres is away), shows it at `/metrics`, and decides whether a
generation is late (`almanac/lateness.py`). When one is, it says so once: in the
log, at `/alerts`, in `almanac status` and to `ALMANAC_ALERT_WEBHOOK_URL`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from itertools import product

from almanac import metrics
from almanac.errors import AlmanacError
from almanac.freshness import age_of
from almanac.lateness import decide_lateness
from almanac.pipeline import Pipeline
from almanac.quality import SOURCES, Sums, horizons
from almanac.settings import Settings
from almanac.steady import SystemClock
from serving_cache.daemon import run_until_stopped
from serving_cache.monitor_alerts import Alerts, Webhook
from serving_cache.monitor_features import show_features
from serving_cache.monitor_reading import Eyes, PipelineState
from serving_cache.records import Pointer, State
from serving_cache.stage_times import DONE, STAGES

log = logging.getLogger("serving_cache.monitor")

PERIOD_SECONDS = 2.0
SILENT_SECONDS_MAX = 60.0
"""Without a look that found something for this long the monitor is not ready."""
HUNG_SECONDS_MAX = 300.0
"""A look has time limits far below this; one that takes longer hangs."""
ROWS = {"score": metrics.ROWS_SCORED, "materialize": metrics.ROWS_MATERIALIZED}
"""What counts the rows of a stage."""
PARTITION_STATES = ("planned", "staged", "quarantined")


class Monitor:
    """Looks at every pipeline and shows what it found.

    Args:
        pipelines: those to watch.
        eyes: reads their states.
        alerts: is told who is late.
        now: when the watch begins: with nothing published, earlier ticks are expected of nobody.
        steady: a monotonic reading in seconds, of the same moment.
    """

    def __init__(
        self, pipelines: Iterable[Pipeline], eyes: Eyes, alerts: Alerts, *, now: datetime, steady: float
    ) -> None:
        self._pipelines = list(pipelines)
        self._eyes = eyes
        self._alerts = alerts
        self._since = now
        self._pointers: dict[str, Pointer | None] = {}
        self._begun: dict[str, datetime] = {}
        self._states: dict[tuple[str, str], str] = {}
        self._found_at = steady
        self._stepped_at = steady
        for pipeline in self._pipelines:
            for counter in (*ROWS.values(), metrics.ROWS_UNCHANGED):
                counter.labels(pipeline.name).inc(0)
            metrics.GENERATION_LATE.labels(pipeline.name).set(0)
            metrics.GENERATION_LATE_SECONDS.labels(pipeline.name).set(0)
            freshness = pipeline.freshness
            metrics.FRESHNESS.labels(pipeline.name, "fresh_for").set(freshness.fresh_for.total_seconds())
            metrics.FRESHNESS.labels(pipeline.name, "usable_for").set(freshness.usable_for.total_seconds())

    def step(self, now: datetime, steady: float) -> bool:
        """Look at every pipeline once; returns False if one could not be read."""
        answered = True
        for pipeline in self._pipelines:
            name = pipeline.name
            try:
                found = self._eyes.look(pipeline)
            except AlmanacError as error:
                self._say(name, f"not readable: {error}", level=logging.WARNING)
                answered = False
            else:
                self._found_at = steady
                self._note(name, found)
                self._say(name, f"read from {found.place}")
                show(pipeline, found, now)
            self._judge(pipeline, now)
        self._stepped_at = steady
        return answered

    def _note(self, name: str, found: PipelineState) -> None:
        """Postgres is the record; Redis may be behind it, and then says nothing new."""
        known = self._pointers.get(name)
        if found.place == "postgres" or known is None or (found.pointer and found.pointer.epoch >= known.epoch):
            self._pointers[name] = found.pointer
        if found.begun_at is not None:
            self._begun[name] = found.begun_at

    def _judge(self, pipeline: Pipeline, now: datetime) -> None:
        """Decide from the last pointer that was read: what cannot be read now has not been published either."""
        name = pipeline.name
        if name not in self._pointers:
            return
        pointer = self._pointers[name]
        # What was published is of a pipeline that was there before this process; since when, the record knows.
        begun = self._since if pointer is None else self._begun.get(name, pointer.generation.cutoff)
        try:
            found = decide_lateness(
                pipeline.schedule,
                pipeline.freshness.fresh_for,
                cutoff=None if pointer is None else pointer.generation.cutoff,
                expected_since=min(self._since, begun),
                now=now,
            )
        except AlmanacError as error:
            self._say(name, f"cannot be judged: {error}", level=logging.ERROR, about="schedule")
            return
        if pointer is not None:
            age = age_of(pointer.generation.as_of, now)
            metrics.GENERATION_AGE.labels(name).set(age.total_seconds())
        metrics.GENERATION_LATE.labels(name).set(1 if found.late else 0)
        metrics.GENERATION_LATE_SECONDS.labels(name).set(found.late_for(now).total_seconds())
        self._alerts.set(name, found.since, found.reason, now)

    def why_not_ready(self) -> str | None:
        """Why nothing is known of the pipelines now; None when something is."""
        silent = time.monotonic() - self._found_at
        if silent <= SILENT_SECONDS_MAX:
            return None
        return f"no pipeline could be read for {silent:.0f} s: look at Postgres and Redis in `almanac status`"

    def why_not_live(self) -> str | None:
        """Whether a look hangs."""
        passed = time.monotonic() - self._stepped_at
        return None if passed <= HUNG_SECONDS_MAX else f"the monitor has hung for {passed:.0f} s: restart it"

    def _say(self, name: str, state: str, level: int = logging.INFO, about: str = "stores") -> None:
        if state != self._states.get((name, about)):
            self._states[name, about] = state
            log.log(level, "monitor pipeline=%s %s", name, state, extra={"pipeline": name})


def show(pipeline: Pipeline, found: PipelineState, now: datetime) -> None:
    """Set the metrics of one look."""
    name = pipeline.name
    metrics.MONITOR_LAST_READ.labels(name, found.place).set(now.timestamp())
    if found.pointer is not None:
        generation = found.pointer.generation
        metrics.GENERATION_NUMBER.labels(name).set(generation.generation)
        metrics.GENERATION_EPOCH.labels(name).set(found.pointer.epoch)
        metrics.GENERATION_COVERAGE.labels(name).set(generation.coverage)
        metrics.GENERATION_ROWS.labels(name).set(generation.rows)
        metrics.GENERATION_UNUSUAL.labels(name).set(1 if generation.alert else 0)
    if found.place != "postgres":
        return
    show_features(pipeline, found.features, now)
    if found.errors is not None:
        for (output, _), source in product(horizons(pipeline), SOURCES):
            _show_errors((name, output, source), found.errors.get((output, source), Sums()))
    if found.features_through is not None:
        metrics.FEATURES_AGE.labels(name).set(age_of(found.features_through, now).total_seconds())
    for state in State:
        metrics.GENERATIONS.labels(name, state.value).set(found.generations.get(state.value, 0))
    for partition_state in PARTITION_STATES:
        metrics.PARTITIONS.labels(name, partition_state).set(found.partitions.get(partition_state, 0))
    for stage in STAGES:
        metrics.RUN_STAGE_SECONDS.labels(name, stage).set(found.stage_seconds.get(stage, 0.0))
    for record in found.recorded:
        outcome = record.outcome if record.outcome == DONE else "failed"
        metrics.STAGE_SECONDS.labels(name, record.stage, outcome).observe(record.seconds)
        if record.stage in ROWS:
            ROWS[record.stage].labels(name).inc(record.rows - record.unchanged)
        metrics.ROWS_UNCHANGED.labels(name).inc(record.unchanged)


def _show_errors(labels: tuple[str, str, str], sums: Sums) -> None:
    """Set the metrics of one output and source; what nothing is known of any more is not a number."""
    unknown = float("nan")
    metrics.PREDICTION_OUTCOMES.labels(*labels).set(sums.n)
    metrics.PREDICTION_ERROR.labels(*labels).set(sums.absolute_sum / sums.n if sums.n else unknown)
    pairs = sums.paired_n
    metrics.PREDICTION_PAIRED_ERROR.labels(*labels).set(sums.paired_absolute / pairs if pairs else unknown)
    metrics.PREDICTION_REPLACED_ERROR.labels(*labels).set(sums.replaced_absolute / pairs if pairs else unknown)


def run(monitor: Monitor, clock: SystemClock) -> None:
    """Step for ever, by a clock that does not follow a step of the wall clock: that makes no generation late."""
    note: str | None = None
    while True:
        moment = clock.now()
        if moment.note and not note:
            log.warning("monitor: %s", moment.note)
        note = moment.note
        monitor.step(moment.now, time.monotonic())
        time.sleep(PERIOD_SECONDS)


def watch(settings: Settings, pipelines: Iterable[Pipeline]) -> None:
    """Watch until a signal comes.

    Raises:
        AlmanacError: a setting is missing or cannot be used.
    """
    webhook = Webhook(settings.alert_webhook_url) if settings.alert_webhook_url else None
    alerts = Alerts(webhook)
    eyes = Eyes(settings.need("postgres_url"), settings.need("redis_url"))
    clock = SystemClock()
    monitor = Monitor(pipelines, eyes, alerts, now=clock.now().now, steady=time.monotonic())
    server = metrics.serve(
        settings.metrics_port,
        process="monitor",
        host=settings.metrics_host,
        why_not_ready=monitor.why_not_ready,
        why_not_live=monitor.why_not_live,
        pages={"/alerts": alerts.page},
    )
    try:
        run(monitor, clock)
    finally:
        if server is not None:
            server.close()
        if webhook is not None:
            webhook.close()
        eyes.close()


def main() -> int:
    """Watch every declared pipeline until a signal comes; returns the exit code."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold URLs
    return run_until_stopped("monitor", watch)


if __name__ == "__main__":
    sys.exit(main())
