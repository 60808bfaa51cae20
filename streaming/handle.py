"""Handle: from the records of one batch to what is written for them. Pure, given the online features.

Two steps, with the reading of features between them (docs: steps 2 to 4):
`sort` tells events from dead letters and duplicates, `score` makes predictions.

Which failures are whose:
- An event that cannot be believed, or whose cell has no features, or for which
  the model answers NaN, is terminal: a dead letter, and the stream goes on.
- A feature column that is missing for every cell, or a store that has no
  features for anyone, is not the event's fault: `FeatureError` is left to the
  worker, which pauses and tries again with the same events.
- An event that is older than its entity's online features is late: features as
  they were at the event are gone, and a prediction from those of its future
  would be a lie. It is no dead letter either: nothing is wrong with it.
Where events are scored by two models, each fails for itself: what one cannot
predict the other still does, and an event is a dead letter, or waited with, only
if neither can.
An event that is late or without features still gives a feature row: what was
observed is true, and online store and history shall know it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from almanac.clock import floor_hour
from almanac.errors import EventError, FeatureError, PredictionError
from almanac.partitioning import EntityKey
from almanac.pipeline import GridObservations, Pipeline
from features.forward import bring_table_forward
from features.online import NEWEST_AT
from features.online_reading import HAS_EXPIRED as HAS_EXPIRED
from streaming.duplicates import Duplicates
from streaming.events import Event, Observed
from streaming.guarding import Home, failed, read_event
from streaming.models import Model, Predicted, by_each, merged
from streaming.records import (
    Consumed,
    Produced,
    dead_letter_record,
    feature_record,
    prediction_record,
)
from streaming.sizes import LETTER_BYTES_MAX

FEATURES_MISSING = "features-missing"
FEATURES_EXPIRED = "features-expired"
PREDICTION_INVALID = "prediction-invalid"
RETURN_WITHOUT_PURCHASE = "return-without-purchase"
HISTORY_LOST = "history-lost"
"""Where events carry lines: see `streaming.folding`."""

ObservationRow = Callable[[Pipeline, Any, datetime, Observed], Mapping[str, Any]]
"""The observation view's row for one event: entity, time and what was observed go in."""

FEATURES_NAMED_MAX = 3


class Scores(Protocol):
    """What scoring needs of a model: `almanac.scoring.Scorer` is one."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Feature columns, in order."""
        ...

    def usable(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which numbers of an input column the model can take."""
        ...

    def score(self, features: pa.Table) -> Mapping[str, np.ndarray[Any, Any]]:
        """One array per output."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """The records of a batch, in offset order, after they were read.

    Args:
        events: believable ones, each with where it came from.
        refused: records that become dead letters, each with why.
        duplicates: how many were dropped.
        seen: the memory of duplicates, for the worker to merge once the batch is committed.
        forwards: events that stand outside their entity's home partition, as they are to be written again.
        letter_bytes_max: size of a dead letter, in bytes.
    """

    events: tuple[tuple[Consumed, Event], ...]
    refused: tuple[tuple[Consumed, EventError], ...]
    duplicates: int
    seen: Duplicates
    forwards: tuple[Produced, ...] = ()
    letter_bytes_max: int = LETTER_BYTES_MAX

    @property
    def entities(self) -> list[EntityKey]:
        """Each entity once, in order of first appearance."""
        return list(dict.fromkeys(event.entity for _, event in self.events))

    def asked(self, now: datetime) -> list[tuple[datetime, list[EntityKey]]]:
        """Each entity once, by the hour of its last event, with the moment at which its features must not have expired.

        That is the last event's of the hour: an event that waited is scored from
        features as they were, and those may be older than what is usable now.
        """
        last: dict[EntityKey, datetime] = {}
        for _, event in self.events:
            last[event.entity] = max(last.get(event.entity, event.observed_at), event.observed_at)
        hours: dict[datetime, list[EntityKey]] = {}
        for entity, moment in last.items():
            hours.setdefault(floor_hour(moment), []).append(entity)
        return [(min(max(last[e] for e in hours[hour]), now), hours[hour]) for hour in sorted(hours)]


@dataclass(frozen=True, kw_only=True)
class Handled:
    """What one batch writes.

    Args:
        late: how many of its events came too late for a prediction.
        reasons: how many of its dead letters have which reason.
        duplicates: how many of its events its entities' histories held already.
        unmatched: how many returns were of what a history does not have, beside lines that counted.
        unscored: how many predictions one model did not make of an event that another one predicted.
        failed: of each model that could not be used for the batch, why, by its id.
    """

    predictions: tuple[Produced, ...]
    features: tuple[Produced, ...]
    dead_letters: tuple[Produced, ...]
    late: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    unmatched: int = 0
    unscored: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def records(self) -> tuple[Produced, ...]:
        """All of it."""
        return self.predictions + self.features + self.dead_letters


def sort(
    records: Sequence[Consumed], pipeline: Pipeline, seen: Duplicates, now: datetime, home: Home | None = None
) -> Sorted:
    """Step 2, parse: tell events from what cannot be handled, from duplicates and from what is another partition's.

    Args:
        home: the home partition of an entity; None where events are handled wherever they stand.
    """
    events, refused, forwards, duplicates, branch = [], [], list[Produced](), 0, seen.branch()
    for record in sorted(records, key=lambda found: (found.topic, found.partition, found.offset)):
        try:
            event, forward = read_event(record, pipeline, now, home)
            known = forward is None and branch.knows(event)
        except EventError as error:
            refused.append((record, error))
            continue
        except Exception as error:  # noqa: BLE001 - whatever a record does to this code, the others go on
            refused.append((record, failed(error)))
            continue
        if forward is not None:
            forwards.append(forward)
        elif known:
            duplicates += 1
        else:
            branch.remember(event)
            events.append((record, event))
    return Sorted(
        events=tuple(events), refused=tuple(refused), duplicates=duplicates, seen=branch, forwards=tuple(forwards)
    )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What events are scored with.

    Args:
        models: one, or two; the first one's lack of features is what is told of an event that none can score.
        observation_row: makes the observation view's columns of an event.
        given_up: called with the entities that lack features, and which; raises `FeatureError` if they may come,
            and says otherwise for each entity what is the matter with its views, as far as that is known.
    """

    models: Sequence[Model[Scores]]
    observation_row: ObservationRow
    given_up: Callable[[Mapping[EntityKey, Sequence[str]]], Mapping[EntityKey, Sequence[str]]] = lambda lacking: {}


def score(batch: Sorted, online: pa.Table | None, pipeline: Pipeline, scoring: Scoring, now: datetime) -> Handled:
    """Step 4, score: predictions from the features as they were at each event.

    Args:
        batch: what `sort` found.
        online: online features of the batch's entities: the entity's column and feature columns, null
            where missing, and `NEWEST_AT`, if late events are to be told; None if the batch has no events.
        now: aware time, written as `computed_at`.

    Raises:
        FeatureError: a column that every model needs is missing from `online` altogether, or `given_up` says so.
    """
    refused = list(batch.refused)
    if online is None or not batch.events:
        return without_events(batch, pipeline)
    late = _late(batch, online, pipeline)
    found = _outcomes(batch, online, pipeline, scoring, late)
    why = scoring.given_up({batch.events[index][1].entity: names for index, names in found.lacking.items()})
    for index, names in found.lacking.items():
        record, event = batch.events[index]
        refused.append((record, _no_features(pipeline, event.entity, names, why.get(event.entity, ()))))
    refused += [(batch.events[at][0], EventError(PREDICTION_INVALID, str(e))) for at, e in found.errors.items()]
    predictions = [
        prediction_record(pipeline, *batch.events[index], values, model, now)
        for index in sorted(found.values)
        for model in scoring.models
        if (values := found.values[index].get(model.id))
    ]
    given_up = {id(origin) for origin, _ in refused}
    for origin, event in batch.events:
        if id(origin) in given_up:
            batch.seen.forget(event)
    letters, reasons = dead_letters_of(pipeline, refused, batch.letter_bytes_max)
    return Handled(
        predictions=tuple(predictions),
        features=tuple(feature_record(pipeline, origin, event) for origin, event in batch.events),
        dead_letters=letters,
        late=len(late),
        reasons=reasons,
        unscored=found.unscored(len(scoring.models)),
        failed=found.failed,
    )


def without_events(batch: Sorted, pipeline: Pipeline) -> Handled:
    """What a batch writes of which nothing could be believed."""
    letters, reasons = dead_letters_of(pipeline, list(batch.refused), batch.letter_bytes_max)
    return Handled(predictions=(), features=(), dead_letters=letters, reasons=reasons)


def _outcomes(batch: Sorted, online: pa.Table, pipeline: Pipeline, scoring: Scoring, late: set[int]) -> Predicted:
    """Score the events that are in time by each model."""

    def by(model: Model[Scores]) -> tuple[dict[int, list[str]], list[tuple[int, dict[str, float] | PredictionError]]]:
        table = _as_of_events(batch, online, pipeline, scoring, model.scorer.inputs)
        complete, lacking = _split(batch, table, model.scorer, late)
        return lacking, _predict(complete, model.scorer, pipeline)

    done, failed = by_each(scoring.models, by)
    lacks = [lacking for _, (lacking, _) in done]
    found = merged([(model.id, at, outcome) for model, (_, outcomes) in done for at, outcome in outcomes])
    lacking = {at: names for at, names in lacks[0].items() if all(at in each for each in lacks)}
    return replace(found, lacking=lacking, failed=failed)


def _no_features(pipeline: Pipeline, entity: EntityKey, names: Sequence[str], views: Sequence[str]) -> EventError:
    """The error of an event without features: expired if a view's row is there and too old, otherwise missing."""
    expired = any(HAS_EXPIRED in view for view in views)
    said = f" ({', '.join(views)})" if views else ""
    advice = "run the pipeline's DAG, then send the event again"
    if not expired:  # nobody can say whether it is new or a slip of the pen
        advice = (
            f"correct the {pipeline.entity} if it is mistyped; if it is new, send the event again after the pipeline's "
            "next run"
        )
    return EventError(
        FEATURES_EXPIRED if expired else FEATURES_MISSING,
        f"{pipeline.entity} {entity} has no usable feature {named(names)}{said}: {advice}",
    )


def dead_letters_of(
    pipeline: Pipeline, refused: list[tuple[Consumed, EventError]], bytes_max: int
) -> tuple[tuple[Produced, ...], Mapping[str, int]]:
    """The dead letters of what was refused, in offset order, and how many have which reason."""
    in_order = sorted(refused, key=lambda found: (found[0].topic, found[0].partition, found[0].offset))
    letters = tuple(dead_letter_record(pipeline, origin, error, bytes_max) for origin, error in in_order)
    return letters, Counter(error.reason for _, error in refused)


def nothing_known(online: pa.Table, own: Collection[str]) -> bool:
    """Whether the online store answered with nulls alone: it was emptied, or not filled yet.

    Args:
        own: columns that events bring themselves, which say nothing of the rest.
    """
    others = [online[name] for name in online.column_names if name not in own and name != NEWEST_AT]
    return bool(others) and all(column.null_count == online.num_rows for column in others)


def _late(batch: Sorted, online: pa.Table, pipeline: Pipeline) -> set[int]:
    """The events whose entity's online features are of a later time than the event."""
    if NEWEST_AT not in online.column_names:
        return set()
    newest = dict(zip(online[pipeline.entity].to_pylist(), online[NEWEST_AT].to_pylist(), strict=True))
    return {
        index
        for index, (_, event) in enumerate(batch.events)
        if (moment := newest[event.entity]) is not None and moment > event.observed_at
    }


def _as_of_events(
    batch: Sorted, online: pa.Table, pipeline: Pipeline, scoring: Scoring, inputs: Collection[str]
) -> pa.Table:
    """One row of features per event: the entity's online features, its observation view replaced by the event's own.

    History and neighbours are brought forward from the hour they were materialized for to the event's moment.
    """
    row_of = {entity: row for row, entity in enumerate(online[pipeline.entity].to_pylist())}
    table = online.take(pa.array([row_of[event.entity] for _, event in batch.events], type=pa.int64()))
    rows = [
        scoring.observation_row(pipeline, event.entity, event.observed_at, event.value) for _, event in batch.events
    ]
    for name in rows[0] if rows else ():
        if name in inputs:
            column = pa.array([float(row[name]) for row in rows], type=pa.float64())
            at = table.schema.get_field_index(name)
            table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    if not isinstance(pipeline.source, GridObservations):
        return table
    return bring_table_forward(table, [event.observed_at for _, event in batch.events], pipeline.source.variable)


def _split(
    batch: Sorted, table: pa.Table, scorer: Scores, late: set[int]
) -> tuple[tuple[list[int], pa.Table], dict[int, list[str]]]:
    """The events in time whose features are complete, with their rows; for each other in time, what is missing."""
    lacking: dict[int, list[str]] = {}
    absent = [name for name in scorer.inputs if name not in table.column_names]
    if absent:
        raise FeatureError(
            f"the online features lack {', '.join(absent)}: apply the feature definitions that the model was trained on"
        )
    for name in scorer.inputs:
        for index in np.flatnonzero(~scorer.usable(name, table[name].to_numpy())):
            if int(index) not in late:
                lacking.setdefault(int(index), []).append(name)
    kept = [index for index in range(len(batch.events)) if index not in lacking and index not in late]
    return (kept, table.take(pa.array(kept, type=pa.int64()))), lacking


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - FEATURES_NAMED_MAX
    return ", ".join(names[:FEATURES_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _predict(
    complete: tuple[list[int], pa.Table], scorer: Scores, pipeline: Pipeline
) -> list[tuple[int, dict[str, float] | PredictionError]]:
    """Score all rows at once; if the model answers NaN for some, one by one, so that only those are refused."""
    kept, table = complete
    if not kept:
        return []
    try:
        columns = scorer.score(table)
        return [
            (index, {name: float(columns[name][row]) for name in pipeline.output_names})
            for row, index in enumerate(kept)
        ]
    except PredictionError as error:
        if len(kept) == 1:
            return [(kept[0], error)]
    return [
        found for row, index in enumerate(kept) for found in _predict(([index], table.slice(row, 1)), scorer, pipeline)
    ]
