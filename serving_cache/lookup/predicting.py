"""From what Redis answered to fresh predictions: pure, given the model. One bad entity does not spoil the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError, PredictionError
from almanac.ladder import Candidate, Compute, Source, Terms, Unmade
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from features.online_reading import Features, Reader, brought_forward

Made = Candidate | Unmade
NAMED_MAX = 3  # views or columns that a reason names


class Scores(Protocol):
    """What scoring needs of a model: `almanac.scoring.Scorer` is one."""

    @property
    def model_id(self) -> str:
        """Id of the version."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Feature columns, in order."""
        ...

    def usable(self, name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which numbers of an input column the model can take."""
        ...

    def score(self, features: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[np.float32]]:
        """One array per output."""
        ...


@dataclass(frozen=True)
class Question:
    """What is asked of every entity: the ladder's wishes, the request's terms, and the moment to count ages to."""

    pipeline: Pipeline
    wishes: Mapping[EntityKey, Compute]
    terms: Terms
    now: datetime


def predict(
    asked: Question, reader: Reader, rows: Mapping[EntityKey, Sequence[bytes | None]], scorer: Scores
) -> dict[EntityKey, Made]:
    """A prediction for each entity that was wished for, or why there is none.

    Args:
        rows: what Redis answered for each entity that has a key.
    """
    nameless = Unmade(reason=f"this key is no {reader.plan.key_type}, as {reader.plan.join_key} is")
    found: dict[EntityKey, Made] = {entity: nameless for entity in asked.wishes if entity not in rows}
    return found | _rows(asked, reader, rows, scorer)


def _rows(
    asked: Question, reader: Reader, rows: Mapping[EntityKey, Sequence[bytes | None]], scorer: Scores
) -> dict[EntityKey, Made]:
    """All rows at once; if one of them is damaged one by one, for the others shall not pay for it."""
    if not rows:
        return {}
    try:
        return _group(asked, list(rows), reader.decode(flattened(rows), asked.now), scorer)
    except FeatureError as error:
        if len(rows) == 1:
            return dict.fromkeys(rows, Unmade(reason=str(error)))
    found: dict[EntityKey, Made] = {}
    for entity, row in rows.items():
        found |= _rows(asked, reader, {entity: row}, scorer)
    return found


def flattened(rows: Mapping[EntityKey, Sequence[bytes | None]]) -> list[bytes | None]:
    """The values of all entities, a view after the other."""
    return [value for values in zip(*rows.values(), strict=True) for value in values]


def _group(asked: Question, entities: list[EntityKey], features: Features, scorer: Scores) -> dict[EntityKey, Made]:
    """Predictions from features that could all be decoded.

    Raises:
        FeatureError: the plan lacks a column that the model needs.
    """
    absent = [name for name in scorer.inputs if name not in features.columns]
    if absent:
        raise FeatureError(f"the online features lack {_named(absent)}, which {scorer.model_id} needs")
    columns = brought_forward(asked.pipeline, features)
    usable = np.stack([scorer.usable(name, columns[name]) for name in scorer.inputs])
    whole: NDArray[np.bool_] = np.asarray(usable.all(axis=0))
    found: dict[EntityKey, Made] = {}
    kept: list[int] = []
    for index, entity in enumerate(entities):
        as_of = features.as_of[index]
        if as_of is None or not whole[index]:
            found[entity] = Unmade(reason=_lacking(features, index, columns, scorer))
            continue
        why = asked.wishes[entity].why_not(as_of, asked.terms, asked.now)
        if why is not None:
            found[entity] = Unmade(reason=why)
        else:
            kept.append(index)
    for index, outcome in _scored(kept, columns, scorer):
        entity, as_of = entities[index], features.as_of[index]
        found[entity] = outcome if isinstance(outcome, Unmade) else _candidate(outcome, as_of, scorer, asked.now)
    return found


def _scored(
    kept: list[int], columns: Mapping[str, NDArray[Any]], scorer: Scores
) -> list[tuple[int, dict[str, float] | Unmade]]:
    """Score rows at once; if the model answers NaN for some, one by one, so that only those have no prediction."""
    if not kept:
        return []
    try:
        outputs = scorer.score({name: columns[name][kept] for name in scorer.inputs})
        return [
            (index, {name: float(values[row]) for name, values in outputs.items()}) for row, index in enumerate(kept)
        ]
    except PredictionError as error:
        if len(kept) == 1:
            return [(kept[0], Unmade(reason=str(error)))]
    return [found for index in kept for found in _scored([index], columns, scorer)]


def _candidate(values: dict[str, float], as_of: datetime | None, scorer: Scores, now: datetime) -> Candidate:
    return Candidate(values=values, source=Source.FRESH, as_of=as_of, computed_at=now, model=scorer.model_id)


def _lacking(features: Features, index: int, columns: Mapping[str, NDArray[Any]], scorer: Scores) -> str:
    """Why a row cannot be scored."""
    if features.lacking[index]:
        return f"no usable online features: {_named(list(features.lacking[index]))}"
    null = [name for name in scorer.inputs if not scorer.usable(name, columns[name][index : index + 1])[0]]
    return f"no usable online features: {_named(null)} null" if null else "no observation is among the online features"


def _named(names: list[str]) -> str:
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
