"""Publishing: what becomes of a staged generation, in one transaction.

The numbered steps of `publish` are those of `docs/architecture.md`:

1. index the rows, in a transaction of its own, while nobody reads them;
2. read every row back, and compare it with what the ledger says was written;
3. lock the pointer, check the fencing token, decide;
4. write the manifest: what the run staged, and what is carried forward; and the end manifest, which sums it up;
5. ask the hook about what would become current: a jump against the generation before raises an alert, or refuses;
6. attach the rows;
7. move the pointer and add one to its epoch, if the epoch is still the one that was read; commit 3 to 7 together.

A death anywhere leaves the generation staged, or published whole.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from almanac.decisions import PublishDecision, decide_publish
from almanac.end_manifest import EndManifest
from almanac.errors import BlockError, GateError, UsageError
from almanac.failpoints import passing
from almanac.generation_states import State, publish
from almanac.jumps import unusual
from almanac.pipeline import Pipeline
from serving_cache.layout import child_name, table_name
from serving_cache.postgres_client import Connection
from serving_cache.postgres_ledger import shortened
from serving_cache.postgres_moves import Moves, carry_out_move, read_board
from serving_cache.postgres_proof import prove, read_end_manifest, staged_blocks, write_end_manifest
from serving_cache.postgres_rows import (
    check_token,
    lock_pointer,
    need_same_partitioning,
    read_generation,
)
from serving_cache.postgres_staging import Staging, reject_generation
from serving_cache.records import Attempt, GenerationRecord, Publication

INDEX_MEMORY = "256MB"
REASONS_SHOWN_MAX = 3
"""Partitions whose reasons the rejection of a generation repeats."""
"""Of the server, while it sorts a generation's keys: those of ten million rows fit."""

_MANIFEST_STAGED = """
INSERT INTO generation_partitions
    (pipeline, generation, partition, origin, block_hash, rows, as_of, computed_at, input_digest, stats)
SELECT pipeline, generation, partition, coalesce(origin, generation), block_hash, rows, as_of, computed_at,
    input_digest, stats
FROM ledger WHERE pipeline = %(pipeline)s AND generation = %(generation)s AND state IN ('staged', 'unchanged')
"""

_MANIFEST_CARRIED = """
INSERT INTO generation_partitions
    (pipeline, generation, partition, origin, block_hash, rows, as_of, computed_at, stats, reason)
SELECT m.pipeline, l.generation, m.partition, m.origin, m.block_hash, m.rows, m.as_of, m.computed_at, m.stats,
    CASE l.state WHEN 'quarantined' THEN 'quarantined: ' || l.reason ELSE 'not scored by generation ' || l.generation
    END
FROM ledger l JOIN generation_partitions m ON m.pipeline = l.pipeline AND m.partition = l.partition
JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin
WHERE l.pipeline = %(pipeline)s AND l.generation = %(generation)s AND l.state NOT IN ('staged', 'unchanged')
    AND m.generation = %(current)s AND o.outputs = %(outputs)s AND o.partitioning = %(partitioning)s
"""


class _Refused(Exception):
    """The hook said no; why."""


class Publishing(Staging, Moves):
    """The part of `PostgresStore` that makes a generation current."""

    def publish(self, attempt: Attempt, pipeline: Pipeline, *, now: datetime) -> Publication:
        """Make a staged generation current; or archive it, if it is from an earlier as_of than the current one.

        Partitions that are quarantined or missing are carried forward from the
        current generation, with their old as_of. Publishing again returns the
        first outcome.

        Raises:
            Superseded: another attempt has taken over; nothing changed.
            GateError: the generation is rejected (now, or when it was first published), or a rollback holds; the
                current one stays.
            BlockError: what lies in the store is not what the run staged; nothing changed.
            UsageError: there is no such generation, or it has another partitioning than the declaration.
            Unavailable: Postgres does not answer; nothing changed, or everything did: try again to learn which.
        """
        proved = self._prove(attempt) if self._index(attempt) else ()
        with self._client.transaction() as connection:
            lock_pointer(connection, attempt.pipeline)
            state = check_token(connection, attempt, exclusive=True)
            if state is State.STAGED:
                if staged_blocks(connection, attempt) != proved:
                    raise BlockError(
                        f"generation {attempt.generation} of {attempt.pipeline} was added to while it was published: "
                        "publish it again"
                    )
                _settle(connection, attempt, pipeline, now)
            outcome = read_generation(connection, attempt.pipeline, attempt.generation)
            carried = _carried(connection, attempt)
        passing("publish.committed")
        assert outcome is not None  # noqa: S101  (the token was checked on its row)
        return _publication(outcome, carried)

    def leave(self, pipeline: str, generation: int, reason: str) -> bool:
        """Say why a generation is unfinished; what is staged stays, for whoever goes on with its run.

        Returns:
            Whether it is unfinished.
        """
        return bool(
            self._client.query(
                "UPDATE generations SET reason = %s WHERE pipeline = %s AND generation = %s AND state = 'staged' "
                "RETURNING generation",
                (shortened(reason), pipeline, generation),
            )
        )

    def _prove(self, attempt: Attempt) -> tuple[tuple[int, str, int], ...]:
        """Read the rows back; see `postgres_proof.prove`."""
        with self._client.session() as connection:
            try:
                proved = prove(connection, attempt)
            except (BlockError, psycopg.errors.UndefinedTable):
                # Whoever took over may have published these rows meanwhile, and retention have dropped them.
                check_token(connection, attempt, exclusive=False)
                raise
        passing("publish.read-back")
        return proved

    def _index(self, attempt: Attempt) -> bool:
        """Bring the rows' table to the shape that readers expect; returns whether the generation is still staged."""
        name = child_name(attempt.pipeline, attempt.generation)
        child = sql.Identifier(name)
        with self._client.transaction() as connection:
            if check_token(connection, attempt, exclusive=True) is not State.STAGED:
                return False
            missing = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
                "EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass",
                (table_name(attempt.pipeline), name),
            ).fetchall()
            for (column,) in missing:  # the declaration gained an output after this generation was opened
                connection.execute(sql.SQL("ALTER TABLE {} ADD COLUMN {} real").format(child, sql.Identifier(column)))
            if connection.execute("SELECT 1 FROM pg_index WHERE indrelid = %s::regclass", (name,)).fetchone():
                return True
            entity = connection.execute(
                "SELECT entity FROM generations WHERE pipeline = %s AND generation = %s",
                (attempt.pipeline, attempt.generation),
            ).fetchone()
            assert entity is not None  # noqa: S101  (the token was checked on its row)
            key = sql.Identifier(entity[0])
            connection.execute(sql.SQL("SET LOCAL maintenance_work_mem = {}").format(sql.Literal(INDEX_MEMORY)))
            try:
                with connection.transaction():
                    connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(child, key))
                    connection.execute(sql.SQL("CREATE INDEX ON {} (partition)").format(child))
            except psycopg.errors.UniqueViolation as error:
                reason = f"an entity stands in two partitions: {error.diag.message_detail}"
                reject_generation(connection, attempt.pipeline, attempt.generation, reason)
                return False
        passing("publish.indexed")
        return True


def _settle(connection: Connection, attempt: Attempt, pipeline: Pipeline, now: datetime) -> None:
    """Decide about a staged generation and carry that out, in the caller's transaction."""
    mine = read_generation(connection, attempt.pipeline, attempt.generation)
    board = read_board(connection, attempt.pipeline, attempt.generation)
    current = None if board.current is None else read_generation(connection, attempt.pipeline, board.current)
    assert mine is not None  # noqa: S101  (the token was checked on its row)
    if mine.partitioning != repr(pipeline.partitions):
        raise UsageError(
            f"generation {mine.generation} of {mine.pipeline} was planned for {mine.partitioning}, declared is "
            f"{pipeline.partitions!r} by now: it is not published; start a new run"
        )
    decision = _decide(connection, attempt, pipeline, current)
    if decision.state == "rejected":
        _reject(connection, attempt, decision.coverage, decision.reason + _lacking(connection, attempt, pipeline))
        return
    if decision.state == "current":
        need_same_partitioning(connection, mine.pipeline, mine.partitioning)
    try:
        with connection.transaction():
            _carry_out(connection, mine, decision, current, now)
            manifest = write_end_manifest(connection, attempt, pipeline)
            # Of a generation of the past nobody expects to be like the current one.
            alert = _asked(manifest, connection, pipeline, board.current) if decision.state == "current" else ""
            passing("publish.manifest-written")
            connection.execute(
                "UPDATE generations SET alert = %s WHERE pipeline = %s AND generation = %s",
                (shortened(alert), mine.pipeline, mine.generation),
            )
    except _Refused as refusal:
        _reject(connection, attempt, decision.coverage, str(refusal))
        return
    _attach(connection, attempt)
    if decision.state == "current":
        carry_out_move(connection, attempt.pipeline, publish(board, attempt.generation), now)
        passing("publish.pointer-moved")


def _asked(manifest: EndManifest, connection: Connection, pipeline: Pipeline, current: int | None) -> str:
    """What the hook finds unusual; empty if nothing.

    Raises:
        _Refused: the declaration says no.
    """
    before = read_end_manifest(connection, pipeline.name, current)
    found = "; ".join(unusual(manifest, before, pipeline.jump))
    if found and pipeline.jump.refuse:
        raise _Refused(f"it differs too much from the generation before: {found}")
    no = pipeline.may_publish(manifest, before) if pipeline.may_publish is not None else None
    if no:
        raise _Refused(f"may_publish said no: {no}")
    return found


def _reject(connection: Connection, attempt: Attempt, coverage: float, reason: str) -> None:
    reject_generation(connection, attempt.pipeline, attempt.generation, reason)
    connection.execute(
        "UPDATE generations SET coverage = %s WHERE pipeline = %s AND generation = %s",
        (coverage, attempt.pipeline, attempt.generation),
    )


def _lacking(connection: Connection, attempt: Attempt, pipeline: Pipeline) -> str:
    """What the ledger says of partitions that a generation does not cover: the first reasons, and how many more."""
    rows = connection.execute(
        "SELECT partition, state, reason FROM ledger WHERE pipeline = %s AND generation = %s "
        "AND state NOT IN ('staged', 'unchanged') ORDER BY reason = '', partition",
        (attempt.pipeline, attempt.generation),
    ).fetchall()
    said = [
        f"{pipeline.partitions.label(partition)}: {reason or f'it is {state}, and was not scored'}"
        for partition, state, reason in rows[:REASONS_SHOWN_MAX]
    ]
    more = f"; and {len(rows) - len(said)} more" if len(rows) > len(said) else ""
    return f" ({'; '.join(said)}{more}): mend the input and run again" if said else ""


def _decide(
    connection: Connection, attempt: Attempt, pipeline: Pipeline, current: GenerationRecord | None
) -> PublishDecision:
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE l.state IN ('staged', 'unchanged')), count(*), g.as_of, g.backfill "
        "FROM ledger l JOIN generations g USING (pipeline, generation) WHERE pipeline = %s AND generation = %s "
        "GROUP BY g.as_of, g.backfill",
        (attempt.pipeline, attempt.generation),
    ).fetchone()
    assert row is not None  # noqa: S101  (a generation is opened with its ledger)
    return decide_publish(
        staged=row[0],
        planned=row[1],
        coverage_min=pipeline.coverage_min,
        as_of=row[2],
        current_as_of=None if current is None else current.as_of,
        backfill=row[3],
    )


def _carry_out(
    connection: Connection,
    mine: GenerationRecord,
    decision: PublishDecision,
    current: GenerationRecord | None,
    now: datetime,
) -> None:
    """Write the manifest, and the outcome into the generation's row."""
    name, number = mine.pipeline, mine.generation
    connection.execute(_MANIFEST_STAGED, {"pipeline": name, "generation": number})
    # An archived generation takes nothing from the current one, which knows what came later.
    if decision.state == "current" and current is not None:
        connection.execute(
            _MANIFEST_CARRIED,
            {
                "pipeline": name,
                "generation": number,
                "current": current.generation,
                "outputs": list(mine.outputs),
                "partitioning": mine.partitioning,
            },
        )
    connection.execute(
        "UPDATE generations SET state = CASE WHEN %s = 'archived' THEN 'archived' ELSE state END, "
        "coverage = %s, reason = %s, published_at = %s, "
        "rows = (SELECT coalesce(sum(rows), 0) FROM generation_partitions WHERE pipeline = %s AND generation = %s) "
        "WHERE pipeline = %s AND generation = %s",
        (decision.state, decision.coverage, decision.reason, now, name, number, name, number),
    )


def _attach(connection: Connection, attempt: Attempt) -> None:
    name, number = attempt.pipeline, attempt.generation
    connection.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(
            sql.Identifier(table_name(name)), sql.Identifier(child_name(name, number)), sql.Literal(number)
        )
    )
    passing("publish.attached")


def _carried(connection: Connection, attempt: Attempt) -> int:
    row: Any = connection.execute(
        "SELECT count(*) FROM generation_partitions WHERE pipeline = %s AND generation = %s AND origin <> generation",
        (attempt.pipeline, attempt.generation),
    ).fetchone()
    return int(row[0])


def _publication(outcome: GenerationRecord, carried: int) -> Publication:
    if outcome.state is State.REJECTED:
        raise GateError(
            f"generation {outcome.generation} of {outcome.pipeline} was rejected: {outcome.reason}; "
            "the current one stays: see what was quarantined, and run again"
        )
    return Publication.of(outcome, carried)
