"""Filling a generation: open it, claim partitions and write their rows, or give it up."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from psycopg import sql

from almanac.errors import BlockError, PredictionError, UsageError
from almanac.failpoints import passing
from almanac.list_blocks import ListBlock
from almanac.pipeline import Pipeline
from almanac.tallies import tally
from serving_cache.layout import child_name, table_name
from serving_cache.postgres_client import Connection
from serving_cache.postgres_copying import HEADER, TRAILER, Packing, grouped
from serving_cache.postgres_entities import forget_digests, keep_digests
from serving_cache.postgres_ledger import Ledger, shortened
from serving_cache.postgres_lists import are_lists, copied_lists, summary_selects
from serving_cache.postgres_packing import read_rows
from serving_cache.postgres_proof import staged_blocks
from serving_cache.postgres_rows import (
    check_token,
    lock_pointer,
    need_same_partitioning,
    need_staged,
    token_checked,
    unknown_generation,
)
from serving_cache.records import Attempt, GenerationStart, StagedPartition

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_ROWS_MAX = 8_000_000

# What one attempt quarantined only a later one may score again: a task that was thought dead and is not shares its
# token with its successor, and must not bring back what a gate has thrown out meanwhile.
_CLAIM = """
SELECT partition FROM ledger
WHERE pipeline = %s AND generation = %s AND partition = ANY(%s::int[])
    AND (state = 'planned' OR state = 'quarantined' AND token < %s)
ORDER BY partition FOR UPDATE
"""

_STAGED = """
UPDATE ledger AS l SET state = 'staged', token = %(token)s, block_hash = v.block_hash, rows = v.rows,
    reason = '', report = '',
    as_of = v.as_of, computed_at = v.computed_at, input_digest = v.input_digest,
    stats = v.stats, updated_at = clock_timestamp()
FROM jsonb_to_recordset(%(described)s::jsonb) AS v(partition int, block_hash text, rows int, as_of timestamptz,
    computed_at timestamptz, input_digest text, stats jsonb)
WHERE l.pipeline = %(pipeline)s AND l.generation = %(generation)s AND l.partition = v.partition
    AND l.partition = ANY(%(partitions)s::int[])  -- or all of a large generation's would be compared with these few
"""


class Staging(Ledger):
    """The part of `PostgresStore` that batch runs write with."""

    def begin_generation(self, pipeline: Pipeline, start: GenerationStart, *, now: datetime) -> Attempt:
        """Open the generation of a run, or resume the one it left unfinished, with a greater token.

        An unfinished generation whose inputs differ (another model, as_of, cutoff or
        declaration) cannot be resumed: it is rejected, and a new one is opened.

        Raises:
            UsageError: the pipeline has no tables, the partitions are not its own, or its partitioning is not that of
                the generation which readers read.
            Unavailable: Postgres does not answer.
        """
        planned = sorted(set(start.partitions))
        if not planned or planned[0] < 0 or planned[-1] >= pipeline.partitions.count:
            raise UsageError(
                f"pipeline {pipeline.name} has the partitions 0 to {pipeline.partitions.count - 1}: plan some of these"
            )
        with self._client.transaction() as connection:
            lock_pointer(connection, pipeline.name)
            if not start.backfill:
                need_same_partitioning(connection, pipeline.name, repr(pipeline.partitions))
            attempt = _resume(connection, pipeline, start) or _open(connection, pipeline, start, planned, now)
        passing("plan.opened")
        return attempt

    def take_over(self, pipeline: str, generation: int) -> Attempt:
        """A new attempt at a generation; every earlier one is superseded.

        Raises:
            UsageError: there is no such generation.
            Unavailable: Postgres does not answer.
        """
        rows = self._client.query(
            "UPDATE generations SET fencing_token = fencing_token + 1 WHERE pipeline = %s AND generation = %s "
            "RETURNING fencing_token",
            (pipeline, generation),
        )
        if not rows:
            raise unknown_generation(pipeline, generation)
        return Attempt(pipeline=pipeline, generation=generation, token=rows[0][0])

    def stage(self, attempt: Attempt, staged: Sequence[StagedPartition]) -> list[int]:
        """Write partitions into the generation; returns those that were not decided about before.

        Claim and rows are one transaction: a partition is staged whole or not at
        all, and once, however many attempts try.

        Raises:
            Superseded: another attempt has taken over; nothing was written.
            PredictionError: a prediction is NaN or infinite; nothing was written.
            UsageError: the generation has its outcome already.
            Unavailable: Postgres does not answer; nothing was written.
        """
        if not staged:
            return []
        _check(attempt, staged)
        by_partition = {part.partition: part for part in staged}
        with self._client.transaction() as connection:
            columns = _columns(connection, attempt)
            for part in staged:
                _check_columns(attempt, part, columns)
            found = connection.execute(
                _CLAIM, (attempt.pipeline, attempt.generation, list(by_partition), attempt.token)
            ).fetchall()
            claimed = [by_partition[row[0]] for row in found]
            passing("score.claimed")
            described = _write_rows(connection, attempt, columns, claimed)
            passing("score.rows-written")
            staged_now = [part.partition for part in claimed]
            given = {"described": msgspec.json.encode(described).decode(), "partitions": staged_now}
            connection.execute(_STAGED, asdict(attempt) | given)
            origins = [(attempt.generation, part.partition, part.entity_digests) for part in claimed]
            keep_digests(connection, attempt.pipeline, origins)
        passing("score.staged")
        return staged_now

    def reject(self, attempt: Attempt, reason: str) -> None:
        """Give a staged generation up and drop its rows; one already rejected stays as it is.

        Raises:
            Superseded: another attempt has taken over.
            UsageError: it was published.
        """
        with self._client.transaction() as connection:
            state = check_token(connection, attempt, exclusive=True)
            if state != "rejected":
                need_staged(attempt, state)
                reject_generation(connection, attempt.pipeline, attempt.generation, reason)

    def staged_sizes(self, attempt: Attempt) -> dict[int, int]:
        """The partitions that are staged so far, ascending, and how many rows each has.

        Raises:
            Superseded: another attempt has taken over.
            UsageError: the generation has its outcome already.
        """
        with self._client.transaction() as connection:
            _columns(connection, attempt)
            return {partition: rows for partition, _, rows in staged_blocks(connection, attempt)}

    def staged_rows(self, attempt: Attempt, partitions: Collection[int] | None = None) -> pa.Table:
        """What is staged so far, of some partitions or all: partition, the entity, and each output (float32).

        Of lists a row each, with what `postgres_lists.summary_selects` says of them.

        Raises:
            Superseded: another attempt has taken over.
            UsageError: the generation has its outcome already.
        """
        import pyarrow as pa

        with self._client.transaction() as connection:
            columns = _columns(connection, attempt)
            child = child_name(attempt.pipeline, attempt.generation)
            outputs, numbers = columns.outputs, None
            if are_lists(outputs):
                outputs, numbers = summary_selects((columns.entity, *outputs))
            found = list(read_rows(connection, child, (columns.entity, *outputs), partitions, numbers=numbers))
        owners = np.repeat(
            np.array([rows.partition for rows in found], dtype=np.int32), [len(rows.keys) for rows in found]
        )
        kind = np.dtype(np.int64 if columns.whole_keys else "S1")
        keys = np.concatenate([np.empty(0, kind), *(rows.keys for rows in found)])
        values = {
            name: np.concatenate([np.empty(0, np.float32), *(rows.columns[name] for rows in found)]) for name in outputs
        }
        entities = keys if columns.whole_keys else pa.array(keys).cast(pa.string())
        return pa.table({"partition": owners, columns.entity: entities, **values})


def reject_generation(connection: Connection, pipeline: str, generation: int, reason: str) -> None:
    """Mark a generation rejected and drop its rows, within the caller's transaction."""
    connection.execute(
        "UPDATE generations SET state = 'rejected', reason = %s WHERE pipeline = %s AND generation = %s",
        (shortened(reason), pipeline, generation),
    )
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(child_name(pipeline, generation))))
    forget_digests(connection, pipeline, [generation])


def _resume(connection: Connection, pipeline: Pipeline, start: GenerationStart) -> Attempt | None:
    found = connection.execute(
        "SELECT generation, cutoff, as_of, model, model_hash, partitioning, outputs, clock_shift_seconds, code_digest "
        "FROM generations WHERE pipeline = %s AND run_key = %s AND state = 'staged' FOR UPDATE",
        (pipeline.name, start.run_key),
    ).fetchone()
    if found is None:
        return None
    wanted = (
        start.cutoff, start.as_of, start.model, start.model_hash, repr(pipeline.partitions),
        list(pipeline.stored_columns), start.clock_shift.total_seconds(), start.code_digest,
    )  # fmt: skip
    if tuple(found[1:]) != wanted:
        reject_generation(connection, pipeline.name, found[0], "its run was planned anew from other inputs")
        return None
    row = connection.execute(
        # What was scored before the source changed must not pass for what is there now.
        "UPDATE generations SET fencing_token = fencing_token + 1, "
        "source_digest = CASE source_digest WHEN %s THEN source_digest ELSE '' END "
        "WHERE pipeline = %s AND generation = %s RETURNING fencing_token",
        (start.source_digest, pipeline.name, found[0]),
    ).fetchone()
    assert row is not None  # noqa: S101  (the row is locked above)
    connection.execute(
        # One row of the ledger tells retention that somebody is at work, before the first partition is staged again.
        "UPDATE ledger SET updated_at = clock_timestamp() WHERE pipeline = %s AND generation = %s "
        "AND partition = (SELECT min(partition) FROM ledger WHERE pipeline = %s AND generation = %s)",
        (pipeline.name, found[0], pipeline.name, found[0]),
    )
    return Attempt(pipeline=pipeline.name, generation=found[0], token=row[0])


def _open(
    connection: Connection, pipeline: Pipeline, start: GenerationStart, planned: list[int], now: datetime
) -> Attempt:
    row = connection.execute(
        "INSERT INTO generations (pipeline, generation, run_key, cutoff, as_of, state, model, model_hash, entity, "
        "outputs, partitioning, partitions, fencing_token, clock_shift_seconds, created_at, code_digest, "
        "source_digest, backfill, default_list) SELECT %s, coalesce(max(generation), 0) + 1, %s, %s, %s, 'staged', "
        "%s, %s, %s, %s, %s, %s, 1, %s, %s, %s, %s, %s, %s::jsonb "
        "FROM generations WHERE pipeline = %s RETURNING generation",
        (
            pipeline.name,
            start.run_key,
            start.cutoff,
            start.as_of,
            start.model,
            start.model_hash,
            pipeline.entity,
            list(pipeline.stored_columns),
            repr(pipeline.partitions),
            len(planned),
            start.clock_shift.total_seconds(),
            now,
            start.code_digest,
            start.source_digest,
            start.backfill,
            None if start.default_list is None else msgspec.json.encode(start.default_list).decode(),
            pipeline.name,
        ),
    ).fetchone()
    assert row is not None  # noqa: S101  (an INSERT that returns)
    generation: int = row[0]
    connection.execute(
        "INSERT INTO ledger (pipeline, generation, partition, state, token) "
        "SELECT %s, %s, unnest(%s::int[]), 'planned', 1",
        (pipeline.name, generation, planned),
    )
    # The constraint is what lets ATTACH skip a scan of the rows.
    connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE {}, CHECK (generation = {}))").format(
            sql.Identifier(child_name(pipeline.name, generation)),
            sql.Identifier(table_name(pipeline.name)),
            sql.Literal(generation),
        )
    )
    return Attempt(pipeline=pipeline.name, generation=generation, token=1)


def _check(attempt: Attempt, staged: Sequence[StagedPartition]) -> None:
    rows = sum(part.block.rows for part in staged)
    if rows > STAGE_ROWS_MAX:
        raise UsageError(f"{rows:,} rows are staged at once, at most {STAGE_ROWS_MAX:,} fit: make shards smaller")
    if len({part.partition for part in staged}) != len(staged):
        raise UsageError(f"a partition is staged twice in one call for {attempt.pipeline}: give each once")


class _Columns(NamedTuple):
    entity: str
    whole_keys: bool
    outputs: tuple[str, ...]


def _columns(connection: Connection, attempt: Attempt) -> _Columns:
    """The columns of the attempt's generation, which is held until the transaction ends."""
    row = connection.execute(
        "SELECT g.fencing_token, g.state, g.entity, a.atttypid = 'bigint'::regtype, g.outputs FROM generations g "
        "LEFT JOIN pg_attribute a ON a.attrelid = to_regclass(%s) AND a.attname = g.entity "
        "WHERE g.pipeline = %s AND g.generation = %s FOR SHARE OF g",
        (
            sql.Identifier(table_name(attempt.pipeline)).as_string(connection),
            attempt.pipeline,
            attempt.generation,
        ),
    ).fetchone()
    need_staged(attempt, token_checked(attempt, row))
    assert row is not None  # noqa: S101  (its token was checked)
    return _Columns(row[2], bool(row[3]), tuple(row[4]))


def _check_columns(attempt: Attempt, part: StagedPartition, columns: _Columns) -> None:
    """Refuse a block of another shape: binary COPY would take eight bytes of text for a whole number."""
    found = part.block.stored_columns
    if found != columns.outputs:
        raise BlockError(
            f"partition {part.partition} has the columns {', '.join(found)}, generation {attempt.generation} of "
            f"{attempt.pipeline} {', '.join(columns.outputs)}: stage these, in this order"
        )
    if (part.block.keys.dtype.kind != "S") != columns.whole_keys:
        raise BlockError(
            f"partition {part.partition} has keys of type {part.block.keys.dtype}, {attempt.pipeline} has "
            f"{'whole numbers' if columns.whole_keys else 'text'} for {columns.entity}: stage these"
        )


def _write_rows(
    connection: Connection, attempt: Attempt, columns: _Columns, parts: list[StagedPartition]
) -> list[dict[str, Any]]:
    """Send the rows, and describe each partition for the ledger while the server takes them in.

    Raises:
        PredictionError: a prediction is NaN or infinite.
    """
    names = ("generation", "partition", columns.entity, *columns.outputs)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(child_name(attempt.pipeline, attempt.generation)),
        sql.SQL(", ").join(map(sql.Identifier, names)),
    )
    described: list[dict[str, Any]] = []
    lists = are_lists(columns.outputs)
    rows_of = partial(copied_lists, attempt.generation) if lists else Packing(attempt.generation).packed
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(HEADER)
        for group in grouped(parts):
            for data in rows_of(group):
                copy.write(data)
            described += [_described(attempt, part) for part in group]
        copy.write(TRAILER)
    return described


def _described(attempt: Attempt, part: StagedPartition) -> dict[str, Any]:
    """A partition as the ledger has it."""
    tallies = tally(part.block)
    for name, column in part.block.columns.items():
        lists = isinstance(part.block, ListBlock)
        _, _, total, nulls = (None, None, float(column.sum(dtype=np.float64)), 0) if lists else tallies[name]
        if nulls or not math.isfinite(total):
            bad = int(np.count_nonzero(~np.isfinite(column)))
            raise PredictionError(
                f"partition {part.partition} of {attempt.pipeline}: {bad} of {len(column)} values of {name} are "
                "NaN or infinite: quarantine the partition"
            )
    return {
        "partition": part.partition,
        "block_hash": part.block.hash,
        "rows": part.block.rows,
        "as_of": part.as_of,
        "computed_at": part.computed_at,
        "input_digest": part.input_digest,
        "stats": tallies,
    }
