"""Only entities whose inputs changed are scored: the others take their prediction from the partition's block.

What an entity is scored from is digested exactly: of numbers the model's columns of its row; of a list its features,
and all items', which are the same for everybody. Model, code and declaration are the generation's. The digests lie
beside the rows that they led to (`serving_cache/postgres_entities.py`), packed:

    16 bytes   what all entities have in common: the columns, and the items
    8 bytes    of each entity, in the order of the block's keys

Whatever does not fit (no digests, another number of them, a block that cannot be read or is not of these keys) has
the partition scored whole. So does a null, which the scoring then refuses.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from almanac.block_merging import merged, places_in
from almanac.blocks import block_hash
from almanac.errors import BlockError, Unavailable, UsageError
from almanac.list_blocks import AnyBlock, unpacked
from almanac.pipeline import Pipeline
from almanac.ragged import Wholes
from almanac.settings import Settings
from jobs.building import keys_of, staged_of
from jobs.digests import UNCOUNTED, partition_digests, spans_of
from jobs.entity_digests import ENTITY_BYTES, Digests, entity_digests
from jobs.listing import Listed, list_digests, staged_lists
from jobs.plan import Plan

if TYPE_CHECKING:
    import pyarrow as pa

    from almanac.scoring import Scorer
    from serving_cache.postgres_entities import KnownBlock
    from serving_cache.records import Attempt, StagedPartition

log = logging.getLogger(__name__)

COMMON_BYTES = 16


class Known(NamedTuple):
    """A partition's last good block, taken apart."""

    found: KnownBlock
    block: AnyBlock
    common: bytes
    entities: Digests


Piece = tuple[Sequence[int], "pa.Table"]
"""The partitions that a table is about, and the table, in which each one's rows stand together."""


@dataclass(frozen=True)
class Maker:
    """What makes the partitions of a run out of features."""

    pipeline: Pipeline
    plan: Plan
    scorer: Scorer
    items: Listed | None

    def staged(self, piece: Piece, refused: dict[int, str]) -> list[StagedPartition]:
        """The partitions of a piece, ready to be staged; those that cannot be scored go to `refused`."""
        if self.items is None:
            return staged_of(self.pipeline, self.plan, self.scorer, piece, refused)
        return staged_lists(self.items, self.plan, self.scorer, piece, refused)

    def digests(self, piece: Piece) -> dict[int, str]:
        """The digest of each partition's inputs."""
        about, table = piece
        return partition_digests(table, about) if self.items is None else list_digests(self.items, table, about)

    def inputs(self, table: pa.Table) -> pa.Table:
        """The columns that predictions are made from: the model's, or of lists all that the entity has."""
        if self.items is None and set(self.scorer.inputs) <= set(table.column_names):
            return table.select(list(self.scorer.inputs))
        return table.select(sorted(set(table.column_names) - UNCOUNTED))

    def common(self, inputs: pa.Table) -> bytes:
        """A digest of what all entities are scored from alike: which columns there are, and the items."""
        columns = [(field.name, str(field.type)) for field in inputs.schema]
        items = "" if self.items is None else self.items.digest
        return hashlib.blake2b(repr((columns, items)).encode(), digest_size=COMMON_BYTES).digest()


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a piece came to.

    Args:
        ready: to be staged.
        rows: predictions, those included that are carried forward with their whole partition.
        unchanged: of them those that were not scored, for their inputs were as before.
    """

    ready: list[StagedPartition]
    rows: int
    unchanged: int = 0


class Remembered(Protocol):
    """Who knows what partitions were made from."""

    def of(self, partitions: Sequence[int]) -> dict[int, Known]:
        """What is known of some partitions; the others are scored whole."""
        ...

    def carry(self, equal: Mapping[KnownBlock, StagedPartition]) -> list[int]:
        """Carry forward blocks that came out as they were; returns the partitions that need not be staged."""
        ...


class Past:
    """The blocks that readers have, and what their entities were scored from; used as a context manager."""

    def __init__(self, pipeline: Pipeline, settings: Settings, attempt: Attempt) -> None:
        from serving_cache.postgres import PostgresStore
        from serving_cache.redis import RedisStore

        self._pipeline, self._attempt = pipeline, attempt
        self._store = PostgresStore(settings.need("postgres_url"))
        self._cache = RedisStore(settings.redis_url) if settings.redis_url else None

    def __enter__(self) -> Past:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()
        if self._cache is not None:
            self._cache.close()

    def of(self, partitions: Sequence[int]) -> dict[int, Known]:
        """What is known of some partitions; the others are scored whole.

        Raises:
            Unavailable: Postgres does not answer.
        """
        found = self._store.known_blocks(self._attempt, partitions)
        held = self._from_redis(found)
        known = {}
        for one in found:
            data = held.get(one.block_hash) or self._from_postgres(one)
            made = None if data is None else taken_apart(one, data)
            if made is not None:
                known[one.partition] = made
        return known

    def carry(self, equal: Mapping[KnownBlock, StagedPartition]) -> list[int]:
        """Carry forward blocks that came out as they were; returns the partitions that need not be staged."""
        given = {one: (part.input_digest, part.entity_digests) for one, part in equal.items()}
        return self._store.carry_equal(self._attempt, given)

    def _from_redis(self, found: Sequence[KnownBlock]) -> dict[str, bytes]:
        if self._cache is None or not found:
            return {}
        try:
            return self._cache.blocks(self._pipeline.name, [one.block_hash for one in found])
        except Unavailable as error:
            log.warning("blocks of pipeline=%s are read from postgres: %s", self._pipeline.name, error)
            return {}

    def _from_postgres(self, one: KnownBlock) -> bytes | None:
        try:
            return self._store.blocks(self._pipeline, one.generation, [one.partition])[one.block_hash]
        except (BlockError, UsageError) as error:
            log.warning("partition=%d of pipeline=%s is scored whole: %s", one.partition, self._pipeline.name, error)
            return None


def taken_apart(one: KnownBlock, data: bytes) -> Known | None:
    """A block and its digests, if they are what they should be."""
    try:
        block = unpacked(data)
    except BlockError as error:
        log.warning("partition=%d is scored whole: %s", one.partition, error)
        return None
    if block_hash(data) != one.block_hash or len(one.digests) != COMMON_BYTES + ENTITY_BYTES * block.rows:
        log.warning("partition=%d is scored whole: its digests are not those of its block", one.partition)
        return None
    entities = np.frombuffer(one.digests, "<u8", offset=COMMON_BYTES)
    return Known(one, block, one.digests[:COMMON_BYTES], entities)


def whole(maker: Maker, piece: Piece, refused: dict[int, str]) -> Made:
    """Score every entity of a piece."""
    ready = maker.staged(piece, refused)
    return Made(ready=ready, rows=sum(part.block.rows for part in ready))


def changed(maker: Maker, piece: Piece, past: Remembered, refused: dict[int, str]) -> Made:
    """Score the entities of a piece whose inputs are not those of the block that readers have.

    Where everything is scored anew nothing is looked up, and what the entities were scored from is kept all the same.

    Raises:
        Superseded: another attempt of this run has taken over.
        Unavailable: Postgres does not answer.
    """
    known = {} if maker.plan.anew else past.of(piece[0])
    ready, unchanged = _made(maker, piece, known, refused)
    equal = {
        known[part.partition].found: part
        for part in ready
        if part.partition in known and part.block.hash == known[part.partition].found.block_hash
    }
    carried = past.carry(equal)
    rows = sum(part.block.rows for part in ready)
    return Made(ready=[part for part in ready if part.partition not in carried], rows=rows, unchanged=unchanged)


def _made(
    maker: Maker, piece: Piece, known: Mapping[int, Known], refused: dict[int, str]
) -> tuple[list[StagedPartition], int]:
    """Every partition of a piece, whole; and how many entities were not scored."""
    import pyarrow as pa

    about, table = piece
    kept: dict[int, Wholes] = {}
    noted: dict[int, bytes] = {}
    chosen = np.ones(table.num_rows, np.bool_)
    for partition, start, end in spans_of(table):
        mine = table.slice(start, end - start)
        inputs, keys = maker.inputs(mine), keys_of(mine, maker.pipeline)
        digests, common = entity_digests(inputs), maker.common(inputs)
        if digests is None:
            continue
        noted[partition] = common + digests[np.argsort(keys, kind="stable")].tobytes()
        was = known.get(partition)
        if was is None or was.common != common or not was.block.rows:
            continue
        at = places_in(was.block, keys)
        same = (at >= 0) & (was.entities[at] == digests)
        kept[partition] = np.sort(at[same])
        chosen[start:end] = ~same
    some = table if chosen.all() else table.filter(pa.array(chosen))
    digests_of = maker.digests(piece)
    ready = [
        replace(
            part,
            block=merged(known[part.partition].block, kept[part.partition], part.block)
            if part.partition in kept
            else part.block,
            input_digest=digests_of[part.partition],
            entity_digests=noted.get(part.partition, b""),
        )
        for part in maker.staged((about, some), refused)
    ]
    return ready, sum(len(kept.get(part.partition, ())) for part in ready)
