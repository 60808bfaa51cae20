"""Folding: steps 3 and 4 where events carry lines: an entity's state is what its events amount to.

    3 read   the histories of the batch's entities: this worker's own rows first, then the online store
    4 fold   each event into its entity's history, in offset order; rank as of the newest event in it, or of the
             items, if these are newer

What keeps a history right:
- one worker reads an entity's events, for the key decides their partition;
- after an assignment the store is read only once the features sink is past all that was committed: until then the
  worker waits, and says for what; a batch whose wait is over its limit is given up and begun again;
- rows that the sink has not applied are kept here (`streaming.own_rows`), from the commit on and not before;
- an event that a history holds is known by its hash, so that a replay folds nothing in twice;
- of two rows of one moment the later made one is the newer, wherever it is written: a zombie takes nothing back;
- an entity without a row is believed to be new only if the record has no prediction of its own for it either. Else
  its row was evicted or deleted: a history begun anew would be another's, so the event is a dead letter, and the
  next materialization sends that partition whole.

An event that is older than all that a history remembers is late: whether it was folded in cannot be told any more. One
from further ahead than clocks differ would push out what is true until then. Both get no list, and are archived as they
are: the next ingest, which has all lines, folds them in where they belong, and once.

An item that the range does not have is kept in the history, for it was bought; no list holds it, for items come from
the items' own features. A return of what a history does not have is a dead letter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from confluent_kafka import Message

from almanac.clock import MICROSECOND, at_micros, micros_of
from almanac.errors import DeclarationError, EventError, PredictionError, Unavailable
from almanac.freshness import CLOCK_TOLERANCE
from almanac.interactions import Interactions
from almanac.list_scoring import Scores, rank_each
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.ragged import Ragged
from almanac.ranked import RankedList, Value
from almanac.ranking import HISTORY
from almanac.ranking_declared import ANY_ITEM
from almanac.settings import Settings
from features.interactions.fold import Event as Basket
from features.interactions.fold import advance, hashes
from features.interactions.history import DAY_SUM_MAX, empty_history
from features.rankable import Range, entities_of, history_lists, placed
from features.sources.gates import normalised
from streaming.applied import Applied, Progress
from streaming.connection import kafka_waits
from streaming.events import Event
from streaming.handle import (
    HISTORY_LOST,
    PREDICTION_INVALID,
    RETURN_WITHOUT_PURCHASE,
    Handled,
    Sorted,
    dead_letters_of,
)
from streaming.models import Model, Predicted, by_each, merged
from streaming.own_rows import OwnRows
from streaming.records import Consumed, Folded, Produced, feature_record, prediction_record
from streaming.sizes import RECORD_BYTES_MAX

QUANTITY, PRICE = "quantity", "price"
"""Fields of a line that a history is made of, beside the item."""
BEYOND = f"would have taken more on one day than is counted, {DAY_SUM_MAX:.3g} units or hundredths of spend"
NOTHING = Folded(row=empty_history(), at=0, created=0)
"""The history of an entity of which nothing is known: older than any other."""
HISTORY_BYTES_MAX = RECORD_BYTES_MAX - 4_096
"""Size of a history as a record, in bytes: what its topic takes, less its key, its headers and what is around it."""
APPLIED_SECONDS = 1.0
"""Time between two looks at how far the sink has come."""


class Histories(Protocol):
    """What folding needs of the online store: `features.online_histories.OnlineHistories` is one."""

    def read(self, entities: Sequence[Any]) -> Mapping[Any, tuple[dict[str, Any], int, int] | None]:
        """Each entity's history, the moment of its newest event and when it was made; None of one that is new."""

    def items(self, histories: Ragged, at: datetime) -> Range:
        """The items that lists of entities with these own items may hold."""

    def lost(self, entities: Sequence[Any]) -> None:
        """Have the next materialization send the rows of these entities again, for they are gone."""


Predictions = Callable[[Pipeline, Sequence[Any]], Collection[Any]]
"""Which of some entities have predictions of their own: `serving_cache.postgres.PostgresStore.predicted` is one."""


@dataclass(kw_only=True)
class _Batch:
    """What became of a batch's events so far."""

    batch: Sorted
    histories: dict[EntityKey, Folded | None]
    lost: Collection[EntityKey] = ()
    folded: list[tuple[Consumed, Event, Folded]] = field(default_factory=list)
    written: list[tuple[Produced, EntityKey, Folded]] = field(default_factory=list)
    refused: list[tuple[Consumed, EventError]] = field(default_factory=list)
    duplicates: int = 0
    unmatched: int = 0
    late: int = 0

    def __post_init__(self) -> None:
        self.refused += self.batch.refused


class Folding:
    """Histories of one pipeline's entities as a worker sees them.

    Args:
        histories: opens the online store; called once, in the worker's thread.
        sink: how far the features sink has come; default: asked of Kafka.
        predicted: which of some entities have predictions in the record; without it a missing row is believed.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Settings,
        histories: Callable[[Pipeline, Settings], Histories],
        sink: Progress | None = None,
        predicted: Predictions | None = None,
    ) -> None:
        if pipeline.ranking is None or not isinstance(pipeline.source, Interactions):
            raise DeclarationError(
                f"pipeline {pipeline.name}: events with lines need source=Interactions(…) and ranking=Ranking(…)"
            )
        self._pipeline, self._ranking, self._source = pipeline, pipeline.ranking, pipeline.source
        self._settings = settings
        self._open = histories
        self._predicted = predicted
        self._histories: Histories | None = None
        self._sink = sink or Applied(pipeline.features_topic, f"almanac-{pipeline.name}-sink-features", settings)
        self._own = OwnRows[Folded]()
        self._ends: dict[int, int] | None = None
        self._caught_up = False
        self._asked_at = 0.0
        self._written: dict[bytes, tuple[EntityKey, Folded]] = {}
        self._placed: dict[bytes, tuple[int, int]] = {}

    def warm(self) -> None:
        """Open the online store.

        Raises:
            FeatureError, Unavailable: as `Histories`.
        """
        self._opened()

    def reassigned(self) -> None:
        """Nothing is known any more: others may have handled these entities meanwhile."""
        self._own.forget()
        self._ends, self._caught_up = None, False
        self._written, self._placed = {}, {}

    def close(self) -> None:
        """Give the connections back."""
        self._sink.close()

    def handle(self, batch: Sorted, models: Sequence[Model[Scores]], now: datetime) -> Handled:
        """Steps 3 and 4: what a batch writes; of each list one by each model, of the same history.

        Raises:
            Unavailable: the store or Kafka does not answer, or the features sink is behind.
            FeatureError: the store is empty or being filled, or lacks a column.
        """
        self._written, self._placed = {}, {}
        if not batch.events:
            return _handled(self._pipeline, (), (), _Batch(batch=batch, histories={}))
        histories = self._read(batch.entities)
        done = _Batch(batch=batch, histories=histories, lost=self._lost(histories))
        made = micros_of(now)
        for origin, event, basket in self._baskets(batch, done):
            try:
                self._fold(done, origin, event, basket, made)
            except EventError as error:
                done.refused.append((origin, error))
        moments, found = self._ranked(done, models, now)
        for at, why in found.errors.items():
            done.refused.append((done.folded[at][0], EventError(PREDICTION_INVALID, str(why))))
        predictions = []
        for at in sorted(found.values):
            origin, event, _ = done.folded[at]
            # Where it stands now, not where it first stood: a list has all that was folded in before it.
            made_of = (self._pipeline, replace(origin, headers=()), event)
            predictions += [
                prediction_record(*made_of, values, model, now, as_of=at_micros(moments[at]))
                for model in models
                if (values := found.values[at].get(model.id))
            ]
        refused = {id(origin) for origin, _ in done.refused}
        for origin, event in batch.events:
            if id(origin) in refused:
                batch.seen.forget(event)
        self._written = {record.key or b"": (entity, folded) for record, entity, folded in done.written}
        features = tuple(record for record, _, _ in done.written)
        handled = _handled(self._pipeline, tuple(predictions), features, done)
        return replace(handled, unscored=found.unscored(len(models)), failed=found.failed)

    def delivered(self, error: Any, message: Message) -> None:
        """Take note of where a feature row stands; rows of an entity come in their order."""
        if error is None:
            self._placed[message.key()] = (message.partition(), message.offset())

    def committed(self) -> None:
        """The batch is committed: its rows are this worker's own until the sink has applied them.

        Raises:
            Unavailable: it is not known where a row stands; the session is to be begun anew.
        """
        for key, (entity, folded) in self._written.items():
            if key not in self._placed:
                raise Unavailable(
                    f"no word of where the row of {self._pipeline.entity} {entity} stands: beginning anew"
                )
            self._own.keep(entity, folded, *self._placed[key])
        self._written, self._placed = {}, {}

    def _read(self, entities: Sequence[EntityKey]) -> dict[EntityKey, Folded | None]:
        with kafka_waits("the features sink's place cannot be asked", self._settings):
            self._need_caught_up()
            if len(self._own) and time.monotonic() - self._asked_at >= APPLIED_SECONDS:
                self._own.applied(self._sink.committed())
                self._asked_at = time.monotonic()
        self._own.need_room(len(entities))
        found: dict[EntityKey, Folded | None] = {entity: self._own.get(entity) for entity in entities}
        absent = [entity for entity, row in found.items() if row is None]
        for entity, held in self._opened().read(absent).items() if absent else ():
            found[entity] = None if held is None else Folded(row=held[0], at=held[1], created=held[2])
        return found

    def _lost(self, histories: Mapping[EntityKey, Folded | None]) -> Collection[EntityKey]:
        """The entities whose history is gone, though they are not new."""
        absent = [entity for entity, row in histories.items() if row is None]
        if not absent or self._predicted is None:
            return ()
        lost = self._predicted(self._pipeline, absent)
        if lost:
            self._opened().lost(list(lost))
        return lost

    def _need_caught_up(self) -> None:
        """Wait, by an error that is tried again, until the sink is past what was committed at the assignment."""
        if self._caught_up:
            return
        if self._ends is None:
            self._ends = self._sink.ends()
        why = self._sink.behind(self._ends)
        if why is not None:
            raise Unavailable(f"{self._pipeline.name} waits for its histories: {why}")
        self._caught_up = True

    def _opened(self) -> Histories:
        if self._histories is None:
            self._histories = self._open(self._pipeline, self._settings)
        return self._histories

    def _baskets(self, batch: Sorted, done: _Batch) -> list[tuple[Consumed, Event, Basket]]:
        """The events of which something can be folded in, with what that is and its hash; the others are refused."""
        found = []
        for origin, event in batch.events:
            try:
                found.append((origin, event, self._basket(event)))
            except EventError as error:
                done.refused.append((origin, error))
        marks = hashes([basket for _, _, basket in found])
        return [
            (origin, event, replace(basket, mark=mark))
            for (origin, event, basket), mark in zip(found, marks, strict=True)
        ]

    def _fold(self, done: _Batch, origin: Consumed, event: Event, basket: Basket, made: int) -> None:
        """Fold one event in.

        Raises:
            EventError: it cannot be.
        """
        held = done.histories[event.entity]
        if event.entity in done.lost:
            raise EventError(
                HISTORY_LOST,
                f"Redis lost the history of {self._pipeline.entity} {event.entity}, which has predictions of its own: "
                "run the pipeline's DAG, so that what the archive has comes back too, then "
                f"`almanac redrive {self._pipeline.name} --reason {HISTORY_LOST}`",
            )
        found = advance(None if held is None else held.row, basket)
        early = basket.at - made > CLOCK_TOLERANCE // MICROSECOND
        if early or (not found.folded and held is not None):
            if held is not None and basket.hash in held.row["seen"]:
                if origin.redriven:  # it was folded in, but the model had no list for it then
                    done.folded.append((origin, event, held))
                else:
                    done.duplicates += 1
            else:
                done.late += 1
                self._write(done, origin, event, replace(held or NOTHING, lines=basket.lines))
            return
        if found.unmatched and found.unmatched == len({line[0] for line in basket.lines}):
            raise EventError(
                RETURN_WITHOUT_PURCHASE,
                f"{self._pipeline.entity} {event.entity} returns what is not in the history: send the purchase, then "
                "this event again",
            )
        if found.beyond:
            raise EventError("out-of-range", f"{event.entity} {BEYOND}: correct quantity and price")
        newer = max(made, held.created + 1 if held is not None else 0)
        folded = Folded(row=found.row, at=found.at, created=newer, lines=basket.lines)
        self._write(done, origin, event, folded)
        done.unmatched += found.unmatched
        done.histories[event.entity] = folded
        done.folded.append((origin, event, folded))

    def _write(self, done: _Batch, origin: Consumed, event: Event, folded: Folded) -> None:
        """Have an event written: to the archive its lines, to the online store the history.

        Raises:
            EventError: its topic would not take the record.
        """
        record = feature_record(self._pipeline, origin, event, folded)
        if len(record.value or b"") > HISTORY_BYTES_MAX:  # many baskets at one moment are one basket
            raise EventError(
                "too-large",
                f"the history of {self._pipeline.entity} {event.entity} would have {len(record.value or b''):,} bytes "
                f"with this event in it, at most {HISTORY_BYTES_MAX:,} are written: send fewer lines for one moment",
            )
        done.written.append((record, event.entity, folded))

    def _basket(self, event: Event) -> Basket:
        """What of an event is folded in: as of a file, no line twice, nothing free, nothing that is no item.

        Raises:
            EventError: nothing is left, or an item is not readable.
        """
        declared = self._pipeline.lines
        if declared is None:
            raise AssertionError("events are folded only where they carry lines")
        lines: dict[tuple[str, float, float], None] = {}
        for at, line in enumerate(event.lines):
            item, quantity, price = normalised(line[declared.item]), float(line[QUANTITY]), float(line[PRICE])
            if not item or item == ANY_ITEM:  # as it is read, not as it was sent
                raise EventError("bad-item", f"{declared.name}[{at}].{declared.item} names no item: correct it")
            if item not in self._source.not_items and price >= self._source.price[0] and quantity:
                lines[(item, quantity, price)] = None
        if not lines:
            raise EventError("no-lines", f"{declared.name} has nothing but what is free or no item: nothing to learn")
        return Basket(entity=str(event.entity), at=micros_of(event.observed_at), lines=tuple(lines))

    def _ranked(self, done: _Batch, models: Sequence[Model[Scores]], now: datetime) -> tuple[list[int], Predicted]:
        """For each event that was folded in a moment, and by each model a list as of it."""
        if not done.folded:
            return [], merged(())
        rows = [folded for _, _, folded in done.folded]
        columns, lists = history_lists([folded.row for folded in rows])
        found = self._opened().items(lists[HISTORY], now)
        moments = found.moments(np.array([folded.at for folded in rows], np.int64))
        keys = [event.entity for _, event, _ in done.folded]
        entities = placed(entities_of(self._pipeline, keys, moments, columns, lists), found.items)
        name = self._pipeline.output_names[0]
        ranked, failed = by_each(models, lambda model: rank_each(entities, found.items, model.scorer, self._ranking))
        made = [(model.id, at, _values(name, one)) for model, each in ranked for at, one in enumerate(each)]
        return moments.tolist(), replace(merged(made), failed=failed)


def _values(output: str, outcome: RankedList | PredictionError) -> Mapping[str, Value] | PredictionError:
    if isinstance(outcome, PredictionError):
        return outcome
    return {output: outcome} if outcome.items else {}


def _handled(
    pipeline: Pipeline, predictions: tuple[Produced, ...], features: tuple[Produced, ...], done: _Batch
) -> Handled:
    letters, reasons = dead_letters_of(pipeline, done.refused, done.batch.letter_bytes_max)
    return Handled(
        predictions=predictions, features=features, dead_letters=letters, reasons=reasons, late=done.late,
        duplicates=done.duplicates, unmatched=done.unmatched,
    )  # fmt: skip
