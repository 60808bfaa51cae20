"""From the store's records to the ladder's candidates: alike for every place."""

from __future__ import annotations

from collections.abc import Mapping

from almanac.clock import format_time
from almanac.ladder import Candidate, Source
from almanac.pipeline import Pipeline
from almanac.ranked import RankedList, Value
from serving_cache.lookup.places import PlaceUnusable
from serving_cache.records import GenerationRecord, ManifestEntry, OverlayRecord, Pointer


def from_overlay(overlay: OverlayRecord, current: GenerationRecord, place: str) -> Candidate:
    """The stream's prediction or a fresh one; it answers under the generation whose model it shares."""
    return Candidate(
        values=overlay.values,
        source=Source.FRESH if overlay.is_fresh else Source.STREAM,
        as_of=overlay.as_of,
        computed_at=overlay.computed_at,
        generation=current.generation,
        model=overlay.model,
        place=place,
    )


def from_row(values: Mapping[str, Value], entry: ManifestEntry, generation: int, place: str) -> Candidate:
    """An entity's row in a generation."""
    return Candidate(
        values=values,
        source=Source.BATCH,
        as_of=entry.as_of,
        computed_at=entry.computed_at,
        generation=generation,
        model=entry.model,
        origin=entry.origin,
        place=place,
        reason=entry.reason or None,
    )


def values_of(pipeline: Pipeline, row: Mapping[str, float] | RankedList) -> Mapping[str, Value]:
    """An entity's row of a block as output to value: a list is what the one output has."""
    return {pipeline.output_names[0]: row} if isinstance(row, RankedList) else row


def held_default(pipeline: Pipeline, record: GenerationRecord) -> Mapping[str, Value] | None:
    """The default that a generation holds, if the declaration wants it."""
    if pipeline.ranking is None or pipeline.default is None or record.default_list is None:
        return None
    return values_of(pipeline, record.default_list)


def clock_shifts(pointer: Pointer) -> dict[int, float]:
    """Seconds by which the observations of each of a pointer's generations were moved, where they were."""
    records = (pointer.generation, pointer.previous)
    return {r.generation: r.clock_shift_seconds for r in records if r is not None and r.clock_shift_seconds}


def generation_summary(pointer: Pointer | None) -> dict[str, object] | None:
    """What `/v1/pipelines/<name>` says of the current generation."""
    if pointer is None:
        return None
    record = pointer.generation
    return {
        "generation": record.generation,
        "epoch": pointer.epoch,
        "as_of": format_time(record.as_of),
        "published_at": format_time(record.published_at) if record.published_at else None,
        "model": record.model,
        "rows": record.rows,
        "coverage": record.coverage,
        "clock_shift_seconds": record.clock_shift_seconds,
        "previous": pointer.previous.generation if pointer.previous else None,
    }


def need_same_partitions(pipeline: Pipeline, record: GenerationRecord, place: str) -> None:
    """Refuse a generation that was cut into other partitions: its partition numbers mean other entities.

    Raises:
        PlaceUnusable: the declaration changed after the generation was made.
    """
    declared = repr(pipeline.partitions)
    if record.partitioning != declared:
        raise PlaceUnusable(
            f"generation {record.generation} in {place} has other partitions than the declaration: publish a new one"
        )
