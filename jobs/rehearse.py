"""A rehearsal: the last hours as they happened, so that predictions exist whose moments have been observed.

For each past hour T, oldest first, on the real parts:

1. a batch run as of T: plan, score, publish, materialize; the same steps as the DAG's, without its gates;
2. the observations of the hour after, sent as events through Kafka, scored by the stream from the features of T;
3. wait until Postgres has accepted what the stream made of them.

Nothing of it knows what came after its hour. The next run for now brings the
observations of all those moments, and with them the outcomes. Only on a store
that serves nothing newer: what is served never goes back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import numpy as np

from almanac.airflow_api import AirflowApi
from almanac.clock import HOUR, format_time
from almanac.errors import AlmanacError, Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.quality import has_outcomes, is_sampled, sample_threshold
from almanac.settings import Settings
from features.sources import Source, grid_of, open_source
from serving_cache.postgres import PostgresStore
from serving_cache.prediction_log import PredictionLog
from serving_cache.records import State

STREAM_SECONDS_MAX = 90.0
PUBLISH_SECONDS_MAX = 120.0
POLL_SECONDS = 0.2

Progress = Callable[[str], None]


def rehearse(
    pipeline: Pipeline, settings: Settings, *, hours: int, until: int, now: datetime, progress: Progress
) -> None:
    """Go through the hours from `hours` ago to `until` ago, counted from the newest observation.

    Raises:
        UsageError: the pipeline has no outcomes or no stream, the hours make no sense, or newer data is served.
        Unavailable: a part does not answer, or the stream did not predict in time.
    """
    if not has_outcomes(pipeline) or pipeline.stream is None:
        raise UsageError(
            f"pipeline {pipeline.name} cannot be rehearsed: declare a source, a stream, and outputs with horizons(…)"
        )
    longest = pipeline.freshness.usable_for // HOUR
    if not until < hours <= longest:
        raise UsageError(
            f"{hours} to {until} hours back cannot be rehearsed: events are usable for {longest} hours, "
            f"give --hours up to {longest} and a lesser --until"
        )
    source = open_source(pipeline, settings)
    latest = source.latest(now)
    _check_nothing_newer(pipeline, settings, latest - hours * HOUR)
    with _schedule_held(pipeline, settings):
        for back in range(hours, until, -1):
            moment = latest - back * HOUR
            _batch(pipeline, settings, moment)
            predicted = _events(pipeline, settings, source, moment + HOUR)
            progress(
                f"{format_time(moment)}: batch published; an hour later {predicted:,} cells predicted by the stream"
            )
    progress(f"rehearsed; `almanac trigger {pipeline.name}` brings what was observed since, `almanac quality` shows it")


def _check_nothing_newer(pipeline: Pipeline, settings: Settings, first: datetime) -> None:
    with PostgresStore(settings.need("postgres_url")) as store:
        pointer = store.pointer(pipeline.name)
    if pointer is not None and pointer.generation.as_of > first:
        raise UsageError(
            f"{pipeline.name} already serves generation {pointer.generation.generation} as of "
            f"{format_time(pointer.generation.as_of)}, newer than {format_time(first)}: what is served never goes "
            "back; rehearse before the first run on a new state directory, or fewer hours"
        )


@contextmanager
def _schedule_held(pipeline: Pipeline, settings: Settings) -> Iterator[None]:
    """Airflow starts no run of the pipeline meanwhile: it would publish what is newer than the rehearsal.

    Let go again whatever ends the rehearsal, but a SIGKILL.
    """
    held = bool(settings.airflow_url) and _pause(pipeline, settings, True)
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, ended)
        if held:
            _pause(pipeline, settings, False)


def _pause(pipeline: Pipeline, settings: Settings, paused: bool) -> bool:
    """Pause or unpause the pipeline's DAG; returns whether that changed anything."""
    with AirflowApi(settings) as airflow:
        if not airflow.has_dag(pipeline.name) or airflow.is_paused(pipeline.name) is paused:
            return False
        airflow.call("PATCH", f"/dags/{pipeline.name}", json={"is_paused": paused})
    return True


def _batch(pipeline: Pipeline, settings: Settings, moment: datetime) -> None:
    """Step 1: a generation as of a past hour, published, and its features in the online store."""
    from almanac.clock import utc_now
    from features.materialize.run import materialize
    from jobs.plan import plan
    from jobs.publish import clean_up, publish
    from jobs.score import score_shard

    run_key = f"rehearsal {format_time(moment)}"
    made = plan(pipeline, settings, run_key=run_key, cutoff=moment, now=utc_now())
    try:
        for shard in made.shards:
            score_shard(pipeline, settings, made, shard)
        publication = publish(pipeline, settings, made, now=utc_now())
    finally:
        clean_up(pipeline, settings, made)
    if publication.state is not State.CURRENT:
        raise UsageError(
            f"the rehearsal of {pipeline.name} stopped at {format_time(moment)}: meanwhile something newer was "
            "published; what was rehearsed before stays"
        )
    materialize(pipeline, settings, made.moment)


def _events(pipeline: Pipeline, settings: Settings, source: Source, moment: datetime) -> int:
    """Steps 2 and 3: every cell's observation of an hour as an event; returns how many predictions were logged."""
    grid, observed = grid_of(pipeline)
    values = np.asarray(source.window(moment, moment).values).ravel()
    events = [
        {pipeline.entity: cell, "observed_at": format_time(moment), observed.variable: float(value)}
        for cell, value in enumerate(values)
    ]
    _send(pipeline, settings, "".join(json.dumps(event) + "\n" for event in events))
    threshold = sample_threshold(grid.cells)
    expected = sum(is_sampled(str(cell), threshold) for cell in range(grid.cells))
    deadline = time.monotonic() + STREAM_SECONDS_MAX
    with PredictionLog(settings.need("postgres_url")) as kept:
        while (found := kept.logged(pipeline.name, "stream", moment)) < expected:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the stream predicted {found} of {expected} cells of {pipeline.name} at {format_time(moment)} "
                    f"within {STREAM_SECONDS_MAX:.0f} s: see `almanac status`, `almanac dead-letters {pipeline.name}`"
                )
            time.sleep(POLL_SECONDS)
    return found


def _send(pipeline: Pipeline, settings: Settings, lines: str) -> None:
    """Publish events as a person would: only the stream's side speaks Kafka."""
    done = subprocess.run(
        [sys.executable, "-m", "almanac.cli", "publish", pipeline.name, "--file", "-"],
        input=lines,
        capture_output=True,
        text=True,
        timeout=PUBLISH_SECONDS_MAX,
        env={**os.environ, "ALMANAC_STATE_DIR": str(settings.state_dir)},
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AlmanacError(f"events of the rehearsal could not be sent: {said}")
