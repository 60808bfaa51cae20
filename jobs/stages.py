"""What a stage of a batch run took and came to: one record in Postgres, and its fields on every log line.

A lost record never fails a task: writing it is best effort, within limits.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from almanac.clock import utc_now
from almanac.errors import AlmanacError
from almanac.logs import context
from almanac.settings import Settings
from serving_cache.stage_times import DONE, StageTime, record

log = logging.getLogger(__name__)


@dataclass
class Stage:
    """What a stage says of itself while it works; all of it may stay as it is.

    Args:
        generation: number of the generation, once it is known.
        partitions, rows: what the stage brought on.
        steps: seconds of its parts, by name.
        unchanged: of the rows those that were not scored, for their inputs were as before.
    """

    generation: int | None = None
    partitions: int = 0
    rows: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    unchanged: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of what is done inside to the part's seconds."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = self.steps.get(name, 0.0) + time.perf_counter() - started


def trace_of_run(pipeline: str, generation: int) -> str:
    """The trace id that all tasks of a generation's run share, without telling each other."""
    return hashlib.sha256(f"almanac {pipeline} {generation}".encode()).hexdigest()[:32]


@contextmanager
def stage(
    name: str, pipeline: str, settings: Settings, *, generation: int | None = None, shard: int | None = None
) -> Iterator[Stage]:
    """Time what is done inside, and record it however it ends.

    Args:
        name: one of `serving_cache.stage_times.STAGES`.
        shard: for `score`: the first partition that the task was given.
    """
    made = Stage(generation=generation)
    started_at, started = utc_now(), time.perf_counter()
    outcome, reason = DONE, ""
    trace = None if generation is None else trace_of_run(pipeline, generation)
    with context(pipeline=pipeline, generation=generation, trace=trace):
        try:
            yield made
        except BaseException as error:
            outcome, reason = type(error).__name__, " ".join(str(error).split())
            raise
        finally:
            _record(
                settings,
                StageTime(
                    pipeline=pipeline,
                    generation=made.generation,
                    stage=name,
                    shard=shard,
                    started_at=started_at,
                    seconds=time.perf_counter() - started,
                    partitions=made.partitions,
                    rows=made.rows,
                    outcome=outcome,
                    reason=reason,
                    steps={step: round(seconds, 6) for step, seconds in made.steps.items()},
                    unchanged=made.unchanged,
                ),
            )


def _record(settings: Settings, found: StageTime) -> None:
    if not settings.postgres_url:
        return
    try:
        record(settings.postgres_url, found, now=utc_now())
    except AlmanacError as error:
        log.warning("the time of stage %s of pipeline=%s is not recorded: %s", found.stage, found.pipeline, error)
