"""What the stages of batch runs took: written by short-lived tasks, read by the monitor and the command line.

A record is worth less than the stage it tells of: writing one is bounded in
time, and its failure is the caller's to ignore.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo

from almanac.clock import need_utc
from serving_cache.postgres_client import Client, described, translated, with_limits

STAGES = ("plan", "gate_features", "materialize", "score", "gate_predictions", "publish", "clean_up")
DONE = "done"
"""Outcome of a stage that was not ended by an error."""
WRITE_SECONDS_MAX = 2
REASON_CHARACTERS_MAX = 500
KEPT = timedelta(days=90)
DROPPED_PER_WRITE_MAX = 1_000
READ_ROWS_MAX = 10_000

_COLUMNS = (
    "id, pipeline, generation, stage, shard, started_at, seconds, partitions, rows, outcome, reason, steps, unchanged"
)


class StageTime(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one stage of a batch run.

    Args:
        generation: None if the stage ended before there was one.
        stage: one of `STAGES`.
        shard: for `score`: the first partition that the task was given.
        rows: predictions or rows that it handled; partitions: partitions that it brought on.
        outcome: `DONE`, or the name of the error that ended it.
        reason: the error's line, cut to `REASON_CHARACTERS_MAX`.
        steps: seconds of the parts of the stage, by name.
        unchanged: for `score`: of the rows those that were not scored, for their inputs were as before.
    """

    pipeline: str
    generation: int | None
    stage: str
    shard: int | None
    started_at: datetime
    seconds: float
    partitions: int
    rows: int
    outcome: str
    reason: str = ""
    steps: Mapping[str, float] = {}
    unchanged: int = 0
    id: int = 0


def record(url: str, found: StageTime, *, now: datetime) -> None:
    """Write one record, within some seconds, and let a few go that are older than `KEPT`.

    Raises:
        Unavailable: Postgres did not answer in time.
        UsageError: the database was not migrated.
    """
    limited = make_conninfo(with_limits(url), connect_timeout=WRITE_SECONDS_MAX)
    try:
        with psycopg.connect(limited) as connection:
            connection.execute(f"SET LOCAL statement_timeout = '{WRITE_SECONDS_MAX}s'")
            connection.execute(f"SET LOCAL lock_timeout = '{WRITE_SECONDS_MAX}s'")
            connection.execute(
                "INSERT INTO stage_times (pipeline, generation, stage, shard, started_at, seconds, partitions, rows, "
                "outcome, reason, steps, unchanged) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s)",
                (
                    found.pipeline, found.generation, found.stage, found.shard, found.started_at, found.seconds,
                    found.partitions, found.rows, found.outcome, found.reason[:REASON_CHARACTERS_MAX],
                    msgspec.json.encode(found.steps).decode(), found.unchanged,
                ),
            )  # fmt: skip
            connection.execute(
                "DELETE FROM stage_times WHERE id IN (SELECT id FROM stage_times WHERE pipeline = %s "
                "AND recorded_at < %s ORDER BY recorded_at LIMIT %s FOR UPDATE SKIP LOCKED)",
                (found.pipeline, now - KEPT, DROPPED_PER_WRITE_MAX),
            )
    except psycopg.Error as error:
        raise translated(error, error.sqlstate, described(url)) from error


def of_generation(client: Client, pipeline: str, generation: int) -> list[StageTime]:
    """Every attempt at a generation's stages that was recorded, in the order they began."""
    rows = client.query(
        f"SELECT {_COLUMNS} FROM stage_times WHERE pipeline = %s AND generation = %s "  # noqa: S608 - our own words
        "ORDER BY started_at, id LIMIT %s",
        (pipeline, generation, READ_ROWS_MAX),
    )
    return [_stage_time(row) for row in rows]


def recent(client: Client, pipeline: str, limit: int) -> list[StageTime]:
    """The newest records of stages that were done, newest first."""
    rows = client.query(
        f"SELECT {_COLUMNS} FROM stage_times WHERE pipeline = %s AND outcome = %s "  # noqa: S608 - our own words
        "ORDER BY started_at DESC, id DESC LIMIT %s",
        (pipeline, DONE, min(limit, READ_ROWS_MAX)),
    )
    return [_stage_time(row) for row in rows]


def seconds_by_stage(client: Client, pipeline: str, generation: int) -> dict[str, float]:
    """Seconds of a generation's stages, its shards and attempts added up."""
    rows = client.query(
        "SELECT stage, sum(seconds) FROM stage_times WHERE pipeline = %s AND generation = %s GROUP BY stage",
        (pipeline, generation),
    )
    return {stage: float(seconds) for stage, seconds in rows}


def recorded_since(client: Client, pipeline: str, moment: datetime) -> list[StageTime]:
    """What was recorded at or after a moment of Postgres's clock; at most `READ_ROWS_MAX`, oldest first."""
    rows = client.query(
        f"SELECT {_COLUMNS} FROM stage_times WHERE pipeline = %s AND recorded_at >= %s "  # noqa: S608 - our own words
        "ORDER BY recorded_at, id LIMIT %s",
        (pipeline, moment, READ_ROWS_MAX),
    )
    return [_stage_time(row) for row in rows]


def _stage_time(row: Any) -> StageTime:
    (
        number, pipeline, generation, stage, shard, started_at, seconds, partitions, rows, outcome, reason, steps,
        unchanged,
    ) = row  # fmt: skip
    return StageTime(
        id=number,
        pipeline=pipeline,
        generation=generation,
        stage=stage,
        shard=shard,
        started_at=need_utc(started_at),
        seconds=seconds,
        partitions=partitions,
        rows=rows,
        outcome=outcome,
        reason=reason,
        steps={name: float(value) for name, value in steps.items()},
        unchanged=unchanged,
    )
