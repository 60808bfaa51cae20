"""The stores in memory as the suite of `tests/contract/test_stores.py` sees them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import msgspec

from almanac.generation_states import Board
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.records import ManifestEntry, OverlayRecord
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.simulator.cache import MemoryCache
from tests.simulator.hub import CALM, START, Hub
from tests.simulator.record import MemoryRecord

Shown = set[tuple[object, ...]]
MODELS = ("weather-v1", "weather-v2")
ENTITIES = ("1", "2", "käse")


def shown(overlay: OverlayRecord) -> tuple[object, ...]:
    """An overlay as something that fits a set."""
    return (overlay.entity, overlay.model, overlay.sequence, msgspec.json.encode(overlay.values), overlay.computed_at)


class MemoryRecordSubject(MemoryRecord):
    """One pipeline at a time: another name is another record."""

    def __init__(self) -> None:
        super().__init__(Hub(0, CALM))

    @property
    def record(self) -> PostgresStore:
        return cast(PostgresStore, self)

    def prepared(self, pipeline: Pipeline) -> None:
        super().__init__(self.hub)

    def put_overlays(self, pipeline: str, records: Sequence[OverlayRecord]) -> int:
        if self.board.pipeline != pipeline:
            self.overlay, self.board = {}, Board(pipeline=pipeline)
        return super().put_overlays(pipeline, records)

    def overlays_of(self, pipeline: str) -> Shown:
        return {shown(o) for model in MODELS for o in self.overlays(pipeline, model, START - timedelta(days=1))}

    def follow(self, pipeline: Pipeline) -> None:
        """It is where it is published."""

    def blocks_of(self, pipeline: Pipeline, generation: int, entries: list[ManifestEntry]) -> dict[str, bytes]:
        return self.blocks(pipeline, generation, [entry.partition for entry in entries])


class MemoryCacheSubject(MemoryCache):
    """Follows a record in memory by the project's own `sync_redis`."""

    def __init__(self) -> None:
        super().__init__(Hub(0, CALM))
        self._record = MemoryRecordSubject()

    @property
    def record(self) -> PostgresStore:
        return self._record.record

    def prepared(self, pipeline: Pipeline) -> None:
        self._record.prepared(pipeline)
        self.clear(pipeline.name)

    def overlays_of(self, pipeline: str) -> Shown:
        return {shown(o) for entity in ENTITIES for o in self.overlays(pipeline, entity).values()}

    def follow(self, pipeline: Pipeline) -> None:
        sync_redis(pipeline, self.record, cast(RedisStore, self))

    def blocks_of(self, pipeline: Pipeline, generation: int, entries: list[ManifestEntry]) -> dict[str, bytes]:
        return self.blocks(pipeline.name, [entry.block_hash for entry in entries])
