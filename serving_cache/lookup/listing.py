"""Step 4 and 5 of a fresh computation where the prediction is a list: histories, then the items in question, then rank.

The same functions as the stream's, on the same online features: one set of features has one list, whoever computes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from almanac.clock import at_micros
from almanac.errors import FeatureError, PredictionError
from almanac.ladder import Candidate, Source, Unmade
from almanac.list_scoring import Scores, rank_each
from almanac.partitioning import EntityKey
from almanac.ragged import picked
from almanac.ranked import RankedList
from almanac.ranking import HISTORY
from almanac.ranking_declared import Ranking
from features.online_reading import PRESENT, Features
from features.rankable import Range, entities_of, items_in_question, need_items, placed
from serving_cache.lookup.online import Read
from serving_cache.lookup.predicting import Made, Question, flattened

Ask = Callable[[str, Sequence[Any]], Awaitable[Read]]
"""Reads online features of a service: fails as `serving_cache.lookup.online.OnlineFeatures.read` does."""
Away = Callable[..., Awaitable[Any]]
"""Calls a function with arguments in a thread."""


async def listed(asked: Question, model: Scores, model_id: str, ask: Ask, away: Away) -> dict[EntityKey, Made]:
    """A list for each entity that was wished for, or why there is none.

    Raises:
        FeatureError: there are no items, or what was read of them cannot be used.
        PlaceDown, PlaceUnusable: Redis cannot be asked.
    """
    ranking = _ranking(asked)
    read = await ask(asked.pipeline.features, list(asked.wishes))
    nameless = Unmade(reason=f"this key is no {read.reader.plan.key_type}, as {read.reader.plan.join_key} is")
    found: dict[EntityKey, Made] = {entity: nameless for entity in asked.wishes if entity not in read.rows}
    for entities, features in await away(_decoded, asked, read, found):
        kept = _usable(entities, features, found)
        if not kept:
            continue
        _, histories = picked(features.lists[HISTORY], np.array(kept))
        asking = items_in_question(histories)
        keys = next(asking)
        while True:
            answer = await ask(ranking.features, keys)
            items = answer.reader.decode(flattened({key: answer.rows[key] for key in keys}), asked.now)
            try:
                keys = asking.send(items)
            except StopIteration as end:
                span = need_items(end.value, asked.pipeline, ranking.features)
                break
        found |= await away(_ranked, asked, [(entities[at], at) for at in kept], features, span, (model, model_id))
    return found


def _ranking(asked: Question) -> Ranking:
    if asked.pipeline.ranking is None:
        raise AssertionError("a list is computed only where a ranking is declared")
    return asked.pipeline.ranking


def _decoded(asked: Question, read: Read, found: dict[EntityKey, Made]) -> list[tuple[list[EntityKey], Features]]:
    """All rows at once; if one of them is damaged one by one, for the others shall not pay for it."""
    if not read.rows:
        return []
    try:
        return [(list(read.rows), read.reader.decode(flattened(read.rows), asked.now))]
    except FeatureError as error:
        if len(read.rows) == 1:
            found.update(dict.fromkeys(read.rows, Unmade(reason=str(error))))
            return []
    each = [_decoded(asked, Read(read.reader, {entity: row}), found) for entity, row in read.rows.items()]
    return [group for groups in each for group in groups]


def _usable(entities: Sequence[EntityKey], features: Features, found: dict[EntityKey, Made]) -> list[int]:
    """Places of the entities that have a history; of the others is said why not."""
    present = np.logical_and.reduce([view.status == PRESENT for view in features.views])
    kept = []
    for at, entity in enumerate(entities):
        if present[at]:
            kept.append(at)
        else:
            found[entity] = Unmade(reason=f"no usable online features: {', '.join(features.lacking[at])}")
    return kept


def _ranked(
    asked: Question,
    chosen: Sequence[tuple[EntityKey, int]],
    features: Features,
    span: Range,
    by: tuple[Scores, str],
) -> dict[EntityKey, Made]:
    places = [at for _, at in chosen]
    moments = span.moments(features.views[0].times[places])
    found: dict[EntityKey, Made] = {}
    wanted = []
    for number, (entity, at) in enumerate(chosen):
        as_of = at_micros(moments[number])
        why = asked.wishes[entity].why_not(as_of, asked.terms, asked.now)
        if why is not None:
            found[entity] = Unmade(reason=why)
        else:
            wanted.append((entity, at, number, as_of))
    if not wanted:
        return found
    rows = np.array([at for _, at, _, _ in wanted])
    lists = {name: picked(held, rows)[1] for name, held in features.lists.items()}
    columns = {name: values[rows] for name, values in features.columns.items()}
    keys = [entity for entity, _, _, _ in wanted]
    at_moments = moments[[number for _, _, number, _ in wanted]]
    entities = placed(entities_of(asked.pipeline, keys, at_moments, columns, lists), span.items)
    for (entity, _, _, as_of), outcome in zip(
        wanted, rank_each(entities, span.items, by[0], _ranking(asked)), strict=True
    ):
        found[entity] = _made(asked, outcome, as_of, by[1])
    return found


def _made(asked: Question, outcome: RankedList | PredictionError, as_of: datetime, model_id: str) -> Made:
    if isinstance(outcome, PredictionError):
        return Unmade(reason=str(outcome))
    if not outcome.items:
        return Unmade(reason="no item is left to recommend")
    values: Mapping[str, Any] = {asked.pipeline.output_names[0]: outcome}
    return Candidate(values=values, source=Source.FRESH, as_of=as_of, computed_at=asked.now, model=model_id)
