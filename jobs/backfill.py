"""Backfill: generations of past hours, one for each tick of the schedule that has none; archived, never current.

The record decides what is missing, not Airflow: a tick whose run failed, or
was never begun, has no published generation. Airflow runs what is asked for, as
a backfill of its own, so that it is seen and can be paused in its UI.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from almanac.clock import format_time
from almanac.errors import Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.schedule import ticks_between as schedule_ticks
from almanac.settings import Settings
from jobs.costs import STAGES_LOOKED_AT_MAX, measured
from jobs.preview import rows_in
from jobs.shards import cut, rows_of_grid

if TYPE_CHECKING:
    from almanac.airflow_api import AirflowApi

TICKS_MAX = 1_000
"""Generations of one backfill: six weeks of hours."""
TICK_SECONDS_MAX = 1_800.0
"""Time without a new generation after which nobody waits any longer."""
POLL_SECONDS = 2.0
AT_ONCE = 1
"""Runs of one backfill at a time: they share the machine with the schedule's."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One tick of the schedule within the time that was asked for.

    Attributes:
        generation: that was published for it; None if it is missing.
        state: the generation's, such as `archived`.
    """

    at: datetime
    generation: int | None
    state: str | None


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """What a backfill would do.

    Attributes:
        rows: of each generation.
        seconds: estimate for all that is missing, Airflow's own time apart; None before a first run.
    """

    pipeline: str
    ticks: tuple[Tick, ...]
    rows: int
    seconds: float | None

    @property
    def missing(self) -> tuple[datetime, ...]:
        """The ticks that have no generation, in order."""
        return tuple(tick.at for tick in self.ticks if tick.generation is None)


def ticks_between(schedule: str, first: datetime, last: datetime, now: datetime) -> list[datetime]:
    """The schedule's ticks from one moment to another, both included.

    Raises:
        UsageError: the times make no sense, reach into the future, or hold no tick or too many.
        DeclarationError: the schedule is no cron expression.
    """
    if first > last:
        raise UsageError(f"--from {format_time(first)} is later than --to {format_time(last)}: swap them")
    if last > now:
        raise UsageError(
            f"--to {format_time(last)} lies in the future (now {format_time(now)}): a backfill is for the past, "
            "the schedule brings what is to come"
        )
    found: list[datetime] = []
    for tick in schedule_ticks(schedule, first, last):
        if len(found) == TICKS_MAX:
            raise UsageError(
                f"more than {TICKS_MAX} ticks of {schedule!r} lie between {format_time(first)} and "
                f"{format_time(last)}: backfill a shorter time at once"
            )
        found.append(tick)
    if not found:
        raise UsageError(
            f"no tick of {schedule!r} lies between {format_time(first)} and {format_time(last)}: widen the time"
        )
    return found


def look(pipeline: Pipeline, settings: Settings, *, first: datetime, last: datetime, now: datetime) -> Backfill:
    """What is missing within a time, and what it would cost; nothing is run.

    Raises:
        UsageError: as `ticks_between`.
        Unavailable: Postgres does not answer.
    """
    from serving_cache.postgres import PostgresStore

    moments = ticks_between(pipeline.schedule, first, last, now)
    with PostgresStore(settings.need("postgres_url")) as store:
        published = store.published(pipeline.name, moments[0], moments[-1])
        costs = measured(store.recent_stages(pipeline.name, STAGES_LOOKED_AT_MAX))
        _, basis = store.basis(pipeline.name)
    rows = rows_of_grid(pipeline.partitions) or {partition: was.rows for partition, was in basis.items()}
    every = list(range(pipeline.partitions.count))
    count, shards = rows_in(every, rows), len(cut(pipeline, every, costs, rows))
    ticks = tuple(
        Tick(at=moment, generation=number, state=state)
        for moment in moments
        for number, state in [published.get(moment, (None, None))]
    )
    missing = sum(tick.generation is None for tick in ticks)
    seconds = None if costs is None else missing * costs.seconds(count, shards)
    return Backfill(pipeline=pipeline.name, ticks=ticks, rows=count, seconds=seconds)


def spans(ticks: Sequence[Tick]) -> Iterator[tuple[datetime, datetime]]:
    """The first and last of each stretch of ticks without one that has a generation in between."""
    held: list[datetime] = []
    for tick in ticks:
        if tick.generation is None:
            held.append(tick.at)
        elif held:
            yield held[0], held[-1]
            held = []
    if held:
        yield held[0], held[-1]


def run(pipeline: Pipeline, settings: Settings, airflow: AirflowApi, asked: Backfill) -> Iterator[Tick]:
    """Have Airflow make what is missing; yields each tick once its generation is published.

    Raises:
        UsageError: Airflow refused, say because another backfill of this pipeline is at work.
        Unavailable: Airflow or Postgres does not answer, or nothing was published for `TICK_SECONDS_MAX`.
    """
    for first, last in spans(asked.ticks):
        body = {
            "dag_id": pipeline.name,
            "from_date": format_time(first),
            "to_date": format_time(last),
            "max_active_runs": AT_ONCE,
            "reprocess_behavior": "completed",  # what Airflow has run without a generation is run again
        }
        number = int(airflow.call("POST", "/backfills", json=body)["id"])
        waited = {tick.at for tick in asked.ticks if first <= tick.at <= last}
        yield from _follow(pipeline, settings, airflow, number, waited)


def _follow(
    pipeline: Pipeline, settings: Settings, airflow: AirflowApi, number: int, waited: set[datetime]
) -> Iterator[Tick]:
    from almanac.airflow_api import AWAY_SECONDS_MAX
    from serving_cache.postgres import PostgresStore

    left, moved, answered = set(waited), time.monotonic(), time.monotonic()
    with PostgresStore(settings.need("postgres_url")) as store:
        while True:
            ended: Any = None
            try:
                ended = airflow.call("GET", f"/backfills/{number}")["completed_at"]
                answered = time.monotonic()
            except Unavailable:  # it is started again, and the backfill goes on
                if time.monotonic() - answered > AWAY_SECONDS_MAX:
                    raise
            published = store.published(pipeline.name, min(waited), max(waited))
            for moment in sorted(left & published.keys()):
                generation, state = published[moment]
                left.discard(moment)
                moved = time.monotonic()
                yield Tick(at=moment, generation=generation, state=state)
            if ended or not left:
                return
            if time.monotonic() - moved > TICK_SECONDS_MAX:
                raise Unavailable(
                    f"backfill {number} of {pipeline.name} published nothing for {TICK_SECONDS_MAX:.0f} s: "
                    "look at its runs in the Airflow UI; what is done stays done"
                )
            time.sleep(POLL_SECONDS)
