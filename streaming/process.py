"""The stream's process: the worker and the sinks of every pipeline with a stream, as threads of one process.

SIGTERM and SIGINT end it within seconds: each thread finishes or abandons its
batch. A thread that dies ends the process, so that its supervisor starts it anew.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from almanac import logs, metrics
from almanac.clock import utc_now
from almanac.errors import AlmanacError, Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.plain_text import one_line
from almanac.settings import Settings, settings
from almanac.steady import SystemClock
from serving_cache.monitor_alerts import Webhook
from streaming.incidents import Incidents
from streaming.pause import Pause
from streaming.report import Report

if TYPE_CHECKING:
    from streaming.answering import Answering

STOP_SECONDS_MAX = 25.0
WATCH_SECONDS = 0.5
INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,60}")

log = logging.getLogger("streaming")


@dataclass
class Crew:
    """Threads that live and die together."""

    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[tuple[str, BaseException]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Start a thread whose death, for whatever reason, stops the others."""

        def watched() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the process ends with it
                self.failures.append((name, error))
            finally:
                self.stop.set()

        thread = threading.Thread(target=watched, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()

    def why_not_ready(self) -> str | None:
        """Why some thread does not do its work now; None when all do."""
        if not self.reports:
            return "starting"
        return next((reason for report in self.reports if (reason := report.why_not_ready())), None)

    def join(self) -> bool:
        """Wait for all threads after `stop`; whether all ended in time."""
        give_up_at = time.monotonic() + STOP_SECONDS_MAX
        for thread in self.threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)


def recruit(
    pipeline: Pipeline,
    found: Settings,
    instance: str,
    crew: Crew,
    clock: SystemClock | None = None,
    made: Sequence[str] = (),
) -> None:
    """Start the worker and the sinks of one pipeline.

    Args:
        made: its topics that were missing, and have just been made.
        clock: what the worker takes for now; default: the machine's.
    """
    from features.archive import open_archive
    from features.online import OnlineFeatures, observation_row
    from features.online_histories import OnlineHistories
    from serving_cache.postgres import PostgresStore
    from serving_cache.redis import RedisStore
    from streaming.archiving import HOLD, Archiving
    from streaming.sink import Features, Hold, Overlays, Sink, Target
    from streaming.worker import Surroundings, Worker

    answering = follow(pipeline, found, crew)
    steady = clock or SystemClock()  # a step of the wall clock must not make events of now look like the future's

    one_at_a_time = threading.Lock()

    def now() -> datetime:
        with one_at_a_time:  # worker and sinks ask
            return steady.now().now

    around = Surroundings(
        online=partial(OnlineFeatures, dated=True),
        observation_row=observation_row,
        histories=OnlineHistories if pipeline.lines is not None else None,
        predicted=PostgresStore(found.need("postgres_url")).predicted,  # not the sinks': nobody waits for their writes
        now=now,
        answering=answering,
    )
    worker = Worker(pipeline, found, around, instance)
    worker.say_made(made, started=True)
    crew.start(worker.report.name, lambda: worker.run(crew.stop))
    crew.reports.append(worker.report)

    def sink(name: str, topic: str, make: Callable[[Report], Target], hold: Hold = Hold()) -> None:
        report = Report(f"{pipeline.name} {name}", pipeline=pipeline.name, part=name)
        target = make(report)
        work = Sink(topic, f"almanac-{pipeline.name}-sink-{name}", found, report, instance, hold)
        crew.start(report.name, lambda: work.run(target, crew.stop))
        crew.reports.append(report)

    record, copy = PostgresStore(found.need("postgres_url")), RedisStore(found.need("redis_url"))
    sink("overlays", pipeline.predictions_topic, lambda report: Overlays(pipeline, record, copy, report, now))
    sink(
        "features",
        pipeline.features_topic,
        lambda report: Features(pipeline, lambda: OnlineFeatures(pipeline, found), observation_row, report, now),
    )
    sink(
        "archive",
        pipeline.features_topic,
        lambda report: Archiving(pipeline, lambda: open_archive(pipeline, found), observation_row, report, now),
        HOLD,
    )


def follow(pipeline: Pipeline, found: Settings, crew: Crew) -> Answering:
    """Start to follow which generation of a pipeline answers, over connections of its own."""
    from serving_cache.postgres import PostgresStore
    from serving_cache.postgres_notices import Notices
    from serving_cache.redis import RedisStore
    from streaming.answering import Answering

    url = found.need("postgres_url")
    report = Report(f"{pipeline.name} pointer")
    stores = (PostgresStore(url), RedisStore(found.need("redis_url")))
    answering = Answering(pipeline.name, *stores, lambda: Notices(url), report)
    crew.start(report.name, lambda: answering.run(crew.stop))
    return answering


def run(found: Settings, instance: str, crew: Crew, incidents: Incidents) -> None:
    """Run until the crew is to stop, or one of it ends.

    Args:
        incidents: is told what the threads raise alerts about.

    Raises:
        AlmanacError: a thread ended with it, or there is nothing to run.
        RuntimeError: a thread died of something unforeseen.
    """
    from almanac.declarations import pipelines
    from features.store import preload

    streamed = [pipeline for pipeline in pipelines().values() if pipeline.stream is not None]
    if not streamed:
        raise UsageError("no pipeline declares a stream: declare `stream`, or do not start the stream worker")
    made = {pipeline.name: _topics(pipeline, found, crew.stop) for pipeline in streamed}
    preload()
    for pipeline in streamed:
        if not crew.stop.is_set():
            recruit(pipeline, found, instance, crew, made=made[pipeline.name])
    while not crew.stop.wait(WATCH_SECONDS):
        incidents.follow(crew.reports, utc_now())
    ended = crew.join()
    if crew.failures:
        name, error = crew.failures[0]
        if isinstance(error, AlmanacError):
            raise error
        raise RuntimeError(f"{name} died ({type(error).__name__}: {error})") from error
    if not ended:
        raise Unavailable(f"threads did not stop within {STOP_SECONDS_MAX:.0f} s: ended without them, nothing is lost")


def _topics(pipeline: Pipeline, found: Settings, stop: threading.Event) -> list[str]:
    """Make the topics that are missing; returns their names."""
    from streaming.topics import ensure_topics

    for attempt in Pause.attempts((Unavailable,)):
        with attempt:
            if stop.is_set():
                return []
            return ensure_topics(pipeline, found)
    raise AssertionError("unreachable: the last attempt returns or raises")


def main(stop: threading.Event, arguments: list[str] | None = None) -> int:
    """Parse the command line and run until `stop` is set; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m streaming", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instance", default="0", help="name of this worker among those of the same pipelines")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(arguments)
    log.setLevel(logging.INFO)
    try:
        if not INSTANCE.fullmatch(given.instance):
            raise UsageError(f"--instance {given.instance!r} must match {INSTANCE.pattern}")
        found = settings()
        logs.configure("stream", found.log_format, level=logging.WARNING)
        crew = Crew(stop)
        incidents = Incidents(Webhook(found.alert_webhook_url) if found.alert_webhook_url else None)
        metrics.serve(
            found.metrics_port,
            process="stream",
            host=found.metrics_host,
            why_not_ready=crew.why_not_ready,
            pages={"/alerts": incidents.page},
        )
        run(found, given.instance, crew, incidents)
    except Exception as error:
        if given.debug:
            raise
        print(f"almanac stream: {one_line(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, AlmanacError) else 1
    return 0
