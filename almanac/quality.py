"""How good what was served turned out to be: the decisions and sums, without I/O.

- whose predictions are logged: a sample of entities by a hash of their key, the same for every source;
- which predicted moments are due: those up to the newest observation, an hour at a time;
- what was observed at a moment between two hourly observations, and what an older answer said of it:
  on the straight line between its neighbours, and nothing beyond them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from itertools import pairwise

from almanac.clock import HOUR, floor_hour
from almanac.pipeline import GridObservations, Pipeline

SAMPLED_ENTITIES_MAX = 10_000
"""Entities of a pipeline whose predictions are logged."""
SOURCES = ("stream", "batch", "fresh")
HASHES = 2**32
SPAN = HOUR
"""Predicted moments that are settled in one transaction."""


def sample_threshold(entities: int) -> int:
    """Below which hash an entity of a pipeline with so many is logged: all of them, or about `SAMPLED_ENTITIES_MAX`."""
    return HASHES if entities <= SAMPLED_ENTITIES_MAX else HASHES * SAMPLED_ENTITIES_MAX // entities


def is_sampled(entity: str, threshold: int) -> bool:
    """Whether an entity's predictions are logged; Postgres decides by the same hash."""
    return int(hashlib.md5(entity.encode(), usedforsecurity=False).hexdigest()[:8], 16) < threshold


def horizons(pipeline: Pipeline) -> list[tuple[str, timedelta]]:
    """The outputs that speak about a moment to come, with how far ahead, nearest first."""
    found = [(output.name, output.horizon) for output in pipeline.outputs if output.horizon is not None]
    return sorted(found, key=lambda one: one[1])


def has_outcomes(pipeline: Pipeline) -> bool:
    """Whether what a pipeline predicts is observed later: forecasts of the variable that its source observes."""
    return isinstance(pipeline.source, GridObservations) and bool(horizons(pipeline))


def next_span(
    settled: datetime | None, earliest: datetime | None, observed: datetime
) -> tuple[datetime, datetime] | None:
    """The next predicted moments to settle, after the first up to and including the second; None if none is due.

    Args:
        settled: everything up to here is settled; None if nothing ever was.
        earliest: as_of of the oldest prediction in the log; None if there is none.
        observed: the newest observation.
    """
    if earliest is None:
        return None
    start = floor_hour(earliest) if settled is None else max(settled, floor_hour(earliest))
    end = min(floor_hour(start) + SPAN, observed)
    return (start, end) if start < end else None


def hours_around(moment: datetime) -> tuple[datetime, datetime, float]:
    """The hourly observations that a moment lies between, and how far from the first to the second: 0 to below 1.

    On the hour both are the same.
    """
    before = floor_hour(moment)
    share = (moment - before) / HOUR
    return (before, before + HOUR, share) if share else (before, before, 0.0)


def at_moment(
    as_of: datetime, values: Mapping[str, float], horizons: Sequence[tuple[str, timedelta]], moment: datetime
) -> float | None:
    """What a forecast says of a moment between its own: on the line between the two outputs around it.

    Args:
        horizons: output names with their horizons, shortest first.

    Returns:
        None before its first and beyond its last moment: it says nothing of these.
    """
    ahead = moment - as_of
    found = [(horizon, values[name]) for name, horizon in horizons if values.get(name) is not None]
    for (start, first), (end, second) in pairwise(found):
        if start <= ahead <= end:
            share = (ahead - start) / (end - start)
            return first * (1 - share) + second * share
    return found[0][1] if len(found) == 1 and found[0][0] == ahead else None


@dataclass(kw_only=True)
class Sums:
    """Errors added up; every field is a sum, so that two add field by field.

    Args:
        n: predictions whose moment was observed.
        error_sum, absolute_sum, squared_sum: of predicted minus observed.
        age_sum: of the predictions' ages at the predicted moment, in seconds.
        as_now_n, as_now_absolute: the error of saying that it stays as last observed at as_of, where that is known.
        paired_n: predictions for whose moment an older answer was there too.
        paired_absolute, paired_age: the predictions of those pairs.
        replaced_absolute, replaced_age: the older answers of those pairs.
    """

    n: int = 0
    error_sum: float = 0.0
    absolute_sum: float = 0.0
    squared_sum: float = 0.0
    age_sum: float = 0.0
    as_now_n: int = 0
    as_now_absolute: float = 0.0
    paired_n: int = 0
    paired_absolute: float = 0.0
    paired_age: float = 0.0
    replaced_absolute: float = 0.0
    replaced_age: float = 0.0

    def add(self, value: float, observed: float, age: timedelta, as_now: float | None) -> None:
        """Count one prediction."""
        error = value - observed
        self.n += 1
        self.error_sum += error
        self.absolute_sum += abs(error)
        self.squared_sum += error * error
        self.age_sum += age.total_seconds()
        if as_now is not None:
            self.as_now_n += 1
            self.as_now_absolute += abs(as_now - observed)

    def add_pair(self, value: float, observed: float, age: timedelta, replaced: float, replaced_age: timedelta) -> None:
        """Count one prediction beside the older answer about the same moment."""
        self.paired_n += 1
        self.paired_absolute += abs(value - observed)
        self.paired_age += age.total_seconds()
        self.replaced_absolute += abs(replaced - observed)
        self.replaced_age += replaced_age.total_seconds()


SUMS = tuple(field.name for field in fields(Sums))
