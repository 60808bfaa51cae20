"""What the entities of a block were scored from: kept with its rows, and gone with them.

The digests are opaque here; `jobs/changed.py` packs and compares them. Losing
some costs one scoring of their partition, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from psycopg import sql

from serving_cache.postgres_client import Connection
from serving_cache.postgres_ledger import carried_by_reference
from serving_cache.postgres_rows import StoreBase, check_token, need_staged
from serving_cache.records import Attempt

# Rows that readers have, by the model, code and declaration of the run: from equal inputs it would make equal ones.
_KNOWN = """
SELECT m.partition, m.origin, p.generation, m.block_hash, d.digests
FROM pointers p
JOIN generation_partitions m ON m.pipeline = p.pipeline AND m.generation = p.generation
JOIN generations o ON o.pipeline = m.pipeline AND o.generation = m.origin
JOIN generations g ON g.pipeline = p.pipeline AND g.generation = %(generation)s
JOIN entity_digests d ON d.pipeline = m.pipeline AND d.generation = m.origin AND d.partition = m.partition
WHERE p.pipeline = %(pipeline)s AND m.partition = ANY(%(partitions)s::int[])
    AND o.model_hash = g.model_hash AND o.code_digest = g.code_digest AND g.code_digest <> ''
    AND o.outputs = g.outputs AND o.partitioning = g.partitioning
ORDER BY m.partition
"""

_KEEP = """
INSERT INTO entity_digests (pipeline, generation, partition, digests)
SELECT %(pipeline)s, v.* FROM unnest(%(generations)s::bigint[], %(partitions)s::int[], %(digests)s::bytea[]) AS v
ON CONFLICT (pipeline, generation, partition) DO UPDATE SET digests = excluded.digests
"""


class KnownBlock(NamedTuple):
    """A partition's last good block, and what its entities were scored from.

    Args:
        origin: the generation whose run wrote its rows; generation: the current one, which refers to them.
        digests: as they were staged.
    """

    partition: int
    origin: int
    generation: int
    block_hash: str
    digests: bytes


class Entities(StoreBase):
    """The part of `PostgresStore` that knows what single entities were scored from."""

    def known_blocks(self, attempt: Attempt, partitions: Sequence[int]) -> list[KnownBlock]:
        """The last good blocks of some partitions whose entities may keep what they have; others are absent.

        Raises:
            Unavailable: Postgres does not answer.
        """
        values = {"pipeline": attempt.pipeline, "generation": attempt.generation, "partitions": list(partitions)}
        return [KnownBlock(*row) for row in self._client.query(_KNOWN, values)]

    def carry_equal(self, attempt: Attempt, found: Mapping[KnownBlock, tuple[str, bytes]]) -> list[int]:
        """Carry forward by reference blocks that came out as they were, though their inputs did not.

        Args:
            found: for each block the digest of the partition's inputs now, and those of its entities.

        Returns:
            The partitions that need not be staged; the others were decided about before, or their rows are to be
            brought together.

        Raises:
            Superseded: another attempt has taken over.
            UsageError: the generation has its outcome already.
        """
        if not found:
            return []
        by_partition = {block.partition: block for block in found}
        given = {block.partition: digest for block, (digest, _) in found.items()}
        hashes = {block.partition: block.block_hash for block in found}
        with self._client.transaction() as connection:
            need_staged(attempt, check_token(connection, attempt, exclusive=False))
            carried = carried_by_reference(connection, attempt, given, hashes)
            rows = [(by_partition[p].origin, p, found[by_partition[p]][1]) for p in carried]
            keep_digests(connection, attempt.pipeline, rows)
        return carried


def keep_digests(connection: Connection, pipeline: str, rows: Sequence[tuple[int, int, bytes]]) -> None:
    """Keep entities' digests beside the rows that they led to: origin, partition and digests of each block."""
    kept = [row for row in rows if row[2]]
    if kept:
        origins, partitions, digests = zip(*kept, strict=True)
        given = {"generations": list(origins), "partitions": list(partitions), "digests": list(digests)}
        connection.execute(sql.SQL(_KEEP), {"pipeline": pipeline, **given})


def forget_digests(connection: Connection, pipeline: str, generations: Sequence[int]) -> None:
    """Let go of what belongs to rows that are dropped."""
    connection.execute(
        "DELETE FROM entity_digests WHERE pipeline = %s AND generation = ANY(%s)", (pipeline, list(generations))
    )
