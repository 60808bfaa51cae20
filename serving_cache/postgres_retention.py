"""Retention: what no reader needs any more is dropped, without making a reader wait."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

import psycopg
from psycopg import sql

from almanac.decisions import Kept, abandoned, droppable, forgettable, to_drop, unneeded_models
from almanac.decisions import Retention as Keeping
from almanac.errors import AlmanacError, Unavailable
from almanac.failpoints import passing
from almanac.generation_states import TURNABLE, State
from almanac.pipeline import Pipeline
from serving_cache.layout import child_name, table_name
from serving_cache.postgres_client import Connection
from serving_cache.postgres_entities import forget_digests
from serving_cache.postgres_rows import StoreBase, lock_pointer
from serving_cache.postgres_staging import reject_generation

log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 2
DETACH_TIMEOUT_SECONDS = 10
DROPS_PER_RUN_MAX = 50
OVERLAYS_PER_RUN_MAX = 20_000
OVERLAY_MARGIN = timedelta(days=1)
MAY_ANSWER = TURNABLE | {State.CURRENT, State.STAGED}
"""States of generations that readers are answered by, or may come to be."""


class Retention(StoreBase):
    """The part of `PostgresStore` that lets go."""

    def retire(self, pipeline: Pipeline, *, now: datetime) -> list[int]:
        """Drop generations beyond `generations_kept`, their unreferenced rows, and overlays that nobody needs.

        These are the expired ones, and those by models that no generation which may answer is by.

        Rows that a kept generation carries forward stay. A table that a reader
        is using is left for the next time, and so are all while somebody else drops some.

        Returns:
            The generations whose manifests were dropped.

        Raises:
            Unavailable: Postgres does not answer.
        """
        with self._client.transaction() as connection:
            dropped = _drop_manifests(connection, pipeline, now)
            tables = _unreferenced(connection, pipeline.name)
            forget_digests(connection, pipeline.name, tables)
        passing("clean-up.manifests-dropped")
        self._drop_tables(pipeline.name, tables[:DROPS_PER_RUN_MAX])
        self._drop_overlays(pipeline, now)
        return dropped

    def _drop_overlays(self, pipeline: Pipeline, now: datetime) -> None:
        """Drop expired overlays and those of unneeded models, so many at a time."""
        written = self._client.query(
            "SELECT model, max(written_at) FROM overlay WHERE pipeline = %s GROUP BY model", (pipeline.name,)
        )
        needed = self._client.query(
            "SELECT DISTINCT model FROM generations WHERE pipeline = %s AND dropped_at IS NULL AND state = ANY(%s)",
            (pipeline.name, sorted(MAY_ANSWER)),
        )
        unneeded = unneeded_models(dict(written), {row[0] for row in needed}, now)
        self._client.query(
            "DELETE FROM overlay WHERE ctid = ANY(ARRAY(SELECT ctid FROM overlay "
            "WHERE pipeline = %s AND (as_of < %s OR model = ANY(%s)) LIMIT %s))",
            (
                pipeline.name, now - pipeline.freshness.usable_for - OVERLAY_MARGIN, unneeded, OVERLAYS_PER_RUN_MAX,
            ),
        )  # fmt: skip

    def _drop_tables(self, pipeline: str, generations: Sequence[int]) -> None:
        """Drop what can be dropped; the rest stays for the next time, for a publish must not fail of this."""
        with self._alone(pipeline) as connection:
            if connection is None:
                log.info("kept tables of %s for now: somebody else is dropping them", pipeline)
                return
            for generation in generations:
                if connection.closed:
                    return  # and the lock went with it
                try:
                    self._drop(pipeline, generation)
                except AlmanacError as error:
                    level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
                    log.log(level, "kept table=%s for now: %s", child_name(pipeline, generation), error)

    @contextmanager
    def _alone(self, pipeline: str) -> Iterator[Connection | None]:
        """The connection that holds others off who would drop tables of the pipeline; None while somebody else does.

        Two would take a detach that one waits in for one that was cut short, and finish it under the other's hands.
        The lock is the session's, for a detach beside readers runs in no transaction.
        """
        given = (f"almanac.retention.{pipeline}",)
        with self._client.session() as connection:
            row = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", given).fetchone()
            alone = row is not None and row[0]
            try:
                yield connection if alone else None
            finally:
                if alone and not connection.closed:
                    try:
                        connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", given)
                    except psycopg.Error as error:
                        log.info("closed the connection that retention of %s ran on: %s", pipeline, error)
                        self._client.close()  # what a session holds goes with it

    def _drop(self, pipeline: str, generation: int) -> None:
        """Detach a child without blocking readers, then drop it; takes up a detach that was cut short."""
        child = sql.Identifier(child_name(pipeline, generation))
        parent = sql.Identifier(table_name(pipeline))
        with self._client.session() as connection:
            connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            connection.execute(f"SET statement_timeout = '{DETACH_TIMEOUT_SECONDS}s'")
            try:
                attached = connection.execute(
                    "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass(%s)",
                    (child.as_string(connection),),
                ).fetchone()
                if attached is not None:
                    how = sql.SQL("FINALIZE" if attached[0] else "CONCURRENTLY")
                    connection.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(parent, child, how))
                passing("clean-up.detached")
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(child))
                passing("clean-up.table-dropped")
            finally:
                if not connection.closed:
                    connection.execute("RESET lock_timeout")
                    connection.execute("RESET statement_timeout")


def _drop_manifests(connection: Connection, pipeline: Pipeline, now: datetime) -> list[int]:
    _, current, previous = lock_pointer(connection, pipeline.name)
    rows = connection.execute(
        "SELECT generation, state, created_at, published_at, left_at, CASE WHEN state = 'staged' THEN (SELECT "
        "max(updated_at) FROM ledger l WHERE l.pipeline = g.pipeline AND l.generation = g.generation) END "
        "FROM generations AS g WHERE pipeline = %s AND dropped_at IS NULL AND state <> 'rejected'",
        (pipeline.name,),
    ).fetchall()
    found = [Kept(*row) for row in rows]
    for generation in abandoned(found, now):
        connection.execute(
            "UPDATE generations SET fencing_token = fencing_token + 1 WHERE pipeline = %s AND generation = %s",
            (pipeline.name, generation),
        )
        reject_generation(connection, pipeline.name, generation, "its run left it unfinished")
    pointed = [number for number in (current, previous) if number is not None]
    keeping = Keeping(
        generations=pipeline.generations_kept, previous=pipeline.previous_kept, rolled_back=pipeline.rolled_back_kept
    )
    gone = to_drop(found, pointed=pointed, retention=keeping, now=now)
    known, newest = _rejected(connection, pipeline.name)
    forgotten = forgettable(known, newest=newest, kept=pipeline.generations_kept)
    for statement in (
        "DELETE FROM generation_partitions WHERE pipeline = %s AND generation = ANY(%s)",
        "DELETE FROM ledger WHERE pipeline = %s AND generation = ANY(%s)",
    ):
        connection.execute(statement, (pipeline.name, [*gone, *forgotten]))
    connection.execute(
        "UPDATE generations SET dropped_at = %s, state = 'retired' WHERE pipeline = %s AND generation = ANY(%s)",
        (now, pipeline.name, gone),
    )
    return gone


def _rejected(connection: Connection, pipeline: str) -> tuple[list[int], int | None]:
    """Rejected generations that left something in the ledger or a manifest, and the pipeline's newest generation.

    Nothing refers to what a rejected one left: the manifests and ledgers of others refer to rows, which it has no more.
    """
    rows = connection.execute(
        "SELECT generation FROM generations AS g WHERE pipeline = %s AND state = 'rejected' AND (EXISTS (SELECT 1 "
        "FROM ledger l WHERE l.pipeline = g.pipeline AND l.generation = g.generation) OR EXISTS (SELECT 1 "
        "FROM generation_partitions m WHERE m.pipeline = g.pipeline AND m.generation = g.generation))",
        (pipeline,),
    ).fetchall()
    newest = connection.execute("SELECT max(generation) FROM generations WHERE pipeline = %s", (pipeline,)).fetchone()
    return [row[0] for row in rows], None if newest is None else newest[0]


def _unreferenced(connection: Connection, pipeline: str) -> list[int]:
    prefix = child_name(pipeline, 0)[:-1]
    tables = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace "
        "AND starts_with(relname, %s)",
        (prefix,),
    ).fetchall()
    existing = [int(name[len(prefix) :]) for (name,) in tables if re.fullmatch(r"\d+", name[len(prefix) :])]
    origins: dict[int, set[int]] = {}
    # What a published generation refers to stands in its manifest; a rejected one refers to nothing any more.
    for generation, origin in connection.execute(
        "SELECT generation, origin FROM generation_partitions WHERE pipeline = %s UNION "
        "SELECT l.generation, l.origin FROM ledger l JOIN generations g USING (pipeline, generation) "
        "WHERE l.pipeline = %s AND l.origin IS NOT NULL AND g.state = 'staged'",
        (pipeline, pipeline),
    ):
        origins.setdefault(generation, set()).add(origin)
    unfinished = connection.execute(
        "SELECT generation FROM generations WHERE pipeline = %s AND state = 'staged'", (pipeline,)
    ).fetchall()
    return droppable(origins, existing, [row[0] for row in unfinished])
