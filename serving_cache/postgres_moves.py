"""Moves of the pointer, in one transaction each: read the board, ask for the move, compare the epoch, write.

What may become of a generation is decided in `almanac/generation_states.py` alone.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from almanac.errors import Superseded, UsageError
from almanac.failpoints import passing
from almanac.generation_states import Board, Move, Standing, State, roll_back
from almanac.pipeline import Pipeline
from serving_cache.postgres_client import Connection
from serving_cache.postgres_proof import need_whole
from serving_cache.postgres_rows import StoreBase, lock_pointer, need_same_partitioning, read_generation
from serving_cache.records import Publication

CHANNEL = "almanac_pointer"
"""Postgres tells whoever listens here that a pointer moved; the payload is the pipeline's name."""


class Moves(StoreBase):
    """The part of `PostgresStore` that goes back, and what comes of that."""

    def rollback(
        self, pipeline: str, to: int | None = None, *, now: datetime, partitioning: str | None = None
    ) -> Publication:
        """Make an earlier generation current again; what came after it is rolled back, and holds.

        No prediction moves. Nothing is published over a rollback until `clear_rollback`.

        Args:
            to: a previous generation, or one that was rolled back; None for the previous one.
            partitioning: the declaration's, which that generation must have; None to take any.

        Raises:
            UsageError: there is no such generation, it is retired, or it has another partitioning; nothing changed.
            BlockError: its blocks are not those that were published; nothing changed.
            Unavailable: Postgres does not answer.
        """
        with self._client.transaction() as connection:
            lock_pointer(connection, pipeline)
            board = read_board(connection, pipeline, to)
            move = roll_back(board, to)
            target = read_generation(connection, pipeline, move.generation)
            if target is not None and partitioning not in (None, target.partitioning):
                raise UsageError(
                    f"generation {target.generation} of {pipeline} has the partitioning {target.partitioning}, "
                    f"declared is {partitioning}: readers could not use it; put the declaration back first"
                )
            need_whole(connection, pipeline, move.generation)
            carry_out_move(connection, pipeline, move, now)
            passing("rollback.pointer-moved")
            outcome = read_generation(connection, pipeline, move.generation)
        passing("rollback.committed")
        assert outcome is not None  # noqa: S101  (the pointer refers to it)
        return replace(Publication.of(outcome, 0), reason="", alert="")

    def rollback_target(self, pipeline: str, to: int | None = None) -> int:
        """The generation that `rollback` would make current; nothing changes.

        Raises:
            UsageError: as `rollback` does.
        """
        with self._client.transaction() as connection:
            return roll_back(read_board(connection, pipeline, to), to).generation

    def clear_rollback(self, pipeline: str) -> int | None:
        """Let generations be published again after a rollback; returns which was held, None if none was.

        Raises:
            UsageError: the pipeline has no tables.
            Unavailable: Postgres does not answer.
        """
        with self._client.transaction() as connection:
            lock_pointer(connection, pipeline)
            row = connection.execute("SELECT held FROM pointers WHERE pipeline = %s", (pipeline,)).fetchone()
            connection.execute("UPDATE pointers SET held = NULL WHERE pipeline = %s", (pipeline,))
        return None if row is None else row[0]

    def held(self, pipeline: str) -> int | None:
        """The generation whose rollback keeps others from being published; None if none does."""
        rows = self._client.query("SELECT held FROM pointers WHERE pipeline = %s", (pipeline,))
        return rows[0][0] if rows else None

    def need_same_partitioning(self, pipeline: Pipeline) -> None:
        """Refuse a partitioning that no generation may be opened with.

        Raises:
            UsageError: it is neither the current generation's nor agreed to.
        """
        with self._client.session() as connection:
            need_same_partitioning(connection, pipeline.name, repr(pipeline.partitions))

    def agree_to_partitioning(self, pipeline: Pipeline) -> None:
        """Let the next generation have the partitioning that is declared now.

        Raises:
            UsageError: the pipeline has no tables.
        """
        with self._client.transaction() as connection:
            lock_pointer(connection, pipeline.name)
            connection.execute(
                "UPDATE pointers SET partitioning = %s WHERE pipeline = %s", (repr(pipeline.partitions), pipeline.name)
            )


def read_board(connection: Connection, pipeline: str, *others: int | None) -> Board:
    """The pointer, and every generation that a move may touch; of others, those asked for.

    Raises:
        UsageError: the pipeline has no tables.
    """
    row = connection.execute(
        "SELECT epoch, generation, previous, held FROM pointers WHERE pipeline = %s", (pipeline,)
    ).fetchone()
    if row is None:
        raise UsageError(f"pipeline {pipeline} has no tables yet: run `python -m serving_cache.migrate`")
    rows = connection.execute(
        "SELECT generation, state, epoch FROM generations WHERE pipeline = %s "
        "AND (state IN ('current', 'previous', 'rolled_back') OR generation = ANY(%s))",
        (pipeline, [number for number in others if number is not None]),
    ).fetchall()
    return Board(
        pipeline=pipeline,
        epoch=row[0],
        current=row[1],
        previous=row[2],
        held=row[3],
        standings={
            number: Standing(generation=number, state=State(state), epoch=epoch) for number, state, epoch in rows
        },
    )


def carry_out_move(connection: Connection, pipeline: str, move: Move, now: datetime) -> None:
    """Write a move, in the caller's transaction.

    Raises:
        Superseded: the epoch is no longer the one that the move was decided at; the transaction must not be committed.
    """
    for generation, state in move.changes.items():
        # What is rolled back with the current one was left long ago: its time to be gone back to begins now.
        left = generation == move.left or state is State.ROLLED_BACK
        connection.execute(
            "UPDATE generations SET state = %s, epoch = CASE WHEN %s THEN %s ELSE epoch END, "
            "left_at = CASE WHEN %s THEN %s ELSE left_at END WHERE pipeline = %s AND generation = %s",
            (
                state, generation == move.generation, move.epoch, left, now, pipeline, generation,
            ),
        )  # fmt: skip
    moved = connection.execute(
        "UPDATE pointers SET epoch = %s, generation = %s, previous = %s, held = %s, moved_at = %s, partitioning = '' "
        "WHERE pipeline = %s AND epoch = %s",
        (move.epoch, move.generation, move.previous, move.held, now, pipeline, move.before),
    ).rowcount
    if not moved:
        raise Superseded(
            f"the pointer of {pipeline} is no longer at epoch {move.before}: somebody moved it, this changed nothing"
        )
    connection.execute(
        "INSERT INTO pointer_moves (pipeline, epoch, kind, generation, previous, moved_at) "
        "VALUES (%s, %s, %s, %s, %s, %s)",
        (pipeline, move.epoch, move.kind, move.generation, move.previous, now),
    )
    connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, pipeline))
