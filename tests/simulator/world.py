"""One pipeline's life by one seed: runs, retries, zombies, rollbacks, a stream, the reconciler, faults, and readers.

What moves Redis and goes back is the project's own code (`sync.py`, `rollback.py`,
`reconciler.py`, the ladder) on stores in memory. `Violation` says what must never be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import numpy as np

from almanac.blocks import Block, encode
from almanac.clock import HOUR
from almanac.errors import AlmanacError, BlockError, Unavailable
from almanac.generation_states import Move, State
from almanac.partitioning import Grid
from almanac.pipeline import Freshness, Output, hours
from serving_cache import reconciler as reconciling
from serving_cache import rollback as rolling
from serving_cache import sync
from serving_cache.records import Attempt, GenerationStart, OverlayRecord, StagedPartition, incarnate
from tests.generations import grid_pipeline
from tests.simulator.cache import MemoryCache
from tests.simulator.hub import CALM, START, Chances, Hub
from tests.simulator.readers import Reader, Violation
from tests.simulator.record import MemoryRecord

RUNS = 4
INCARNATION_EVENTS = 3
"""The events' topic is deleted and made again after so many: between two events of one as_of, every other time."""
RUN_EVERY_SECONDS = 1800.0
RETRY_AFTER_SECONDS = 400.0
RECONCILER_SECONDS_MAX = 140.0
"""It is never away for long: what a death leaves may run out after ten minutes."""
EMPTIED = 0.002
END_SECONDS = (RUNS + 1) * RUN_EVERY_SECONDS
PIPELINE = grid_pipeline(
    "simulated",
    partitions=Grid(rows=2, cols=2, tile=1),
    outputs=(Output(name="value"),),
    freshness=Freshness(fresh_for=hours(2), usable_for=hours(48)),
    generations_kept=1,
)
PARTITIONS = PIPELINE.partitions.count


class World:
    """Everything of one seed.

    Args:
        seed: of every decision.
        chances: of faults.
    """

    def __init__(self, seed: int, chances: Chances) -> None:
        self.hub = Hub(seed, chances)
        self.random = self.hub.random
        self.record = MemoryRecord(self.hub, self._moved)
        self.cache = MemoryCache(self.hub)
        self.cache.damage = self._damaged
        self.cache.before = self._empty
        self.cache.pointed = self._pointed
        self.record.damage = self._damage_rows
        self.emptied_at = -1.0
        self.thrown_out: dict[tuple[int, int], int] = {}
        self.rolled_back: set[int] = set()
        self.moves: dict[int, Move] = {}
        self.content: dict[int, dict[int, int]] = {}
        self.newest: dict[tuple[str, str], OverlayRecord] = {}
        self.proven_damaged: set[int] = set()

    def run(self) -> None:
        """Live through it.

        Raises:
            Violation: something that must never be.
        """
        for number in range(RUNS):
            at = max(0, number - (self.random.random() < 0.3)) * RUN_EVERY_SECONDS  # now and then two at once
            for attempt in range(self.random.choice([1, 2, 2, 3])):
                work = self._run(number, attempt)
                self.hub.spawn(f"run {number}.{attempt}", work, after=at + attempt * self.random.choice([0, 1, 400]))
        for number in range(2):
            self.hub.spawn(f"rollback {number}", self._roll_back, after=self.random.uniform(0, END_SECONDS))
        for number in range(2):
            self.hub.spawn(f"reader {number}", Reader(self, f"reader {number}").loop, killable=False)
        self.hub.spawn("stream", self._stream, killable=False)
        self.hub.spawn(
            "reconciler", self._reconcile, killable=False, pause_seconds_max=RECONCILER_SECONDS_MAX, luck=0.2
        )
        with (
            patch.object(sync, "utc_now", self.hub.now),
            patch.object(rolling, "utc_now", self.hub.now),
            patch.object(rolling, "monotonic", lambda: self.hub.seconds),
            patch.object(reconciling, "utc_now", self.hub.now),
        ):
            self.hub.run()
            self._converge()

    # Actors

    def _run(self, number: int, attempt: int) -> Callable[[], None]:
        past = number > 0 and self.random.random() < 0.15
        as_of = START + timedelta(hours=-1 if past else 0, seconds=number * RUN_EVERY_SECONDS)
        start = GenerationStart(
            run_key=f"run {number}",
            cutoff=as_of,
            as_of=as_of,
            model="m-v1" if number % 3 else "m-v2",
            model_hash="0" * 64,
            clock_shift=timedelta(0),
            partitions=tuple(range(PARTITIONS)),
        )

        def work() -> None:
            for _ in range(3):  # as Airflow retries a task
                try:
                    self._attempt(start)
                    return
                except Unavailable:
                    self.hub.sleep(self.random.uniform(1, 60))
                except AlmanacError:
                    return

        return work

    def _attempt(self, start: GenerationStart) -> None:
        record, cache = self.record, self.cache
        attempt = record.begin_generation(PIPELINE, start, now=self.hub.now())
        shards = [[0, 1], [2, 3]]
        for shard in shards:
            for partition in record.pending(attempt, shard):
                if self.random.random() < 0.1:
                    record.quarantine(attempt, partition, "bad", staged_too=self.random.random() < 0.5)
                    continue
                part = staged(partition, attempt.generation, start)
                record.stage(attempt, [part])
                with contextlib.suppress(Unavailable):
                    cache.put_blocks(PIPELINE.name, {part.block.hash: part.block.encoded})
        if self.random.random() < 0.2:  # a task that Airflow thinks dead is not
            again = [staged(partition, attempt.generation, start) for partition in (0, 1)]
            self.hub.spawn("double", self._double(attempt, again), after=self.random.choice([0, 0, 60]))
        if self.random.random() < 0.2 and record.quarantine(attempt, 0, "the gate on predictions refused it"):
            self.thrown_out[attempt.generation, 0] = attempt.token
            self.hub.sleep(self.random.uniform(0, 60))
        attempt = record.take_over(PIPELINE.name, attempt.generation)
        try:
            record.publish(attempt, PIPELINE, now=self.hub.now())
        except BlockError:
            record.reject(attempt, "its rows are damaged")
            raise
        with contextlib.suppress(Unavailable):
            self._sync()
        record.retire(PIPELINE, now=self.hub.now())
        self.check_whole()

    def _double(self, attempt: Attempt, parts: list[StagedPartition]) -> Callable[[], None]:
        def work() -> None:
            with contextlib.suppress(AlmanacError):
                self.record.stage(attempt, parts)

        return work

    def _sync(self) -> None:
        with contextlib.suppress(BlockError):
            sync.sync_redis(PIPELINE, self.record, self.cache)  # type: ignore[arg-type]

    def _roll_back(self) -> None:
        to = self.random.choice([None, None, *range(1, RUNS)])
        try:
            outcome, trouble = rolling.roll_back(PIPELINE, self.record, self.cache, to)  # type: ignore[arg-type]
        except AlmanacError:
            return
        found = self.cache.get(f"{PIPELINE.name}:pointer")
        if not trouble and found is not None:
            pointer = sync_decoded(found)
            if pointer.epoch < (outcome.epoch or 0):
                raise Violation(f"the rollback to epoch {outcome.epoch} is done, Redis is at {pointer.epoch}")
        self.hub.sleep(self.random.uniform(60, 4000))
        with contextlib.suppress(Unavailable):
            self.record.clear_rollback(PIPELINE.name)

    def _stream(self) -> None:
        offset = 0
        while self.hub.seconds < END_SECONDS:
            self.hub.sleep(self.random.uniform(100, 900))
            offset = max(0, offset + self.random.choice([1, 1, 2, -1]))  # a replay now and then
            overlay = OverlayRecord(
                entity=str(self.random.randrange(PARTITIONS)),
                model=self.random.choice(["m-v1", "m-v2"]),
                as_of=START + timedelta(minutes=30 * (offset // 2)),
                topic=incarnate("events", 1 + offset // INCARNATION_EVENTS),
                kafka_partition=0,
                kafka_offset=offset % INCARNATION_EVENTS,
                values={"value": -1000.0 - offset},
                computed_at=self.hub.now(),
            )
            for _ in range(3):
                try:
                    self.record.put_overlays(PIPELINE.name, [overlay])
                    self._note(overlay)
                    self.cache.put_overlays(PIPELINE.name, [overlay])
                    break
                except Unavailable:
                    self._note_if_stored(overlay)

    def _reconcile(self) -> None:
        watch = reconciling.Reconciler([PIPELINE], self.record, self.cache)  # type: ignore[arg-type]
        while self.hub.seconds < END_SECONDS:
            watch.step(self.hub.seconds)
            self.hub.sleep(self.random.uniform(60, RECONCILER_SECONDS_MAX))

    # Faults

    def _empty(self) -> None:
        """Once in a while, between any two commands, Redis loses everything."""
        if self.hub.chances is not CALM and self.random.random() < EMPTIED:
            self.emptied_at = self.hub.seconds
            self.hub.note("redis", "is emptied")
            self.cache.keys.clear()

    def _damaged(self, data: bytes) -> bytes:
        """One block in twenty comes out of the server as it was not put in."""
        if self.hub.chances is CALM or self.random.random() > 0.05:
            return data
        return data[:-1] + bytes([data[-1] ^ 1]) if self.random.random() < 0.5 else encode(block_of(0, -5))

    def _damage_rows(self, generation: int) -> None:
        table = self.record.generations_by_number[generation].table
        if table and self.random.random() < 0.05:
            partition = self.random.choice(sorted(table))
            if self.random.random() < 0.3:
                del table[partition]
            else:
                table[partition] = encode(block_of(partition, -7))
            self.proven_damaged.add(generation)

    # What is known to be true

    def _moved(self, move: Move, attempt: Attempt | None) -> None:
        """A pointer's move is being committed: judge it, and remember what readers must see from now on."""
        generations = self.record.generations_by_number
        last = max(self.moves, default=0)
        self.hub.note(f"epoch {move.epoch}:", f"{move.kind} {move.generation}")
        if move.epoch != last + 1:
            raise Violation(f"epoch {move.epoch} follows {last}")
        if move.kind == "publish":
            assert attempt is not None
            mine = generations[move.generation]
            if attempt.token != mine.token:
                raise Violation(f"generation {move.generation} was published by an attempt that lost its token")
            if self.record.board.held is not None:
                raise Violation(f"generation {move.generation} was published over a rollback")
            before = None if not last else generations[self.moves[last].generation].record
            if before is not None and mine.record.as_of < before.as_of:
                raise Violation(f"publishing generation {move.generation} moved readers back in time")
            self._remember(move.generation, self.moves[last].generation if last else None)
        elif move.generation not in self.content:
            raise Violation(f"the rollback went to generation {move.generation}, which readers never read")
        elif generations[move.generation].record.dropped_at is not None:
            raise Violation(f"the rollback went to generation {move.generation}, which was dropped")
        self.rolled_back |= {number for number, state in move.changes.items() if state is State.ROLLED_BACK}
        self.rolled_back.discard(move.generation)
        self.moves[move.epoch] = move

    def _pointed(self, held: bytes | None, pointer: bytes) -> None:
        if held is not None and sync_decoded(pointer).epoch <= sync_decoded(held).epoch:
            raise Violation(f"Redis went back to epoch {sync_decoded(pointer).epoch}")

    def _remember(self, generation: int, current: int | None) -> None:
        decided = self.record.generations_by_number[generation].ledger
        mine = {partition: generation for partition, found in decided.items() if found.state == "staged"}
        if len(mine) < PIPELINE.coverage_min * PARTITIONS:
            raise Violation(f"generation {generation} covers {len(mine)} partitions only")
        for partition in mine:
            if decided[partition].token <= self.thrown_out.get((generation, partition), 0):
                raise Violation(f"generation {generation} brings back partition {partition}, which a gate threw out")
        if generation in self.proven_damaged:
            table = self.record.generations_by_number[generation].table or {}
            if any(table.get(p) != encode(block_of(p, generation)) for p in mine):
                raise Violation(f"generation {generation} was published with damaged rows")
        self.content[generation] = {**(self.content[current] if current is not None else {}), **mine}

    def _note(self, overlay: OverlayRecord) -> None:
        key = (overlay.entity, overlay.model)
        if key not in self.newest or overlay.sequence > self.newest[key].sequence:
            self.newest[key] = overlay

    def _note_if_stored(self, overlay: OverlayRecord) -> None:
        stored = self.record.overlay.get((overlay.entity, overlay.model))
        if stored is not None and stored[0] == overlay:
            self._note(overlay)

    def check_whole(self) -> None:
        """What the pointer names is in the record, row by row; what was dropped had its time."""
        board, generations = self.record.board, self.record.generations_by_number
        for number in (board.current, board.previous):
            if number is None:
                continue
            for partition, value in self.content[number].items():
                entry = generations[number].manifest.get(partition)
                table = None if entry is None else generations[entry.origin].table
                if entry is None or table is None or table.get(partition) != encode(block_of(partition, value)):
                    raise Violation(f"generation {number} lacks partition {partition}, or has other rows")
        for number, found in generations.items():
            dropped, left = found.record.dropped_at, found.record.left_at
            least = 24 * HOUR if number in self.rolled_back else HOUR
            if dropped is not None and left is not None and dropped - left < least:
                raise Violation(f"generation {number} was dropped {dropped - left} after it was current")
            if found.record.state is State.STAGED and found.table is None:
                raise Violation(f"the table of generation {number} was dropped while a run fills it")
            for partition, decided in found.ledger.items():
                if decided.state == "quarantined" and partition in (found.table or {}):
                    raise Violation(f"generation {number} keeps rows of partition {partition}, which is quarantined")

    def _converge(self) -> None:
        """Once faults end, the reconciler brings both stores to one state, which is the right one."""
        self.hub.chances = CALM
        watch = reconciling.Reconciler([PIPELINE], self.record, self.cache)  # type: ignore[arg-type]
        for _ in range(2):
            watch.step(self.hub.seconds)
            self.hub.seconds += 60
        self.check_whole()
        for key, overlay in self.newest.items():
            if self.record.overlay[key][0].sequence != overlay.sequence:
                raise Violation(f"the record's overlay of {key} is not the newest")
        pointer = self.record.pointer(PIPELINE.name)
        if pointer != self.cache.pointer(PIPELINE.name):
            raise Violation(f"Redis does not follow: {watch.why_not_ready()}")
        if pointer is None:
            return
        self.hub.seconds += 90_000  # whatever is not held runs out
        manifest = self.cache.manifest(PIPELINE.name, pointer.generation.generation)
        blocks = self.cache.blocks(PIPELINE.name, [entry.block_hash for entry in manifest.values()])
        for partition, value in self.content[pointer.generation.generation].items():
            if blocks.get(manifest[partition].block_hash if partition in manifest else "") != encode(
                block_of(partition, value)
            ):
                raise Violation(f"Redis lacks partition {partition} of the current generation")
        for (entity, model), overlay in self.newest.items():
            held = self.cache.overlays(PIPELINE.name, entity).get(model)
            if model == pointer.generation.model and (held is None or held.sequence != overlay.sequence):
                raise Violation(f"Redis lacks the newest overlay of {entity} by {model}")


def sync_decoded(data: bytes) -> Any:
    """A pointer as Redis holds it."""
    from serving_cache.layout import decode_pointer

    return decode_pointer(data)


def block_of(partition: int, value: float) -> Block:
    """The one cell of a partition, with a value."""
    return Block(keys=np.array([partition], dtype=np.int64), columns={"value": np.array([value], dtype=np.float32)})


def staged(partition: int, generation: int, start: GenerationStart) -> StagedPartition:
    """What a run of this generation predicts: its number."""
    return StagedPartition(
        partition=partition, block=block_of(partition, generation), as_of=start.as_of, computed_at=start.as_of
    )


def seeds(first: int, count: int) -> Iterator[int]:
    """The seeds to live through."""
    yield from range(first, first + count)


def simulate(seed: int, chances: Chances | None = None) -> World:
    """Live through one seed.

    Raises:
        Violation: something that must never be; its text has the seed and the last steps.
    """
    world = World(seed, chances or Chances())
    try:
        world.run()
    except Violation as violation:
        steps = "\n  ".join(world.hub.told(30))
        raise Violation(f"seed {seed}: {violation}\n  {steps}") from None
    return world
