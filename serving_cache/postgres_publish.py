"""Publishing: what becomes of a staged generation, in one transaction; and rollback.

The numbered steps of `publish` are those of `docs/architecture.md`:

1. index the rows, in a transaction of its own, while nobody reads them;
2. lock the pointer, check the fencing token, decide;
3. write the manifest: what the run staged, and what is carried forward;
4. attach the rows;
5. move the pointer and add one to its epoch; commit 2 to 5 together.

A death anywhere leaves the generation staged, or published whole.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from almanac.decisions import PublishDecision, decide_publish
from almanac.errors import GateError, UsageError
from almanac.pipeline import Pipeline
from serving_cache.layout import child_name, table_name
from serving_cache.postgres_client import Connection
from serving_cache.postgres_rows import (
    StoreBase,
    check_token,
    lock_pointer,
    read_generation,
)
from serving_cache.postgres_staging import reject_generation
from serving_cache.records import Attempt, GenerationRecord, Publication, State

_MANIFEST_STAGED = """
INSERT INTO generation_partitions
    (pipeline, generation, partition, origin, block_hash, rows, as_of, computed_at, input_digest)
SELECT pipeline, generation, partition, coalesce(origin, generation), block_hash, rows, as_of, computed_at, input_digest
FROM ledger WHERE pipeline = %(pipeline)s AND generation = %(generation)s AND state IN ('staged', 'unchanged')
"""

_MANIFEST_CARRIED = """
INSERT INTO generation_partitions
    (pipeline, generation, partition, origin, block_hash, rows, as_of, computed_at, reason)
SELECT m.pipeline, l.generation, m.partition, m.origin, m.block_hash, m.rows, m.as_of, m.computed_at,
    CASE l.state WHEN 'quarantined' THEN 'quarantined: ' || l.reason ELSE 'not scored by generation ' || l.generation
    END
FROM ledger l JOIN generation_partitions m ON m.pipeline = l.pipeline AND m.partition = l.partition
JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin
WHERE l.pipeline = %(pipeline)s AND l.generation = %(generation)s AND l.state NOT IN ('staged', 'unchanged')
    AND m.generation = %(current)s AND o.outputs = %(outputs)s AND o.partitioning = %(partitioning)s
"""


class Publishing(StoreBase):
    """The part of `PostgresStore` that moves the pointer."""

    def publish(self, attempt: Attempt, pipeline: Pipeline, *, now: datetime) -> Publication:
        """Make a staged generation current; or archive it, if it is from an earlier as_of than the current one.

        Partitions that are quarantined or missing are carried forward from the
        current generation, with their old as_of. Publishing again returns the
        first outcome.

        Raises:
            Superseded: another attempt has taken over; nothing changed.
            GateError: the generation is rejected (now, or when it was first published); the current one stays.
            UsageError: there is no such generation.
            Unavailable: Postgres does not answer; nothing changed, or everything did: try again to learn which.
        """
        self._index(attempt)
        with self._client.transaction() as connection:
            _, current_number, _ = lock_pointer(connection, attempt.pipeline)
            state = check_token(connection, attempt, exclusive=True)
            if state is State.STAGED:
                current = _generation(connection, attempt.pipeline, current_number)
                decision = _decide(connection, attempt, pipeline, current)
                _carry_out(connection, attempt, decision, current, now)
            outcome = _generation(connection, attempt.pipeline, attempt.generation)
            carried = _carried(connection, attempt)
        assert outcome is not None  # noqa: S101  (the token was checked on its row)
        return _publication(outcome, carried)

    def rollback(self, pipeline: str, *, now: datetime) -> Publication:
        """Make the previous generation current again; the one that is left is marked rolled back.

        Raises:
            UsageError: there is no previous generation.
            Unavailable: Postgres does not answer.
        """
        with self._client.transaction() as connection:
            epoch, current, previous = lock_pointer(connection, pipeline)
            if previous is None or current is None:
                raise UsageError(
                    f"pipeline {pipeline} has no previous generation to go back to: `almanac generations {pipeline}`"
                )
            older = connection.execute(
                "SELECT generation FROM generations WHERE pipeline = %s AND state = 'retired' AND dropped_at IS NULL "
                "ORDER BY epoch DESC LIMIT 1",
                (pipeline,),
            ).fetchone()
            _set_state(connection, pipeline, current, State.ROLLED_BACK)
            _set_state(connection, pipeline, previous, State.CURRENT, epoch + 1)
            if older is not None:
                _set_state(connection, pipeline, older[0], State.PREVIOUS)
            connection.execute(
                "UPDATE pointers SET epoch = epoch + 1, generation = %s, previous = %s, moved_at = %s "
                "WHERE pipeline = %s",
                (previous, None if older is None else older[0], now, pipeline),
            )
            outcome = _generation(connection, pipeline, previous)
        assert outcome is not None  # noqa: S101  (the pointer refers to it)
        return _publication(outcome, 0)

    def _index(self, attempt: Attempt) -> None:
        """Bring the rows' table to the shape that readers expect; does nothing the second time."""
        name = child_name(attempt.pipeline, attempt.generation)
        child = sql.Identifier(name)
        with self._client.transaction() as connection:
            if check_token(connection, attempt, exclusive=True) is not State.STAGED:
                return
            missing = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
                "EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass",
                (table_name(attempt.pipeline), name),
            ).fetchall()
            for (column,) in missing:  # the declaration gained an output after this generation was opened
                connection.execute(sql.SQL("ALTER TABLE {} ADD COLUMN {} real").format(child, sql.Identifier(column)))
            if connection.execute("SELECT 1 FROM pg_index WHERE indrelid = %s::regclass", (name,)).fetchone():
                return
            entity = connection.execute(
                "SELECT entity FROM generations WHERE pipeline = %s AND generation = %s",
                (attempt.pipeline, attempt.generation),
            ).fetchone()
            assert entity is not None  # noqa: S101  (the token was checked on its row)
            key = sql.Identifier(entity[0])
            try:
                with connection.transaction():
                    connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(child, key))
                    connection.execute(sql.SQL("CREATE INDEX ON {} (partition)").format(child))
            except psycopg.errors.UniqueViolation as error:
                reason = f"an entity stands in two partitions: {error.diag.message_detail}"
                reject_generation(connection, attempt.pipeline, attempt.generation, reason)


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
    attempt: Attempt,
    decision: PublishDecision,
    current: GenerationRecord | None,
    now: datetime,
) -> None:
    name, number = attempt.pipeline, attempt.generation
    if decision.state == "rejected":
        reject_generation(connection, name, number, decision.reason)
        connection.execute(
            "UPDATE generations SET coverage = %s WHERE pipeline = %s AND generation = %s",
            (decision.coverage, name, number),
        )
        return
    connection.execute(_MANIFEST_STAGED, {"pipeline": name, "generation": number})
    # An archived generation takes nothing from the current one, which knows what came later.
    if decision.state == "current" and current is not None:
        mine = _generation(connection, name, number)
        assert mine is not None  # noqa: S101  (the token was checked on its row)
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
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(
            sql.Identifier(table_name(name)), sql.Identifier(child_name(name, number)), sql.Literal(number)
        )
    )
    connection.execute(
        "UPDATE generations SET state = %s, coverage = %s, reason = %s, published_at = %s, "
        "rows = (SELECT coalesce(sum(rows), 0) FROM generation_partitions WHERE pipeline = %s AND generation = %s) "
        "WHERE pipeline = %s AND generation = %s",
        (decision.state, decision.coverage, decision.reason, now, name, number, name, number),
    )
    if decision.state == "current":
        _move_pointer(connection, name, number, now)


def _move_pointer(connection: Connection, pipeline: str, generation: int, now: datetime) -> None:
    epoch, current, previous = lock_pointer(connection, pipeline)
    if previous is not None:
        _set_state(connection, pipeline, previous, State.RETIRED)
    if current is not None:
        _set_state(connection, pipeline, current, State.PREVIOUS)
    _set_state(connection, pipeline, generation, State.CURRENT, epoch + 1)
    connection.execute(
        "UPDATE pointers SET epoch = epoch + 1, generation = %s, previous = %s, moved_at = %s WHERE pipeline = %s",
        (generation, current, now, pipeline),
    )


def _set_state(connection: Connection, pipeline: str, generation: int, state: State, epoch: int | None = None) -> None:
    connection.execute(
        "UPDATE generations SET state = %s, epoch = coalesce(%s, epoch) WHERE pipeline = %s AND generation = %s",
        (state, epoch, pipeline, generation),
    )


def _generation(connection: Connection, pipeline: str, number: int | None) -> GenerationRecord | None:
    return None if number is None else read_generation(connection, pipeline, number)


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
    return Publication(
        generation=outcome.generation,
        epoch=outcome.epoch,
        state=State.ARCHIVED if outcome.state is State.ARCHIVED else State.CURRENT,
        coverage=outcome.coverage,
        rows=outcome.rows,
        reason=outcome.reason,
        carried=carried,
    )
