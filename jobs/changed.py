"""Only entities whose inputs changed are scored: the others take their prediction from the partition's block.

What an entity is scored from is digested exactly: of numbers the model's columns of its row; of a list its features and
all items', or else the candidate items and what the model is asked of each, which may be as before though something of
the others changed. Model, code and declaration are the generation's. The digests lie beside the rows that they led to
(`serving_cache/postgres_entities.py`), packed, entities in the order of the block's keys:

    16 bytes   what all entities have in common: the columns, and the items
    8 bytes    of each entity: its features
    8 bytes    of each entity, where lists are ranked: its pairs

Whatever does not fit (no digests, another number of them, a block that cannot be read or is not of these keys) has
the partition scored whole. So does a null, which the scoring then refuses.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from almanac.block_merging import merged, places_in
from almanac.blocks import block_hash
from almanac.errors import BlockError, Unavailable, UsageError
from almanac.list_blocks import AnyBlock, ListBlock, unpacked
from almanac.list_scoring import Prepared
from almanac.pipeline import Pipeline
from almanac.ragged import Wholes
from almanac.settings import Settings
from jobs.building import keys_of, staged_of
from jobs.digests import UNCOUNTED, partition_digests, spans_of
from jobs.entity_digests import ENTITY_BYTES, Digests, entity_digests, item_digests, pair_digests
from jobs.listing import Listed, Wanted, list_digests, staged_lists
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
    features: Digests
    pairs: Digests

    def same(self, keys: NDArray[Any], digests: Digests, *, pairs: bool = False) -> Wholes:
        """The row of each key in the block; -1 if it has none, or was made from something else."""
        at = places_in(self.block, keys)
        known = self.pairs if pairs else self.features
        if not len(known):
            return np.full(len(keys), -1, np.int64)
        return np.where((at >= 0) & (known[at] == digests), at, -1)


Piece = tuple[Sequence[int], "pa.Table"]
"""The partitions that a table is about, and the table, in which each one's rows stand together."""


@dataclass(frozen=True)
class Maker:
    """What makes the partitions of a run out of features."""

    pipeline: Pipeline
    plan: Plan
    scorer: Scorer
    items: Listed | None

    def staged(self, piece: Piece, refused: dict[int, str], wanted: Wanted | None = None) -> list[StagedPartition]:
        """The partitions of a piece, ready to be staged; those that cannot be scored go to `refused`.

        Args:
            wanted: where lists are ranked, leaves entities out.
        """
        if self.items is None:
            return staged_of(self.pipeline, self.plan, self.scorer, piece, refused)
        return staged_lists(self.items, self.plan, self.scorer, piece, refused, wanted)

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
    kinds = 2 if isinstance(block, ListBlock) else 1
    if block_hash(data) != one.block_hash or len(one.digests) != COMMON_BYTES + kinds * ENTITY_BYTES * block.rows:
        log.warning("partition=%d is scored whole: its digests are not those of its block", one.partition)
        return None
    held = np.frombuffer(one.digests, "<u8", offset=COMMON_BYTES)
    return Known(one, block, one.digests[:COMMON_BYTES], held[: block.rows], held[block.rows :])


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
    noted: dict[int, _Noted] = {}
    chosen = np.ones(table.num_rows, np.bool_)
    for partition, start, end in spans_of(table):
        mine = table.slice(start, end - start)
        inputs, keys = maker.inputs(mine), keys_of(mine, maker.pipeline)
        digests = entity_digests(inputs)
        if digests is None:
            continue
        noted[partition] = found = _Noted(maker.common(inputs), keys, digests, known.get(partition))
        chosen[start:end] = found.look()
    some = table if chosen.all() else table.filter(pa.array(chosen))
    pairs = None if maker.items is None else item_digests(maker.items.keys, maker.items.attributes)

    def wanted(partition: int, keys: NDArray[Any], asked: Prepared) -> NDArray[np.bool_]:
        if partition not in noted or pairs is None:
            return np.ones(len(asked), np.bool_)
        return noted[partition].look_at_pairs(keys, pair_digests(asked, pairs))

    staged = maker.staged((about, some), refused, wanted)
    digests_of = maker.digests(piece)
    ready, unchanged = [], 0
    for part in staged:
        made = replace(part, input_digest=digests_of[part.partition])
        if part.partition in noted:
            try:
                block, entities = noted[part.partition].together(part.block)
            except BlockError as error:
                log.warning("partition=%d is scored whole: %s", part.partition, error)
                start, end = next((start, end) for number, start, end in spans_of(table) if number == part.partition)
                ready += maker.staged(([part.partition], table.slice(start, end - start)), refused)
                continue
            made = replace(made, block=block, entity_digests=entities)
            unchanged += block.rows - part.block.rows
        ready.append(made)
    return ready, unchanged


class _Noted:
    """What one partition's entities are scored from this time, and who of them keeps what the block before says.

    Args:
        common: a digest of what they have in common.
        keys: of the entities; features: a digest of each one's.
        was: the block before, and what it was made from; None if that is not known.
    """

    def __init__(self, common: bytes, keys: NDArray[Any], features: Digests, was: Known | None) -> None:
        self._common, self._was = common, was
        order = np.argsort(keys, kind="stable")
        self._keys, self._features, self._order = keys[order], features[order], order
        self._kept = [np.empty(0, np.int64)]
        self._pairs: list[tuple[NDArray[Any], Digests]] = []

    def look(self) -> NDArray[np.bool_]:
        """Who has other features than before, in the order in which the keys were given."""
        changed = np.ones(len(self._keys), np.bool_)
        if self._was is None or self._was.common != self._common:
            return changed
        at = self._was.same(self._keys, self._features)
        self._kept.append(at[at >= 0])
        changed[self._order] = at < 0
        return changed

    def look_at_pairs(self, keys: NDArray[Any], digests: Digests) -> NDArray[np.bool_]:
        """Who of the others is to be scored: whose pairs are not as before."""
        self._pairs.append((keys, digests))
        if self._was is None:
            return np.ones(len(keys), np.bool_)
        at = self._was.same(keys, digests, pairs=True)
        self._kept.append(at[at >= 0])
        return np.asarray(at < 0)

    def together(self, made: AnyBlock) -> tuple[AnyBlock, bytes]:
        """The whole block, of those that keep what they have and those that were scored; and its digests."""
        rows = np.sort(np.concatenate(self._kept))
        block = made if self._was is None or not len(rows) else merged(self._was.block, rows, made)
        parts = [self._common, self._features.tobytes()]
        if isinstance(block, ListBlock):
            pairs = np.zeros(block.rows, "<u8")
            if self._was is not None and len(rows):
                pairs[np.searchsorted(block.keys, self._was.block.keys[rows])] = self._was.pairs[rows]
            for keys, digests in self._pairs:
                pairs[np.searchsorted(block.keys, keys)] = digests
            parts.append(pairs.tobytes())
        return block, b"".join(parts)
