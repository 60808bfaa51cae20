"""A lookup's way of reading, on stores in memory, and what it must never see."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from almanac.blocks import decode
from almanac.errors import BlockError, Unavailable
from almanac.ladder import Answer, Candidates, Source, Terms, climb
from serving_cache.lookup.candidates import from_overlay, from_row
from serving_cache.records import ManifestEntry, OverlayRecord, Pointer

if TYPE_CHECKING:
    from tests.simulator.world import World

READ_EVERY_SECONDS = (100.0, 500.0)
READ_SECONDS_MAX = 300.0
"""What keys and tables that a pointer names outlive it by, at least; a real lookup has given up long before."""


class Violation(AssertionError):
    """Something that must never be."""


class Gap(Exception):
    """Redis cannot say: ask the record."""


class Reader:
    """Reads one key or all of them, from Redis and then the record, and remembers the epochs it saw."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._epochs = {"redis": 0, "postgres": 0}
        self._seen_at = 0.0
        self._overlays_at = 0.0
        self._overlays: dict[tuple[int, str], OverlayRecord] = {}

    def loop(self) -> None:
        from tests.simulator.world import END_SECONDS

        while self._world.hub.seconds < END_SECONDS:
            self._world.hub.sleep(self._world.random.uniform(*READ_EVERY_SECONDS))
            self.read()

    def read(self) -> None:
        """One lookup."""
        from tests.simulator.world import PARTITIONS

        cells = list(range(PARTITIONS))
        asked = cells if self._world.random.random() < 0.5 else [self._world.random.choice(cells)]
        try:
            self._from_redis(asked)
            return
        except (Gap, Unavailable, BlockError):
            pass
        with suppress(Unavailable):  # a 503, and no number
            self._from_record(asked)

    def _from_redis(self, asked: list[int]) -> None:
        world, cache = self._world, self._world.cache
        began = world.hub.seconds
        pointer, _ = cache.pointer_and_marker("simulated")
        if pointer is None:
            raise Gap
        overlays = {cell: cache.overlays("simulated", str(cell)) for cell in asked}
        self._saw_overlays(overlays, began)
        whole = cache.manifest("simulated", pointer.generation.generation)
        entries = {cell: whole[cell] for cell in asked if cell in whole}
        blocks = cache.blocks("simulated", [entry.block_hash for entry in entries.values()])
        missing = not whole or len(blocks) < len({entry.block_hash for entry in entries.values()})
        if missing:
            if world.emptied_at < began and world.hub.seconds - began < READ_SECONDS_MAX:
                raise Violation(f"Redis names generation {pointer.generation.generation} and lacks some of it")
            raise Gap
        if world.emptied_at >= began:
            raise Gap  # what is written anew is proved before the pointer comes back, and this read began before
        self._saw("redis", pointer.epoch, began)
        values = {cell: decode(blocks[entry.block_hash]).row(cell) for cell, entry in entries.items()}
        self._judge(pointer, asked, entries, {c: v for c, v in values.items() if v is not None}, overlays)

    def _from_record(self, asked: list[int]) -> None:
        world, record = self._world, self._world.record
        began = world.hub.seconds
        pointer, entries = record.head(asked)
        if pointer is None:
            return
        values = {}
        for cell, entry in entries.items():
            data = record.rows(entry.origin, cell)
            if data is None:
                if world.hub.seconds - began < READ_SECONDS_MAX:
                    raise Violation(f"rows of generation {entry.origin} went away while they were read")
                return
            values[cell] = decode(data).row(cell) or {}
        self._saw("postgres", pointer.epoch, began)
        self._judge(pointer, asked, entries, values, {cell: {} for cell in asked})

    def _saw_overlays(self, overlays: dict[int, dict[str, OverlayRecord]], began: float) -> None:
        """An overlay never gives way to an older one."""
        if self._world.emptied_at >= self._overlays_at:
            self._overlays.clear()
        self._overlays_at = began
        for cell, by_model in overlays.items():
            for model, overlay in by_model.items():
                before = self._overlays.get((cell, model))
                if before is not None and before.sequence > overlay.sequence and self._world.emptied_at < began:
                    raise Violation(f"the overlay of cell {cell} by {model} went back from {before.sequence}")
                self._overlays[cell, model] = overlay

    def _saw(self, place: str, epoch: int, began: float) -> None:
        if place == "redis" and self._world.emptied_at >= self._seen_at:
            self._epochs[place] = 0  # the record's epoch may be behind what was lost, for a moment
        if place == "redis":
            self._seen_at = began
        if epoch < self._epochs[place]:
            raise Violation(f"{place} went back from epoch {self._epochs[place]} to {epoch}")
        self._epochs[place] = max(epoch, self._epochs[place])

    def _judge(
        self,
        pointer: Pointer,
        asked: list[int],
        entries: dict[int, ManifestEntry],
        values: dict[int, dict[str, float]],
        overlays: dict[int, dict[str, OverlayRecord]],
    ) -> None:
        """Every answer is the one generation's that this epoch names, or an overlay by its model."""
        from tests.simulator.world import PIPELINE

        world, number = self._world, pointer.generation.generation
        move = world.moves.get(pointer.epoch)
        if move is None or move.generation != number:
            raise Violation(f"epoch {pointer.epoch} is said to name generation {number}")
        expected = world.content[number]
        for cell in asked:
            if (cell in expected) != (cell in values):
                raise Violation(f"generation {number}: cell {cell} is {'missing' if cell in expected else 'invented'}")
            if cell in expected and values[cell]["value"] != expected[cell]:
                raise Violation(f"generation {number}: cell {cell} is {values[cell]}, not of {expected[cell]}")
            current = from_row(values[cell], entries[cell], number, "memory") if cell in values else None
            found = tuple(from_overlay(one, pointer.generation, "memory") for one in overlays[cell].values())
            seen = Candidates(generation=number, model=pointer.generation.model, overlays=found, current=current)
            answer = climb(seen, Terms.of(PIPELINE, max_stale=None, fresh_for=None), world.hub.now())
            if isinstance(answer, Answer):
                self._judge_answer(answer, pointer)

    def _judge_answer(self, answer: Answer, pointer: Pointer) -> None:
        candidate = answer.candidate
        if candidate.source is Source.STREAM and candidate.model != pointer.generation.model:
            raise Violation(f"an overlay by {candidate.model} answers under {pointer.generation.model}")
