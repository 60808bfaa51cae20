"""Histories online: what is known of entities whose state is what their events amount to, and the items to rank.

A row that is missing is either an entity's that nobody has seen, whose history then begins, or one of a store that
was emptied or is being filled, which must not be begun anew. A materialization leaves a token for each partition
that it has filled, and an emptied store has none: by that the two are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from almanac.errors import DeclarationError, FeatureError
from almanac.pipeline import Pipeline
from almanac.ragged import Ragged
from almanac.settings import Settings
from features.materialize.watermarks import distrust, token_key
from features.online import OnlineFeatures, open_redis, redis_errors
from features.online_reading import Features
from features.rankable import Range, Rows, history_rows, items_in_question, need_items

if TYPE_CHECKING:
    import pyarrow as pa


ITEMS_KEPT = timedelta(seconds=5)
"""Time after which items are read again, whoever wrote them; rows expire so much later at most."""
ITEMS_KEPT_MAX = 50_000
"""Items that are kept; beyond it those of the next batch alone."""


class _Kept:
    """The items that were read, until a materialization has written others.

    A materialization leaves its tokens after its rows, and they are looked at before rows are read. So none is kept
    beyond the materialization that replaced it, though it may have been read while that was at work.
    """

    def __init__(self) -> None:
        self._rows = Rows()
        self._written: Any = None
        self._since = datetime.min.replace(tzinfo=UTC)

    def of(self, written: Any, at: datetime) -> Rows:
        """What is kept of the items that were written so, and is young enough at a moment."""
        young = timedelta(0) <= at - self._since <= ITEMS_KEPT
        if written != self._written or not young or len(self._rows.known) > ITEMS_KEPT_MAX:
            self._rows, self._written, self._since = Rows(), written, at
        return self._rows


class OnlineHistories:
    """The online store of one pipeline with a ranking; made once in a process that lives long."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        """Read the definitions.

        Raises:
            DeclarationError: the pipeline has no ranking.
            FeatureError: a FeatureService is not registered, or the entity's has not just one view.
            Unavailable: the registry does not answer.
        """
        if pipeline.ranking is None:
            raise DeclarationError(f"pipeline {pipeline.name} ranks nothing: declare ranking=Ranking(…)")
        self._pipeline, self._ranking = pipeline, pipeline.ranking
        self._redis = open_redis(settings.need("redis_url"))
        self._entities = OnlineFeatures(pipeline, settings)
        self._items = OnlineFeatures(
            replace(pipeline, features=pipeline.ranking.features, ranking=None, default=None), settings
        )
        self._view = self._entities.views[0]
        self._kept = _Kept()
        if len(self._entities.views) != 1:
            raise FeatureError(
                f"{pipeline.features} has {len(self._entities.views)} views, events with lines fold into one: "
                "give the FeatureService the pushed view alone"
            )

    def read(self, entities: Sequence[Any]) -> dict[Any, tuple[dict[str, Any], int, int] | None]:
        """Each entity's history, the moment of its newest event and when it was made; None of one that is new.

        Raises:
            FeatureError: the store was emptied or is not filled yet, or holds no histories.
            Unavailable: Redis does not answer.
        """
        found = self._entities.features(entities)
        rows, view = history_rows(found), found.views[0]
        created = view.created if view.created is not None else view.times
        held = {
            entity: None if row is None else (row, int(at), int(made))
            for entity, row, at, made in zip(entities, rows, view.times.tolist(), created.tolist(), strict=True)
        }
        self._need_filled([entity for entity, row in held.items() if row is None])
        return held

    def items(self, histories: Ragged, at: datetime) -> Range:
        """The items that lists of these entities may hold, and those by which they are chosen.

        What was read is kept: see `_Kept`.

        Args:
            histories: keys of each entity's own items, newest first.
            at: rows older than their view's TTL at this moment count as missing.

        Raises:
            FeatureError: there are no items in the store.
            Unavailable: Redis does not answer.
        """
        asking = items_in_question(histories, self._kept.of(self._written(), at))
        found: Features | None = None
        while True:
            try:
                keys = next(asking) if found is None else asking.send(found)
            except StopIteration as end:
                if not end.value.items.keys or not end.value.popular:
                    self._kept = _Kept()
                return need_items(end.value, self._pipeline, self._ranking.features)
            found = self._items.features(keys, at=at)

    def push(self, rows: pa.Table) -> None:
        """Write histories, each over an older one: see `OnlineFeatures.push`."""
        self._entities.push(rows)

    def lost(self, entities: Sequence[Any]) -> None:
        """Have the next materialization send the histories of these entities' partitions whole.

        Raises:
            Unavailable: Redis does not answer.
        """
        partitions = sorted({self._pipeline.partitions.partition_of(entity) for entity in entities})
        with redis_errors():
            distrust(self._redis, self._pipeline.name, self._view, partitions)

    def _written(self) -> tuple[Any, ...]:
        """Tokens of the materializations that wrote the items last: others once there are other rows."""
        fields = [f"{view}:{n}" for view in self._items.views for n in range(self._pipeline.partitions.count)]
        with redis_errors():
            found: Any = self._redis.hmget(token_key(self._pipeline.name), fields)
        return tuple(found)

    def _need_filled(self, absent: Sequence[Any]) -> None:
        if not absent:
            return
        partitions = sorted({self._pipeline.partitions.partition_of(entity) for entity in absent})
        with redis_errors():
            tokens: Any = self._redis.hmget(token_key(self._pipeline.name), [f"{self._view}:{n}" for n in partitions])
        empty = [number for number, token in zip(partitions, tokens, strict=True) if token is None]
        if empty:
            raise FeatureError(
                f"the online store has no {self._view} of {self._pipeline.partitions.label(empty[0])} "
                f"(and {len(empty) - 1} more): run the pipeline's DAG, or `almanac materialize {self._pipeline.name}`"
            )
