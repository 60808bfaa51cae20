"""What a piece of a shard is scored to where lists are ranked: entities and items joined, some entities at a time.

All items are in memory once; candidate items of all entities never are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.block_layout import KEY_BYTES_MAX
from almanac.clock import utc_now
from almanac.errors import FeatureError, PredictionError
from almanac.list_blocks import ListBlock, empty_block
from almanac.list_scoring import Prepared, prepared, scored
from almanac.pipeline import Pipeline
from almanac.ragged import offsets_of
from almanac.ranked import RankedList
from almanac.ranking import need_told_apart
from almanac.ranking_declared import Ranking
from almanac.settings import Settings
from jobs.building import keys_of
from jobs.digests import PARTITION, UNCOUNTED, spans_of
from jobs.plan import Plan

if TYPE_CHECKING:
    import pyarrow as pa

    from almanac.ranking import Items, Lists
    from almanac.scoring import Scorer
    from serving_cache.records import StagedPartition

Wanted = Callable[[int, NDArray[Any], Prepared], NDArray[np.bool_]]
"""Of a partition, the keys of some of its entities, and what the model is to be asked of each: who is to be scored."""

ENTITIES_AT_ONCE = 4_096
"""Entities of a partition whose features are taken out of Arrow together."""
PAIRS_AT_ONCE = 16_384
"""Entities times candidate items that are made, and scored, together: what a core's cache holds."""


@dataclass(frozen=True, eq=False)
class Listed:
    """The items of a run, and how new they are, microseconds since 1970.

    What counts days in a list counts to the entity's newest event, or to `at` if that is later: not to the run's own
    moment. Batch, stream and fresh computation so agree, and an entity with nothing new keeps its list while items do.
    """

    pipeline: Pipeline
    ranking: Ranking
    items: Items
    at: int

    @cached_property
    def keys(self) -> NDArray[np.bytes_]:
        """The items' keys as blocks have them."""
        return np.array([key.encode() for key in self.items.keys] or [], dtype=np.bytes_)

    @cached_property
    def attributes(self) -> dict[str, NDArray[np.float32]]:
        """What answers carry of each item.

        Raises:
            FeatureError: the items have no such column.
        """
        absent = [name for name in self.ranking.attributes if name not in self.items.columns]
        if absent:
            raise FeatureError(
                f"the items of {self.pipeline.name} have no column {', '.join(absent)}: add it to a view of "
                f"{self.ranking.features}, or correct Ranking.attributes"
            )
        return {name: self.items.columns[name].astype(np.float32) for name in self.ranking.attributes}

    @cached_property
    def digest(self) -> str:
        """Of every item's features, and how new they are: lists of equal entities are equal where this is."""
        digest = hashlib.blake2b(repr((self.at, self.items.keys)).encode(), digest_size=16)
        lists = (self.items.neighbours, self.items.weights)
        parts: list[tuple[str, NDArray[Any]]] = sorted(self.items.columns.items())
        parts += [("popular", self.items.popular)]
        parts += [(f"list {number}", part) for number, one in enumerate(lists) for part in (one.values, one.offsets)]
        for name, values in parts:
            digest.update(f"\0{name} {values.dtype} {len(values)}\0".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def default(self) -> RankedList:
        """What is popular and available, for entities that have no list; scores fall evenly from 1.

        Raises:
            PredictionError: an attribute is a number that float32 cannot hold.
        """
        shown = self.items.liked(self.ranking.available)[: self.ranking.kept]
        need_told_apart(self.items.columns, self.ranking.attributes, shown, self.items.keys)
        places = shown.tolist()
        return RankedList(
            items=tuple(self.items.keys[place] for place in places),
            scores=tuple(1 - number / len(places) for number in range(len(places))),
            attributes={name: tuple(values[places].tolist()) for name, values in self.attributes.items()},
        )


_held: list[tuple[Any, Listed]] = []
"""The items of the last run, and which run that was."""


def listed(pipeline: Pipeline, settings: Settings, moment: datetime) -> Listed | None:
    """The items that a run at a moment ranks, those of the last call if that was the same run; None without a ranking.

    Raises:
        FeatureError: no item is known at that moment.
        Unavailable: the registry does not answer.
    """
    if pipeline.ranking is None:
        return None
    from features.identity import source_digest
    from features.ranked import range_at

    state = source_digest(pipeline, settings, moment, moment)
    asked = (pipeline.name, repr(pipeline.ranking), moment, state)
    if state and _held and _held[0][0] == asked:
        return _held[0][1]
    span = range_at(pipeline, settings, moment)
    found = Listed(pipeline, pipeline.ranking, span.items, span.at)
    check_keys(found.items.keys)
    _held[:] = [(asked, found)]
    return found


def check_keys(keys: Sequence[str]) -> None:
    """Refuse items that no block can name.

    Raises:
        FeatureError: a key is empty, too long, or has a NUL.
    """
    for key in keys:
        if not 1 <= len(key.encode()) <= KEY_BYTES_MAX or "\0" in key:
            raise FeatureError(
                f"the item {key[:40]!r} has a key that is empty, longer than {KEY_BYTES_MAX} bytes or has a NUL: "
                "leave it out of the items' views"
            )


def staged_lists(
    listed: Listed,
    plan: Plan,
    scorer: Scorer,
    piece: tuple[Sequence[int], pa.Table],
    refused: dict[int, str],
    wanted: Wanted | None = None,
) -> list[StagedPartition]:
    """The partitions of a piece, ready to be staged; those that cannot be ranked go to `refused`.

    Args:
        wanted: leaves entities out of the blocks, and unscored; None for none.
    """
    from serving_cache.records import StagedPartition

    about, table = piece
    spans = {partition: (start, end) for partition, start, end in spans_of(table)}
    digests = list_digests(listed, table, about)
    ready = []
    for partition in about:
        start, end = spans.get(partition, (0, 0))
        try:
            chosen = None if wanted is None else partial(wanted, partition)
            block = block_of(listed, scorer, table.slice(start, end - start), chosen) if end > start else None
        except (FeatureError, PredictionError) as error:
            refused[partition] = str(error)
            continue
        whole = listed.pipeline.partitions.key_type is int
        ready.append(
            StagedPartition(
                partition=partition,
                block=block or empty_block(listed.pipeline.stored_columns, whole_keys=whole),
                as_of=plan.moment,
                computed_at=utc_now(),
                input_digest=digests[partition],
            )
        )
    return ready


def block_of(
    listed: Listed,
    scorer: Scorer,
    table: pa.Table,
    wanted: Callable[[NDArray[Any], Prepared], NDArray[np.bool_]] | None = None,
) -> ListBlock:
    """The lists of one partition's entities.

    Args:
        table: the entity's column, and those of its FeatureService; a row each.
        wanted: of keys and what the model is to be asked of each: who is to be in the block; None for all.

    Raises:
        FeatureError: a feature is null, or a column that the model needs is nobody's.
        PredictionError: the model answers NaN or infinity.
    """
    keys, features = ordered(listed, table)
    parts, chosen = [], np.ones(len(keys), np.bool_)
    start = 0
    for some in asked(listed, scorer.inputs, features):
        mine = slice(start, start + len(some))
        if wanted is not None:
            chosen[mine] = wanted(keys[mine], some)
        parts.append(scored(some.where(chosen[mine]), scorer, listed.ranking.kept))
        start = mine.stop
    return block_with(listed, keys[chosen], parts)


def ordered(listed: Listed, table: pa.Table) -> tuple[NDArray[Any], pa.Table]:
    """A partition's entities as its block has them, ascending, and their features in that order, all there.

    Raises:
        FeatureError: a feature is null.
    """
    keys = keys_of(table, listed.pipeline)
    if not bool(np.all(keys[1:] > keys[:-1])):
        order = np.argsort(keys, kind="stable")
        keys, table = keys[order], table.take(order)
    features = table.drop_columns([PARTITION]) if PARTITION in table.column_names else table
    _need_whole(listed.pipeline, features)
    return keys, features


def asked(listed: Listed, columns: Sequence[str], features: pa.Table) -> Iterator[Prepared]:
    """What the model is to be asked of a partition's entities, some of these at a time, in their order.

    Args:
        columns: the model's inputs.

    Raises:
        FeatureError: a column that the model needs is nobody's.
    """
    from features.ranked import entities_of, newest_events

    step = max(1, PAIRS_AT_ONCE // listed.ranking.candidates_max)
    for begin in range(0, features.num_rows, ENTITIES_AT_ONCE):
        some = features.slice(begin, ENTITIES_AT_ONCE)
        moments = np.maximum(newest_events(some), listed.at)
        entities = entities_of(listed.pipeline, some, listed.items, moments)
        for start in range(0, len(entities), step):
            part = entities.part(start, min(start + step, len(entities)))
            yield prepared(part, listed.items, columns, listed.ranking)


def block_with(listed: Listed, keys: NDArray[Any], parts: Sequence[Lists]) -> ListBlock:
    """The block of a partition's entities, whose lists are given one after another."""
    lengths, places, scores = (
        np.concatenate(column)
        for column in zip(*[(np.diff(part.offsets), part.item_index, part.scores) for part in parts], strict=True)
    )
    return ListBlock.of(keys, offsets_of(lengths), listed.keys, listed.attributes, places, scores)


def _need_whole(pipeline: Pipeline, table: pa.Table) -> None:
    """Refuse rows that lack a feature.

    Raises:
        FeatureError: names the column and some entities.
    """
    for name in table.column_names:
        column = table[name]
        if column.null_count:
            bad = table[pipeline.entity].filter(column.is_null()).slice(0, 5).to_pylist()
            raise FeatureError(
                f"feature {name} is missing in {column.null_count} of {len(column)} rows ({pipeline.entity} "
                f"{', '.join(map(str, bad))}): mend the source, or run the ingest step again"
            )


def list_digests(listed: Listed, table: pa.Table, partitions: Iterable[int]) -> dict[int, str]:
    """The digest of what each partition's lists are made from: its entities' features, and all items'.

    Args:
        table: `_partition`, and the entity and feature columns; a partition's rows stand together.
    """
    names = sorted(set(table.column_names) - UNCOUNTED)
    heading = hashlib.blake2b(repr((listed.digest, names)).encode(), digest_size=16)
    found = dict.fromkeys(partitions, heading.hexdigest())
    for partition, start, end in spans_of(table):
        if partition in found:
            digest = heading.copy()
            for name in names:
                digest.update(f"\0{name}\0".encode())
                _add(digest, table[name].slice(start, end - start).combine_chunks())
            found[partition] = digest.hexdigest()
    return found


def _add(digest: Any, column: Any) -> None:
    """A column's values, of any type that features have; what is null counts as that."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    digest.update(f"{kind} {len(column)}".encode())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), -1)
        digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
        _add(digest, pc.list_flatten(column))
        return
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        lengths = pc.fill_null(pc.binary_length(column), -1)
        digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
        joined = pa.concat_arrays([column.cast(pa.large_binary())])
        data = joined.buffers()[2]
        ends = np.frombuffer(joined.buffers()[1], np.int64)[joined.offset : joined.offset + len(joined) + 1]
        digest.update(memoryview(data)[int(ends[0]) : int(ends[-1])] if data is not None and len(joined) else b"")
        return
    present = column.is_valid().to_numpy(zero_copy_only=False)
    filled = pc.fill_null(column, pa.scalar(0, kind)) if column.null_count else column
    digest.update(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)).tobytes())
    if column.null_count:
        digest.update(present.tobytes())
