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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from almanac.airflow_pause import dags_paused
from almanac.clock import HOUR, format_time
from almanac.declarations import pipelines
from almanac.errors import AlmanacError, Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.quality import has_outcomes, is_sampled, sample_threshold
from almanac.settings import Settings
from features.sources import Source, grid_of, open_source
from serving_cache.postgres import PostgresStore
from serving_cache.prediction_log import PredictionLog
from serving_cache.records import State

if TYPE_CHECKING:
    from features.online import OnlineFeatures

STREAM_SECONDS_MAX = 90.0
PUBLISH_SECONDS_MAX = 120.0
POLL_SECONDS = 0.2
CHECK_SECONDS = 5.0
"""How often a wait for predictions looks whether anything could keep them from coming."""

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
    source = open_source(pipeline, settings)
    latest = source.latest(now)
    longest = hours_max(pipeline.freshness.usable_for, now - latest)
    if not until < hours <= longest:
        raise UsageError(
            f"{hours} to {until} hours back cannot be rehearsed: events are usable for "
            f"{pipeline.freshness.usable_for // HOUR} hours, give --hours up to {longest} and a lesser --until"
        )
    _check_nothing_newer(pipeline, settings, latest - hours * HOUR)
    with _still(pipeline, settings, progress) as check:
        _check_nothing_newer(pipeline, settings, latest - hours * HOUR)  # what was at work may have published
        check(latest - (hours - 1) * HOUR)
        for back in range(hours, until, -1):
            moment = latest - back * HOUR
            _batch(pipeline, settings, moment)
            check(moment + HOUR)
            predicted = _events(pipeline, settings, source, moment + HOUR, check)
            progress(
                f"{format_time(moment)}: batch published; an hour later {predicted:,} cells predicted by the stream"
            )
    progress(f"rehearsed; `almanac trigger {pipeline.name}` brings what was observed since, `almanac quality` shows it")


def hours_max(usable_for: timedelta, behind: timedelta) -> int:
    """How many hours back a rehearsal may begin, whatever minute of the hour it is, and if the hour turns meanwhile.

    Its first events are those of an hour later, and must not expire before the stream has seen them.

    Args:
        behind: how old the newest observation is.
    """
    hours_behind = behind // HOUR + 1
    return (usable_for - timedelta(seconds=STREAM_SECONDS_MAX)) // HOUR + 1 - hours_behind


def _check_nothing_newer(pipeline: Pipeline, settings: Settings, first: datetime) -> None:
    with PostgresStore(settings.need("postgres_url")) as store:
        pointer = store.pointer(pipeline.name)
    if pointer is not None and pointer.generation.as_of > first:
        raise UsageError(
            f"{pipeline.name} already serves generation {pointer.generation.generation} as of "
            f"{format_time(pointer.generation.as_of)}, newer than {format_time(first)}: what is served never goes "
            "back; rehearse before the first run on a new state directory, or fewer hours"
        )


def moved_with(pipeline: Pipeline, settings: Settings) -> list[Pipeline]:
    """The pipelines whose DAGs may move what this one serves: they share its model, or a feature view."""
    from features.definitions import places_of, views_by_service

    views = views_by_service(places_of(settings))

    def read_by(one: Pipeline) -> set[str]:
        services = [one.features, *([one.ranking.features] if one.ranking is not None else [])]
        return {view for service in services for view in views.get(service, {service})}

    return [
        other
        for other in {**pipelines(), pipeline.name: pipeline}.values()
        if other.name == pipeline.name
        or other.model_name == pipeline.model_name
        or not read_by(other).isdisjoint(read_by(pipeline))
    ]


@contextmanager
def _still(pipeline: Pipeline, settings: Settings, progress: Progress) -> Iterator[Callable[[datetime], None]]:
    """Airflow moves nothing of the pipeline inside, neither by its schedule nor by what is under way.

    Yields:
        Sees before events of a moment that this is still so, and that they would not come too late.
    """
    from features.online import OnlineFeatures

    with ExitStack() as stack:
        paused = None
        if settings.airflow_url:
            paused = stack.enter_context(dags_paused(settings, moved_with(pipeline, settings), progress))
        online = OnlineFeatures(pipeline, settings, dated=True)

        def check(moment: datetime) -> None:
            if paused is not None:
                paused.check()
            check_in_time(pipeline, online, moment)

        yield check


def check_in_time(pipeline: Pipeline, online: OnlineFeatures, moment: datetime) -> None:
    """Refuse events older than the features online: all would come too late to be predicted from."""
    from features.online import NEWEST_AT

    grid, _ = grid_of(pipeline)
    newest = online.read(range(grid.cells))[NEWEST_AT].to_pylist()
    late = [found for found in newest if found is not None and found > moment]
    if late:
        raise UsageError(
            f"the features of {len(late):,} of {grid.cells:,} cells of {pipeline.name} that are online are as of "
            f"{format_time(max(late))}, so events of {format_time(moment)} come too late to be predicted from: a run "
            "or a command brought them there; rehearse fewer hours, or begin on a new state directory"
        )


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


def _events(
    pipeline: Pipeline, settings: Settings, source: Source, moment: datetime, check: Callable[[datetime], None]
) -> int:
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
    checked = time.monotonic()
    with PredictionLog(settings.need("postgres_url")) as kept:
        while (found := kept.logged(pipeline.name, "stream", moment)) < expected:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the stream predicted {found} of {expected} cells of {pipeline.name} at {format_time(moment)} "
                    f"within {STREAM_SECONDS_MAX:.0f} s: see `almanac status`, `almanac dead-letters {pipeline.name}`"
                )
            if time.monotonic() > checked + CHECK_SECONDS:
                check(moment)
                checked = time.monotonic()
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
