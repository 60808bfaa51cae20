"""The part of `MemoryRecord` that reads what is published, and keeps overlays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from almanac.decisions import is_newer, newest
from almanac.errors import BlockError, UsageError
from almanac.generation_states import Board
from almanac.pipeline import Pipeline
from serving_cache.postgres_rows import unknown_generation
from serving_cache.records import GenerationRecord, ManifestEntry, OverlayRecord, Pointer
from tests.simulator import stored
from tests.simulator.hub import Hub
from tests.simulator.stored import Stored

T = TypeVar("T")


class Reading:
    """What everybody may ask; each question is one snapshot."""

    hub: Hub
    board: Board
    moved_at: datetime
    generations_by_number: dict[int, Stored]
    overlay: dict[tuple[str, str], tuple[OverlayRecord, datetime]]

    def pointer(self, pipeline: str) -> Pointer | None:
        return self._transaction("pointer", self._pointer)

    def generations(self, pipeline: str, limit: int = 20) -> list[GenerationRecord]:
        return [self.generations_by_number[n].record for n in sorted(self.generations_by_number, reverse=True)][:limit]

    def generation(self, pipeline: str, generation: int) -> GenerationRecord | None:
        found = self.generations_by_number.get(generation)
        return None if found is None else found.record

    def manifest(self, pipeline: str, generation: int) -> dict[int, ManifestEntry]:
        def act() -> dict[int, ManifestEntry]:
            found = self.generations_by_number.get(generation)
            return {} if found is None else dict(found.manifest)

        return self._transaction("manifest", act)

    def blocks(self, pipeline: Pipeline, generation: int, partitions: Sequence[int]) -> dict[str, bytes]:
        return self._transaction("blocks", lambda: self._blocks(pipeline, generation, partitions))

    def head(self, partitions: Sequence[int]) -> tuple[Pointer | None, dict[int, ManifestEntry]]:
        """Pointer and entries of its generation in one snapshot, as a lookup reads them."""

        def act() -> tuple[Pointer | None, dict[int, ManifestEntry]]:
            pointer = self._pointer()
            if pointer is None:
                return None, {}
            manifest = self.generations_by_number[pointer.generation.generation].manifest
            return pointer, {p: manifest[p] for p in partitions if p in manifest}

        return self._transaction("head", act)

    def rows(self, origin: int, partition: int) -> bytes | None:
        """A partition's rows; None if its table was dropped."""
        return self._transaction("rows", lambda: (self.generations_by_number[origin].table or {}).get(partition))

    # Overlays

    def now(self) -> datetime:
        return self.hub.now()

    def put_overlays(self, pipeline: str, records: Sequence[OverlayRecord]) -> int:
        def act() -> int:
            written = 0
            for record in newest(records):
                stored = self.overlay.get((record.entity, record.model))
                if is_newer(record.sequence, None if stored is None else stored[0].sequence):
                    self.overlay[record.entity, record.model] = (record, self.hub.now())
                    written += 1
            return written

        return self._transaction("put overlays", act)

    def overlays(self, pipeline: str, model: str, since: datetime) -> list[OverlayRecord]:
        return [record for page in self.overlay_pages(pipeline, model, since) for record in page]

    def overlay_pages(
        self, pipeline: str, model: str | None, since: datetime, written_since: datetime | None = None
    ) -> Iterator[list[OverlayRecord]]:
        def act() -> list[OverlayRecord]:
            return [
                record
                for (_, made_by), (record, written_at) in sorted(self.overlay.items())
                if model in (None, made_by)
                and record.as_of >= since
                and (written_since is None or written_at >= written_since)
            ]

        found = self._transaction("overlays", act)
        if found:
            yield found

    # Inside

    def _transaction(self, operation: str, act: Callable[[], T]) -> T:
        self.hub.step(f"postgres {operation}")
        found = act()
        self.hub.answer(f"postgres {operation}")
        return found

    def _need(self, pipeline: str, generation: int) -> Stored:
        found = self.generations_by_number.get(generation)
        if found is None:
            raise unknown_generation(pipeline, generation)
        return found

    def _pointer(self) -> Pointer | None:
        board = self.board
        if board.current is None:
            return None
        previous = None if board.previous is None else self.generations_by_number[board.previous].record
        return Pointer(
            pipeline=board.pipeline,
            epoch=board.epoch,
            generation=self.generations_by_number[board.current].record,
            previous=previous,
            moved_at=self.moved_at,
        )

    def _blocks(self, pipeline: Pipeline, generation: int, partitions: Sequence[int]) -> dict[str, bytes]:
        manifest = self._need(pipeline.name, generation).manifest
        absent = set(partitions) - set(manifest)
        if absent:
            raise UsageError(f"generation {generation} has no partition {min(absent)}")
        found = {}
        for partition in partitions:
            entry = manifest[partition]
            table = self.generations_by_number[entry.origin].table
            data = None if table is None else table.get(partition)
            if data is None or stored.hash_of(data) != entry.block_hash:
                raise BlockError(f"rows of partition {partition} are gone, or not those that were published")
            found[entry.block_hash] = data
        return found
