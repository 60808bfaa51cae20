"""Redis as a place: the pointer and overlays, then manifests, then blocks; three round trips however many entities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from almanac.clock import utc_now
from almanac.errors import BlockError
from almanac.ladder import Candidate, Candidates
from almanac.list_blocks import AnyBlock, unpacked
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from serving_cache import layout
from serving_cache.lookup.candidates import (
    clock_shifts,
    from_overlay,
    from_row,
    generation_summary,
    held_default,
    need_same_partitions,
    values_of,
)
from serving_cache.lookup.places import EntityReading, PlaceUnusable, Reading
from serving_cache.lookup.redis_client import redis_failures
from serving_cache.lookup.redis_link import RedisLink
from serving_cache.overlaid import WHOLE, lost, slice_key, slice_of
from serving_cache.records import ManifestEntry, OverlayRecord, Pointer

REDIS_LIMIT_SECONDS = 0.1  # of one round trip


@dataclass(frozen=True)
class _Held:
    """What Redis holds of one generation, as far as the entities need it."""

    exists: bool
    entries: Mapping[int, ManifestEntry]
    blocks: Mapping[str, AnyBlock]

    def gap(self, generation: int, partition: int) -> str | None:
        """What is missing of a partition; None if it is whole, or the generation does not cover it."""
        if not self.exists:
            return f"redis has no manifest of generation {generation}"
        entry = self.entries.get(partition)
        if entry is not None and entry.block_hash not in self.blocks:
            return f"redis misses a block of generation {generation}"
        return None


class RedisPlace:
    """Reads what the generation store wrote to Redis.

    Args:
        url: redis:// URL.
        limit_seconds: how long Redis may take to answer one of a read's round trips.

    Raises:
        UsageError: the URL cannot be read.
    """

    name = "redis"

    def __init__(self, url: str, *, limit_seconds: float = REDIS_LIMIT_SECONDS) -> None:
        self.limit_seconds = limit_seconds
        self._redis = RedisLink(url, limit_seconds=limit_seconds)

    async def read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
        """Everything Redis holds about these entities, by one pointer.

        Raises:
            PlaceDown: it cannot be reached, or did not answer in time.
            PlaceUnusable: it holds no pointer, or something unreadable.
        """
        try:
            with redis_failures():
                return await self._read(pipeline, entities)
        except BlockError:
            raise PlaceUnusable("redis holds something unreadable") from None

    async def current(self, pipeline: Pipeline) -> dict[str, object] | None:
        """The current generation, for people."""
        try:
            with redis_failures():
                [pointer] = await self._redis.ask(("GET", layout.pointer_key(pipeline.name)))
                return generation_summary(self._pointer(pipeline, pointer))
        except BlockError:
            raise PlaceUnusable("redis holds something unreadable") from None

    async def check(self) -> None:
        """Return if Redis answers."""
        with redis_failures():
            await self._redis.ask(("PING",))

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.close()

    async def _read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
        slices = _by_slice(entities)
        pointer_bytes, *answers = await self._redis.ask(
            ("GET", layout.pointer_key(pipeline.name)),
            # Read before the overlays: what is noted must be there by then.
            *(("HMGET", slice_key(pipeline.name, number), WHOLE, *map(str, some)) for number, some in slices.items()),
            *(("HVALS", layout.overlay_key(pipeline.name, str(entity))) for entity in entities),
            entities=len(entities),
        )
        notes, overlays = _notes(slices, answers[: len(slices)]), answers[len(slices) :]
        oldest = utc_now() - pipeline.freshness.usable_for
        pointer = self._pointer(pipeline, pointer_bytes)
        partition_of = {entity: pipeline.partitions.partition_of(entity) for entity in entities}
        current, previous = await self._held(pipeline, pointer, sorted(set(partition_of.values())))
        shown: dict[EntityKey, EntityReading] = {}
        for entity, raw in zip(entities, overlays, strict=True):
            partition = partition_of[entity]
            decoded = [layout.decode_overlay(value) for value in raw]
            generation = pointer.generation
            old = pointer.previous
            row = _candidate(pipeline, entity, partition, generation.generation, current)
            since = oldest if row is None or row.as_of is None else max(row.as_of, oldest)
            shown[entity] = EntityReading(
                candidates=Candidates(
                    generation=generation.generation,
                    model=generation.model,
                    overlays=tuple(from_overlay(overlay, generation, self.name) for overlay in decoded),
                    current=row,
                    previous=_candidate(pipeline, entity, partition, old.generation, previous)
                    if old and previous
                    else None,
                    default=held_default(pipeline, generation),
                ),
                gap=current.gap(generation.generation, partition) or _overlay_gap(notes[entity], decoded, since),
                previous_gap=previous.gap(old.generation, partition) if old and previous else None,
                covered=partition in current.entries,
            )
        return Reading(epoch=pointer.epoch, entities=shown, clock_shifts=clock_shifts(pointer))

    def _pointer(self, pipeline: Pipeline, data: bytes | None) -> Pointer:
        if data is None:
            raise PlaceUnusable(f"redis holds nothing of {pipeline.name}")
        pointer = layout.decode_pointer(data)
        need_same_partitions(pipeline, pointer.generation, self.name)
        return pointer

    async def _held(
        self, pipeline: Pipeline, pointer: Pointer, partitions: Sequence[int]
    ) -> tuple[_Held, _Held | None]:
        """Manifest entries and blocks of the current and the previous generation."""
        numbers = [record.generation for record in (pointer.generation, pointer.previous) if record is not None]
        commands: list[tuple[object, ...]] = []
        for number in numbers:
            key = layout.manifest_key(pipeline.name, number)
            commands += [("EXISTS", key), ("HMGET", key, *partitions)]
        answers = await self._redis.ask(*commands, entities=len(partitions))
        found = []
        for exists, raw in zip(answers[0::2], answers[1::2], strict=True):
            pairs = zip(partitions, raw, strict=True)
            found.append(
                (bool(exists), {p: layout.decode_manifest_entry(data) for p, data in pairs if data is not None})
            )
        hashes = {entry.block_hash for _, entries in found for entry in entries.values()}
        blocks = await self._blocks(pipeline, sorted(hashes))
        held = [_Held(exists, entries, blocks) for exists, entries in found]
        return held[0], held[1] if len(held) > 1 else None

    async def _blocks(self, pipeline: Pipeline, hashes: Iterable[str]) -> dict[str, AnyBlock]:
        names = list(hashes)
        if not names:
            return {}
        [raw] = await self._redis.ask(
            ("MGET", *(layout.block_key(pipeline.name, name) for name in names)), entities=len(names)
        )
        return {name: unpacked(data) for name, data in zip(names, raw, strict=True) if data is not None}


def _by_slice(entities: Sequence[EntityKey]) -> dict[int, list[EntityKey]]:
    """Entities by the slice that notes their overlays."""
    found: dict[int, list[EntityKey]] = {}
    for entity in entities:
        found.setdefault(slice_of(str(entity)), []).append(entity)
    return found


def _notes(
    slices: Mapping[int, Sequence[EntityKey]], answers: Sequence[Sequence[bytes | None]]
) -> dict[EntityKey, tuple[bool, bytes | None]]:
    """Of each entity whether its slice notes every overlay, and what it notes of this one."""
    return {
        entity: (whole is not None, note)
        for entities, (whole, *notes) in zip(slices.values(), answers, strict=True)
        for entity, note in zip(entities, notes, strict=True)
    }


def _overlay_gap(noted: tuple[bool, bytes | None], overlays: Sequence[OverlayRecord], since: datetime) -> str | None:
    """What is missing of an entity's overlays that may change the answer; None if it is whole."""
    whole, note = noted
    if not whole:
        return "redis may have lost overlays"
    return "redis lost an overlay of this entity" if lost(note, overlays, since) else None


def _candidate(pipeline: Pipeline, entity: EntityKey, partition: int, generation: int, held: _Held) -> Candidate | None:
    entry = held.entries.get(partition)
    block = held.blocks.get(entry.block_hash) if entry is not None else None
    row = block.row(entity) if block is not None else None
    if entry is None or row is None:
        return None
    return from_row(values_of(pipeline, row), entry, generation, RedisPlace.name)
