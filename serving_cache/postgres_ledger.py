"""The ledger: what a run has decided about each partition, each by compare-and-set under its fencing token.

planned -> staged        its rows are written
planned -> unchanged     its inputs, model and code are those of rows that readers have already
any     -> quarantined   a gate or the scorer refused it; a later attempt may score it again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from psycopg import sql

from almanac.clock import need_utc
from almanac.errors import UsageError
from serving_cache.layout import child_name
from serving_cache.postgres_client import Connection
from serving_cache.postgres_rows import StoreBase, check_token, need_staged, token_checked
from serving_cache.records import Attempt, Basis
from serving_cache.stage_times import StageTime, recent

REASON_CHARACTERS_MAX = 500
ORIGINS_MAX = 8
"""Generations whose rows one generation may refer to; what the others wrote is scored again, so that they can go."""

# The origins whose rows the next generation may refer to; worked out once, not for each partition.
_KEPT = """kept AS MATERIALIZED (
    SELECT k.origin FROM pointers q JOIN generation_partitions k USING (pipeline, generation)
    WHERE q.pipeline = %(pipeline)s GROUP BY k.origin ORDER BY count(*) DESC, k.origin DESC LIMIT %(origins)s)"""

# Rows that readers have, of the current generation: what made them is what would make them now, if these are equal.
# They must not have been carried forward because something was wrong with them. An origin that few refer to is let go.
_SAME = """
SELECT m.partition, m.origin, m.block_hash, m.rows, m.computed_at, m.input_digest, m.stats
FROM pointers p
JOIN generations c ON c.pipeline = p.pipeline AND c.generation = p.generation
JOIN generation_partitions m ON m.pipeline = p.pipeline AND m.generation = p.generation
JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin
JOIN generations g ON g.pipeline = p.pipeline AND g.generation = %(generation)s
WHERE p.pipeline = %(pipeline)s AND m.input_digest <> '' AND m.reason = ''
    AND g.as_of >= c.as_of AND NOT g.backfill AND g.generation <> c.generation
    AND o.model_hash = g.model_hash AND o.code_digest = g.code_digest AND g.code_digest <> ''
    AND o.outputs = g.outputs AND o.partitioning = g.partitioning
    AND m.origin IN (SELECT origin FROM kept)
"""

_CARRY = """
WITH {kept}
UPDATE ledger AS l SET state = 'unchanged', token = %(token)s, origin = s.origin, block_hash = s.block_hash,
    rows = s.rows, as_of = g.as_of, computed_at = s.computed_at, input_digest = {digest}, stats = s.stats,
    reason = '', report = '', updated_at = clock_timestamp()
FROM ({same}) AS s, generations AS g{given}
WHERE l.pipeline = %(pipeline)s AND l.generation = %(generation)s AND l.partition = s.partition
    AND g.pipeline = l.pipeline AND g.generation = l.generation
    AND (l.state = 'planned' OR l.state = 'quarantined' AND l.token < %(token)s){condition}
RETURNING l.partition
"""
_GIVEN = ", unnest(%(partitions)s::int[], %(digests)s::text[], %(hashes)s::text[]) AS v(partition, digest, hash)"
_DIGEST_EQUAL = " AND v.partition = l.partition AND v.digest = s.input_digest"
_BLOCK_EQUAL = " AND v.partition = l.partition AND v.hash = s.block_hash"
_SOURCE_EQUAL = """ AND g.source_digest <> '' AND g.source_digest = (
    SELECT c.source_digest FROM pointers p JOIN generations c USING (pipeline, generation)
    WHERE p.pipeline = %(pipeline)s)"""


# The partition, then the fields of `Basis` in their order.
_BASIS = f"""
WITH {_KEPT}
SELECT m.partition, m.origin, m.rows, m.reason, m.input_digest, o.model, o.model_hash, o.code_digest,
    o.outputs, o.partitioning, m.origin IN (SELECT origin FROM kept)
FROM pointers p
JOIN generation_partitions m ON m.pipeline = p.pipeline AND m.generation = p.generation
JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin
WHERE p.pipeline = %(pipeline)s ORDER BY m.partition
"""  # noqa: S608  (constants)


class Ledger(StoreBase):
    """The part of `PostgresStore` that decides about partitions."""

    def pending(self, attempt: Attempt, partitions: Sequence[int]) -> list[int]:
        """Those of the partitions that this attempt has not decided about yet, in the order given.

        Raises:
            Superseded: another attempt has taken over.
        """
        with self._client.session() as connection:  # nothing is held: `stage` looks again
            row = connection.execute(
                "SELECT fencing_token, state, ARRAY(SELECT partition FROM ledger WHERE pipeline = g.pipeline "
                "AND generation = g.generation AND partition = ANY(%s::int[]) "
                "AND (state = 'planned' OR state = 'quarantined' AND token < %s)) "
                "FROM generations g WHERE pipeline = %s AND generation = %s",
                (list(partitions), attempt.token, attempt.pipeline, attempt.generation),
            ).fetchone()
        token_checked(attempt, row)
        waiting = set() if row is None else set(row[2])
        return [partition for partition in partitions if partition in waiting]

    def carry_unchanged(self, attempt: Attempt, digests: Mapping[int, str] | None = None) -> list[int]:
        """Carry forward by reference what did not change: the rows stay where they are, and speak as of this run.

        A partition is unchanged if the current generation has it, scored from equal
        features by the same model and code. It keeps its `computed_at`.

        Args:
            digests: partition to the digest of its features now; None: all partitions, if what the features are read
                from is as it was when the current generation was planned.

        Returns:
            The partitions that need not be scored, ascending; those found before are not among them.

        Raises:
            Superseded: another attempt has taken over.
            UsageError: the generation has its outcome already.
        """
        with self._client.transaction() as connection:
            need_staged(attempt, check_token(connection, attempt, exclusive=False))
            return carried_by_reference(connection, attempt, digests)

    def basis(self, pipeline: str) -> tuple[str, dict[int, Basis]]:
        """What the next run is compared with: the current generation's source digest, and each of its partitions."""
        found = self._client.query(
            "SELECT c.source_digest FROM pointers p JOIN generations c USING (pipeline, generation) "
            "WHERE pipeline = %s",
            (pipeline,),
        )
        rows = self._client.query(_BASIS, {"pipeline": pipeline, "origins": ORIGINS_MAX})
        return found[0][0] if found else "", {
            row[0]: msgspec.convert(dict(zip(Basis.__struct_fields__, row[1:], strict=True)), Basis) for row in rows
        }

    def published(self, pipeline: str, first: datetime, last: datetime) -> dict[datetime, tuple[int, str]]:
        """The generations that were published for moments of a time, ends included: number and state, by cutoff."""
        rows = self._client.query(
            "SELECT cutoff, generation, state FROM generations WHERE pipeline = %s AND cutoff BETWEEN %s AND %s "
            "AND published_at IS NOT NULL ORDER BY generation",
            (pipeline, first, last),
        )
        return {need_utc(cutoff): (generation, state) for cutoff, generation, state in rows}

    def recent_stages(self, pipeline: str, limit: int) -> list[StageTime]:
        """What the newest stages took that were done."""
        return recent(self._client, pipeline, limit)

    def quarantine(
        self, attempt: Attempt, partition: int, reason: str, *, report: str = "", staged_too: bool = True
    ) -> bool:
        """Mark a partition as bad, and take out its rows if it was staged; returns whether it did.

        Publishing carries the partition's last good block forward.

        Args:
            report: where a person finds what the gate found, below the state directory.
            staged_too: False leaves a partition alone that is staged by now. Two tasks may score the same shard under
                one token (the first was thought dead): what is decided first about a partition stands.

        Raises:
            Superseded: another attempt has taken over.
            UsageError: the generation has its outcome already, or did not plan this partition.
        """
        child = sql.Identifier(child_name(attempt.pipeline, attempt.generation))
        with self._client.transaction() as connection:
            need_staged(attempt, check_token(connection, attempt, exclusive=False))
            changed = connection.execute(
                "UPDATE ledger SET state = 'quarantined', token = %s, block_hash = NULL, rows = 0, origin = NULL, "
                "stats = NULL, "
                "reason = %s, report = %s, updated_at = clock_timestamp() "
                "WHERE pipeline = %s AND generation = %s AND partition = %s "
                "AND (%s OR state NOT IN ('staged', 'unchanged'))",
                (
                    attempt.token,
                    with_report(reason, report),
                    report,
                    attempt.pipeline,
                    attempt.generation,
                    partition,
                    staged_too,
                ),
            ).rowcount
            if not changed and not staged_too and _is_planned(connection, attempt, partition):
                return False
            if not changed:
                raise UsageError(
                    f"generation {attempt.generation} of {attempt.pipeline} did not plan partition {partition}"
                )
            connection.execute(sql.SQL("DELETE FROM {} WHERE partition = %s").format(child), (partition,))
            connection.execute(
                "DELETE FROM entity_digests WHERE pipeline = %s AND generation = %s AND partition = %s",
                (attempt.pipeline, attempt.generation, partition),
            )
        return True


def carried_by_reference(
    connection: Connection,
    attempt: Attempt,
    digests: Mapping[int, str] | None,
    hashes: Mapping[int, str] | None = None,
) -> list[int]:
    """Carry partitions forward in the caller's transaction, which holds the generation; returns them, ascending.

    Args:
        digests: as in `Ledger.carry_unchanged`.
        hashes: of the blocks that these partitions have come to; then those of equal blocks are carried forward, and
            `digests` say what they were made from this time.
    """
    # Of rows that were written just now the planner knows nothing: left to itself it compares each with each.
    connection.execute("SET LOCAL enable_nestloop = off")
    by_digest = _SOURCE_EQUAL if digests is None else _DIGEST_EQUAL
    statement = _CARRY.format(
        kept=_KEPT,
        same=_SAME,
        given="" if digests is None else _GIVEN,
        condition=by_digest if hashes is None else _BLOCK_EQUAL,
        digest="s.input_digest" if hashes is None else "v.digest",
    )
    known = digests or {}
    values = {
        "pipeline": attempt.pipeline,
        "generation": attempt.generation,
        "token": attempt.token,
        "origins": ORIGINS_MAX,
        "partitions": list(known),
        "digests": list(known.values()),
        "hashes": [(hashes or {}).get(partition) for partition in known],
    }
    return sorted(row[0] for row in connection.execute(sql.SQL(statement), values).fetchall())


def _is_planned(connection: Connection, attempt: Attempt, partition: int) -> bool:
    found = connection.execute(
        "SELECT 1 FROM ledger WHERE pipeline = %s AND generation = %s AND partition = %s",
        (attempt.pipeline, attempt.generation, partition),
    ).fetchone()
    return found is not None


def shortened(reason: str, most: int = REASON_CHARACTERS_MAX) -> str:
    """A reason on one line, of a length that fits a table."""
    line = " ".join(reason.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def with_report(reason: str, report: str) -> str:
    """A reason that ends with where to look; what is cut is the reason, never the place."""
    if not report:
        return shortened(reason)
    place = f" (see {report})"
    return shortened(reason, REASON_CHARACTERS_MAX - len(place)) + place
