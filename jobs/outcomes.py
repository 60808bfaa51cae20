"""Outcomes: when the observation for a predicted moment arrives, the error of what was served.

Numbered alike in docs/architecture.md:

1. take the pipeline's progress, so that two computations take turns;
2. decide which predicted moments are due: those up to the newest observation of the source, an hour at a time;
3. read the logged predictions about them, each with the older answer that it stood in for;
4. compare with the source's observations: the observed variable at the predicted moment, on the line between the
   two hourly observations around it, both of them from after the prediction's as_of;
5. add the errors and move the progress on, in the transaction of step 1: a retry counts nothing twice.

Truth is the source's alone: never an event, nor anything carried forward.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from almanac.clock import floor_hour, format_time, need_utc
from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.quality import Sums, at_moment, has_outcomes, horizons, hours_around, next_span
from almanac.settings import Settings
from features.sources import Source
from serving_cache.prediction_log import Due, Key, PredictionLog, Settling

log = logging.getLogger(__name__)

SPANS_MAX = 24 * 14
"""Hours of predicted moments that one run settles; the next run goes on."""
FIELDS_KEPT_MAX = 64
"""Hours of observations kept in memory at once."""

Horizons = Sequence[tuple[str, timedelta]]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a run did.

    Args:
        outcomes: predictions compared with what was observed.
        through: predicted moments up to here are settled; None if none ever was.
    """

    outcomes: int
    through: datetime | None


class Observed:
    """What a source observed, cell by cell; hours are read once."""

    def __init__(self, source: Source, latest: datetime) -> None:
        self._source, self._latest = source, latest
        self._fields: dict[datetime, np.ndarray[Any, Any]] = {}

    def at(self, cell: int, moment: datetime, *, after: datetime) -> float | None:
        """What was observed at a moment, by observations later than `after` alone; None if there is none."""
        first, second, share = hours_around(moment)
        if first <= after or second > self._latest:
            return None
        value = self._hour(first)[cell] * (1 - share) + self._hour(second)[cell] * share
        return float(value) if np.isfinite(value) else None

    def last(self, cell: int, moment: datetime) -> float | None:
        """The newest observation of a cell at a moment: that of the hour it lies in."""
        hour = floor_hour(moment)
        if not self._source.earliest <= hour <= self._latest:
            return None
        value = self._hour(hour)[cell]
        return float(value) if np.isfinite(value) else None

    def _hour(self, hour: datetime) -> np.ndarray[Any, Any]:
        found = self._fields.get(hour)
        if found is None:
            if len(self._fields) >= FIELDS_KEPT_MAX:
                del self._fields[min(self._fields)]
            found = self._fields[hour] = np.asarray(self._source.window(hour, hour).values, np.float64).ravel()
        return found


def compute(pipeline: Pipeline, settings: Settings, *, cutoff: datetime) -> Settled:
    """Settle every predicted moment that was observed by `cutoff` and is not settled yet.

    Raises:
        UsageError: nothing that the pipeline predicts is observed.
        SourceError: the source cannot be read.
        Unavailable: Postgres does not answer; what was settled before stays.
    """
    from features.sources import open_source

    if not has_outcomes(pipeline):
        raise UsageError(
            f"pipeline {pipeline.name} predicts nothing that is observed later: "
            "declare a source and outputs with horizons(…) to have outcomes"
        )
    source = open_source(pipeline, settings)
    latest = floor_hour(source.latest(need_utc(cutoff)))
    observed = Observed(source, latest)
    outcomes, through = 0, None
    with PredictionLog(settings.need("postgres_url")) as kept:
        for _ in range(SPANS_MAX):
            with kept.settling(pipeline) as settling:
                through = settling.settled
                span = next_span(settling.settled, settling.earliest(), latest)
                if span is None:
                    break
                sums = settle(settling, horizons(pipeline), observed, *span)
                settling.finish(sums, span[1])
                outcomes, through = outcomes + sum(one.n for one in sums.values()), span[1]
    log.info("outcomes pipeline=%s computed=%d through=%s", pipeline.name, outcomes, through and format_time(through))
    return Settled(outcomes=outcomes, through=through)


def settle(settling: Settling, ahead: Horizons, observed: Observed, start: datetime, end: datetime) -> dict[Key, Sums]:
    """The errors of all predictions about moments after `start`, up to and including `end`."""
    found: dict[Key, Sums] = defaultdict(Sums)
    for output, horizon in ahead:
        for due in settling.due(output, start - horizon, end - horizon):
            moment = due.as_of + horizon
            truth = observed.at(int(due.entity), moment, after=due.as_of)
            if truth is not None:
                key = Key(output, due.source, due.model, floor_hour(moment))
                _count(found[key], due, ahead, moment, truth, observed)
    return found


def _count(sums: Sums, due: Due, ahead: Horizons, moment: datetime, truth: float, observed: Observed) -> None:
    age = moment - due.as_of
    sums.add(due.value, truth, age, observed.last(int(due.entity), due.as_of))
    if due.replaced is None or due.replaced_as_of is None:
        return
    replaced = at_moment(due.replaced_as_of, due.replaced, ahead, moment)
    if replaced is not None:
        sums.add_pair(due.value, truth, age, replaced, moment - due.replaced_as_of)
