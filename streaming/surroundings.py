"""What a worker needs around it: online features, histories, a clock, and which generation answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa

from almanac.clock import utc_now
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from streaming import handle
from streaming.folding import Histories, Predictions
from streaming.models import Answering


class Online(Protocol):
    """What the worker needs of the online store: `features.online.OnlineFeatures` is one."""

    def read(self, entities: Sequence[Any], *, at: datetime | None = None) -> pa.Table:
        """The entity's column and one column per feature, null where missing or, at that moment, too old.

        And `features.online.NEWEST_AT`, without which no event counts as late.
        """
        ...

    def lacking(self, entities: Sequence[Any], *, at: datetime) -> Mapping[Any, Sequence[str]]:
        """What is the matter with each entity's views at that moment: missing, or expired and how old."""
        ...


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a worker works with, besides Kafka.

    Args:
        online: makes the connection to the online store; called once, in the worker's thread.
        observation_row: the observation view's columns of an event.
        histories: the same, where events carry lines; it stands in for the two above.
        now: the clock.
        predicted: which entities have predictions in the record: see `streaming.folding`.
        answering: follows the generation that answers; without it events are scored by the alias's model alone.
    """

    online: Callable[[Pipeline, Settings], Online]
    observation_row: handle.ObservationRow
    histories: Callable[[Pipeline, Settings], Histories] | None = None
    predicted: Predictions | None = None
    now: Callable[[], datetime] = utc_now
    answering: Answering | None = None
