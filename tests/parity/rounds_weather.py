"""Moments of `weather`: cells that are observed on the hour, or at a random moment after it.

On the hour, with the hour's features online, an event replaces the cell's own observation and nothing else, for batch
and stream alike. After it both bring the hour's features forward to the event's moment: the stream as it handles the
event, a batch run whose cutoff is after the event, and before the source has another hour, when it reads the archive.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from almanac.clock import HOUR, floor_hour, format_time
from almanac.pipeline import Pipeline
from streaming.publish import Outgoing

HOURS = 5
"""Hours back: features of cells may be used online for six."""
BATCHES_AN_HOUR = 2
CELLS_PER_ROUND = 1_000
ROUNDS_MAX = HOURS * BATCHES_AN_HOUR
ON_THE_HOUR = 0.1
"""Share of the cells of an hour's first round."""
SPAN_MIN = timedelta(minutes=2)
"""Of the hour that has begun there must be so much."""


def quick(declared: Pipeline, cells: int) -> Pipeline:
    """The declaration with a model that is trained in seconds."""
    return replace(
        declared,
        training=replace(
            declared.training, window=timedelta(days=7), holdout=timedelta(days=1), rows_max=8_000, trees=40
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Hour:
    """Cells, each at a moment of its own between an hour and a cutoff.

    Args:
        before: the hour whose features are online.
    """

    before: datetime
    cutoff: datetime
    moments: Mapping[int, datetime]
    values: Mapping[int, float]
    late: Sequence[Outgoing] = ()

    @property
    def events(self) -> Sequence[Outgoing]:
        """An observation of each."""
        return [
            Outgoing(
                value=json.dumps({"cell_id": cell, "observed_at": format_time(at), "t2m": self.values[cell]}).encode(),
                key=str(cell).encode(),
            )
            for cell, at in self.moments.items()
        ]


def trained_at(now: datetime) -> datetime:
    """Before all moments."""
    return _hours(now)[0] - HOUR


def rounds(places: Sequence[int], cells: int, seed: int, now: datetime) -> list[Hour]:
    """Rounds, oldest first, with so many cells together, each cell and moment once."""
    dice = random.Random(seed)
    count = min(max(2, math.ceil(cells / CELLS_PER_ROUND)), ROUNDS_MAX)
    made = []
    for number, (hour, start, cutoff) in enumerate(itertools.islice(_spans(now, count), count)):
        size = cells * (number + 1) // count - cells * number // count
        chosen = dice.sample(places, size)
        first = round(size * ON_THE_HOUR) if start == hour else 0
        moments = {
            cell: hour if place < first else start + max(dice.random(), 1e-6) * (cutoff - start)
            for place, cell in enumerate(chosen)
        }
        values = {cell: dice.uniform(265, 300) for cell in chosen}
        made.append(Hour(before=hour, cutoff=cutoff, moments=moments, values=values))
    return made


def _hours(now: datetime) -> list[datetime]:
    """The hours, oldest first; the one that has begun is the last, if there is enough of it."""
    last = floor_hour(now - SPAN_MIN)
    return [last - back * HOUR for back in reversed(range(HOURS))]


def _spans(now: datetime, count: int) -> Iterator[tuple[datetime, datetime, datetime]]:
    """The hour, and a time in it: of few rounds those of the newest hours."""
    hours = _hours(now)[-math.ceil(count / BATCHES_AN_HOUR) :]
    for hour in hours:
        end = min(hour + HOUR - timedelta(seconds=1), now)
        cuts = [hour + (end - hour) * part / BATCHES_AN_HOUR for part in range(BATCHES_AN_HOUR + 1)]
        for start, cutoff in itertools.pairwise(cuts):
            yield hour, start, cutoff
