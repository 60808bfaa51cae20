"""Materialization as the command line and Airflow run it: features brought up first, and what it took recorded."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from almanac.clock import format_time, parse_time, utc_now
from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from jobs.stages import stage

TIMES = "a time such as 2026-03-31T06:00Z"


def asked_times(since: str, until: str, now: datetime) -> tuple[datetime | None, datetime]:
    """The times of a run as they were typed; empty ones are the watermark's and `now`.

    Raises:
        UsageError: one is no time, lies in the future, or the first lies after the second.
    """
    first, last = (_time(name, text) for name, text in (("--from", since), ("--to", until)))
    last = last or now
    if last > now:
        raise UsageError(f"--to {until} lies in the future (now {format_time(now)}): give a past time, or leave it out")
    if first is not None and first > last:
        raise UsageError(f"--from {since} lies after --to {format_time(last)}: give an earlier time")
    return first, last


def _time(name: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        return parse_time(text)
    except ValueError:
        raise UsageError(f"{name} {text!r} is no time: give {TIMES}, in UTC") from None


def plan_features(
    pipeline: Pipeline, settings: Settings, *, since: datetime | None, until: datetime, full: bool
) -> list[list[dict[str, Any]]]:
    """What is to be materialized: for each task its shards, as plain values for `materialize_shards`.

    Raises:
        FeatureError: definitions, files or rows are not what they should be; nothing was written.
        Unavailable: Redis, Postgres or the registry does not answer.
    """
    from features.materialize.plan import Asked, bundled
    from features.materialize.run import Materialization

    with Materialization(pipeline, settings) as run:
        shards = run.plan(Asked(since=since, until=until, full=full))
    return [msgspec.to_builtins(task) for task in bundled(shards)]


def task_label(pipeline: Pipeline, shards: list[dict[str, Any]]) -> str:
    """What a person reads in the Airflow UI: `cell_history tile r0 c0 … tile r1 c4 (12)`, or the views of several."""
    if len(shards) > 1:
        return ", ".join(dict.fromkeys(shard["view"] for shard in shards))
    (shard,) = shards
    return f"{shard['view']} {pipeline.shard_label(list(range(shard['first'], shard['last'] + 1)))}"


def materialize_shards(pipeline: Pipeline, settings: Settings, shards: list[dict[str, Any]]) -> dict[str, int]:
    """Bring the rows of some shards into the online store; again does no harm.

    Raises:
        FeatureError: a view was changed since it was planned, or its files or rows are not what they should be.
        Unavailable: Redis, Postgres or the registry does not answer.
    """
    from features.materialize.plan import Shard
    from features.materialize.run import Materialization

    found = msgspec.convert(shards, list[Shard])
    rows = kept = 0
    with stage("materialize", pipeline.name, settings) as record, Materialization(pipeline, settings) as run:
        for shard in found:
            report = run.bring(shard)
            rows += report.rows
            kept += report.kept
            record.rows, record.partitions = rows, record.partitions + len(shard.partitions)
    return {"rows": rows, "kept": kept}


def materialize_by_hand(pipeline: Pipeline, settings: Settings, *, since: str, until: str, full: bool) -> str:
    """Bring features up, then all of them into the online store, with a progress bar; returns what it came to.

    Raises:
        UsageError: a time cannot be used.
        FeatureError, SourceError: features, definitions or files are not what they should be.
        Unavailable: a server does not answer; what is done is done, and the same command goes on.
    """
    from features.ingest import refresh
    from features.materialize.plan import Asked
    from features.materialize.progress import shown
    from features.materialize.run import Materialization
    from jobs.plan import FEATURE_WINDOW

    settings.need("redis_url")
    first, last = asked_times(since, until, utc_now())
    if full and first is not None:
        raise UsageError("--full reads all that has not expired, and --from says from when on: give one of them")
    window = FEATURE_WINDOW if first is None else max(FEATURE_WINDOW, last - first)
    ingested = refresh(pipeline, settings, last, window=window)
    with stage("materialize", pipeline.name, settings) as record, Materialization(pipeline, settings) as run:
        with shown() as progress:
            report = run.all(Asked(since=first, until=last, full=full), progress)
        record.rows, record.partitions = report.rows, pipeline.partitions.count
    if not report.shards:
        return f"all rows of {pipeline.features} as of {format_time(ingested.as_of)} were in the online store already"
    kept = f", {report.kept:,} not newer than what was there" if report.kept else ""
    return (
        f"{report.rows:,} rows of {pipeline.features} as of {format_time(ingested.as_of)} are in the online store"
        f"{kept} ({report.seconds:.1f} s)"
    )
