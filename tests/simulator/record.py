"""`MemoryRecord`: what `PostgresStore` does, in memory. A method is a transaction, or several as there.

What may happen is decided by the same functions as in the real store; this file
only carries it out. The names are imported into it, so that bugs can be planted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from almanac.blocks import block_hash
from almanac.decisions import Kept, Retention, abandoned, decide_publish, droppable, forgettable, to_drop
from almanac.end_manifest import blocks_digest
from almanac.errors import BlockError, GateError, Superseded
from almanac.generation_states import Board, Event, Move, Standing, State, after, publish, roll_back
from almanac.pipeline import Pipeline
from serving_cache.postgres_rows import need_staged, token_checked
from serving_cache.records import (
    Attempt,
    GenerationRecord,
    GenerationStart,
    OverlayRecord,
    Publication,
    StagedPartition,
)
from tests.simulator import stored
from tests.simulator.hub import Hub
from tests.simulator.reading import Reading
from tests.simulator.stored import Decided, Stored


class MemoryRecord(Reading):
    """One pipeline's record.

    Args:
        hub: gives the turns.
        moved: told of each move that is written, with the attempt that published; what a test looks at.
    """

    where = "memory"

    def __init__(self, hub: Hub, moved: Callable[[Move, Attempt | None], None] | None = None) -> None:
        self.hub = hub
        self.moved = moved
        self.damage: Callable[[int], None] = lambda _: None  # what befalls a generation's rows before they are proved
        self.generations_by_number: dict[int, Stored] = {}
        self.board = Board(pipeline="")
        self.moved_at = hub.now()
        self.overlay: dict[tuple[str, str], tuple[OverlayRecord, datetime]] = {}

    # Batch runs

    def begin_generation(self, pipeline: Pipeline, start: GenerationStart, *, now: datetime) -> Attempt:
        def act() -> Attempt:
            self.board = replace(self.board, pipeline=pipeline.name)
            for number, found in self.generations_by_number.items():
                record = found.record
                if record.run_key == start.run_key and record.state is State.STAGED:
                    if record.as_of == start.as_of and record.model == start.model:
                        found.token += 1
                        found.active_at = self.hub.now()
                        return Attempt(pipeline=pipeline.name, generation=number, token=found.token)
                    self._reject(number, "planned anew")
            return self._open(pipeline, start, now)

        return self._transaction("begin", act)

    def take_over(self, pipeline: str, generation: int) -> Attempt:
        def act() -> Attempt:
            found = self._need(pipeline, generation)
            found.token += 1
            return Attempt(pipeline=pipeline, generation=generation, token=found.token)

        return self._transaction("take over", act)

    def pending(self, attempt: Attempt, partitions: Sequence[int]) -> list[int]:
        def act() -> list[int]:
            self._check(attempt)
            ledger = self.generations_by_number[attempt.generation].ledger
            return [p for p in partitions if p in ledger and stored.may_claim(ledger[p], attempt)]

        return self._transaction("pending", act)

    def stage(self, attempt: Attempt, staged: Sequence[StagedPartition]) -> list[int]:
        def act() -> list[int]:
            need_staged(attempt, self._check(attempt))
            found = self.generations_by_number[attempt.generation]
            claimed = [part for part in staged if stored.may_claim(found.ledger[part.partition], attempt)]
            for part in claimed:
                data = part.block.encoded
                found.ledger[part.partition] = Decided(
                    "staged", attempt.token, block_hash(data), part.block.rows, part.as_of, part.computed_at
                )
                assert found.table is not None
                found.table[part.partition] = data
                found.active_at = self.hub.now()
            return sorted(part.partition for part in claimed)

        return self._transaction("stage", act)

    def quarantine(self, attempt: Attempt, partition: int, reason: str, *, staged_too: bool = True) -> bool:
        def act() -> bool:
            need_staged(attempt, self._check(attempt))
            found = self.generations_by_number[attempt.generation]
            if found.ledger[partition].state == "staged" and not staged_too:
                return False
            found.ledger[partition] = Decided("quarantined", attempt.token, reason=reason)
            stored.take_out(found, partition)
            found.active_at = self.hub.now()
            return True

        return self._transaction("quarantine", act)

    def reject(self, attempt: Attempt, reason: str) -> None:
        def act() -> None:
            state = self._check(attempt)
            if state is not State.REJECTED:
                need_staged(attempt, state)
                self._reject(attempt.generation, reason)

        self._transaction("reject", act)

    # Publishing

    def publish(self, attempt: Attempt, pipeline: Pipeline, *, now: datetime) -> Publication:
        proved = self._transaction("prove", lambda: self._prove(attempt))

        def act() -> GenerationRecord:
            if self._check(attempt) is State.STAGED:
                if stored.staged_of(self.generations_by_number[attempt.generation]) != proved:
                    raise BlockError("it was added to while it was published")
                self._settle(attempt, pipeline, now)
            return self.generations_by_number[attempt.generation].record

        outcome = self._transaction("publish", act)
        if outcome.state is State.REJECTED:
            raise GateError(f"generation {outcome.generation} was rejected: {outcome.reason}")
        manifest = self.generations_by_number[outcome.generation].manifest
        return Publication.of(outcome, sum(entry.origin != outcome.generation for entry in manifest.values()))

    def rollback_target(self, pipeline: str, to: int | None = None) -> int:
        return self._transaction("target", lambda: roll_back(self._board(), to).generation)

    def rollback(
        self, pipeline: str, to: int | None = None, *, now: datetime, partitioning: str | None = None
    ) -> Publication:
        def act() -> GenerationRecord:
            move = roll_back(self._board(), to)
            found = self.generations_by_number[move.generation]
            if blocks_digest(stored.lines(found.manifest)) != found.digest:
                raise BlockError("its blocks do not match its end manifest")
            self._carry_out(move, now, None)
            return found.record

        outcome = self._transaction("roll back", act)
        return replace(Publication.of(outcome, 0), reason="", alert="")

    def clear_rollback(self, pipeline: str) -> int | None:
        def act() -> int | None:
            held, self.board = self.board.held, replace(self.board, held=None)
            return held

        return self._transaction("clear", act)

    def retire(self, pipeline: Pipeline, *, now: datetime) -> list[int]:
        gone = self._transaction("drop manifests", lambda: self._drop_manifests(pipeline, now))
        for generation in self._transaction("unreferenced", self._unreferenced):
            self._transaction("drop table", partial(self._drop_table, generation))
        return gone

    # Inside

    def _check(self, attempt: Attempt) -> State:
        found = self.generations_by_number.get(attempt.generation)
        return token_checked(attempt, None if found is None else (found.token, found.record.state))

    def _open(self, pipeline: Pipeline, start: GenerationStart, now: datetime) -> Attempt:
        number = max(self.generations_by_number, default=0) + 1
        record = GenerationRecord(
            pipeline=pipeline.name,
            generation=number,
            run_key=start.run_key,
            cutoff=start.cutoff,
            as_of=start.as_of,
            state=State.STAGED,
            model=start.model,
            model_hash=start.model_hash,
            epoch=None,
            rows=0,
            coverage=0.0,
            reason="",
            partitioning=repr(pipeline.partitions),
            outputs=pipeline.stored_columns,
            clock_shift_seconds=0.0,
            created_at=now,
            published_at=None,
            default_list=start.default_list,
        )
        ledger = {partition: Decided("planned", 1) for partition in start.partitions}
        self.generations_by_number[number] = Stored(record, 1, start.partitions, ledger)
        return Attempt(pipeline=pipeline.name, generation=number, token=1)

    def _set(self, number: int, **changes: Any) -> None:
        found = self.generations_by_number[number]
        found.record = msgspec.structs.replace(found.record, **changes)

    def _reject(self, number: int, reason: str) -> None:
        self._set(number, state=after(self.generations_by_number[number].record.state, Event.REJECT), reason=reason)
        self.generations_by_number[number].table = None

    def _prove(self, attempt: Attempt) -> tuple[tuple[int, str], ...]:
        if self._check(attempt) is not State.STAGED:
            return ()
        self.damage(attempt.generation)
        found = self.generations_by_number[attempt.generation]
        staged = stored.staged_of(found)
        if len(found.table or {}) != len(staged):
            raise BlockError("rows were lost or doubled")
        for partition, digest in staged:
            if stored.hash_of((found.table or {})[partition]) != digest:
                raise BlockError(f"rows of partition {partition} are not those that were staged")
        return staged

    def _board(self) -> Board:
        standings = {
            number: Standing(generation=number, state=found.record.state, epoch=found.record.epoch)
            for number, found in self.generations_by_number.items()
        }
        return replace(self.board, standings=standings)

    def _settle(self, attempt: Attempt, pipeline: Pipeline, now: datetime) -> None:
        board = self._board()
        found = self.generations_by_number[attempt.generation]
        current = None if board.current is None else self.generations_by_number[board.current]
        decision = decide_publish(
            staged=len(stored.staged_of(found)),
            planned=len(found.planned),
            coverage_min=pipeline.coverage_min,
            as_of=found.record.as_of,
            current_as_of=None if current is None else current.record.as_of,
        )
        if decision.state == "rejected":
            self._reject(attempt.generation, decision.reason)
            self._set(attempt.generation, coverage=decision.coverage)
            return
        move = publish(board, attempt.generation) if decision.state == "current" else None
        found.manifest = stored.manifest_of(found, self.generations_by_number, current if move is not None else None)
        found.digest = blocks_digest(stored.lines(found.manifest))
        self._set(
            attempt.generation,
            coverage=decision.coverage,
            reason=decision.reason,
            published_at=now,
            rows=sum(entry.rows for entry in found.manifest.values()),
        )
        if move is None:
            self._set(attempt.generation, state=after(State.STAGED, Event.ARCHIVE))
        else:
            self._carry_out(move, now, attempt)

    def _carry_out(self, move: Move, now: datetime, attempt: Attempt | None) -> None:
        if move.before != self.board.epoch:
            raise Superseded("somebody moved it")
        for number, state in move.changes.items():
            self._set(number, state=state)
            if number == move.left or state is State.ROLLED_BACK:
                self._set(number, left_at=now)
        self._set(move.generation, epoch=move.epoch)
        if self.moved is not None:
            self.moved(move, attempt)
        self.board = replace(
            self.board, epoch=move.epoch, current=move.generation, previous=move.previous, held=move.held
        )
        self.moved_at = now

    def _drop_manifests(self, pipeline: Pipeline, now: datetime) -> list[int]:
        kept = [
            Kept(n, f.record.state, f.record.created_at, f.record.published_at, f.record.left_at, f.active_at)
            for n, f in self.generations_by_number.items()
            if f.record.dropped_at is None and f.record.state is not State.REJECTED
        ]
        for number in abandoned(kept, now):
            self.generations_by_number[number].token += 1
            self._reject(number, "its run left it unfinished")
        keeping = Retention(
            generations=pipeline.generations_kept,
            previous=pipeline.previous_kept,
            rolled_back=pipeline.rolled_back_kept,
        )
        pointed = [number for number in (self.board.current, self.board.previous) if number is not None]
        gone = to_drop(kept, pointed=pointed, retention=keeping, now=now)
        for number in gone:
            found = self.generations_by_number[number]
            self._set(number, state=after(found.record.state, Event.RETIRE), dropped_at=now)
            found.manifest, found.ledger = {}, {}
        rejected = [n for n, f in self.generations_by_number.items() if f.record.state is State.REJECTED and f.ledger]
        newest = max(self.generations_by_number, default=None)
        for number in forgettable(rejected, newest=newest, kept=pipeline.generations_kept):
            self.generations_by_number[number].ledger = {}
        return gone

    def _unreferenced(self) -> list[int]:
        every = self.generations_by_number
        origins = {n: {e.origin for e in f.manifest.values()} for n, f in every.items() if f.manifest}
        existing = [n for n, f in every.items() if f.table is not None]
        return droppable(origins, existing, [n for n, f in every.items() if f.record.state is State.STAGED])

    def _drop_table(self, generation: int) -> None:
        self.generations_by_number[generation].table = None
