"""Ranked lists on their way into the record and back: arrays in each row, which a person can query.

Rows differ in length, so that a binary COPY is made of arrays of bytes, one for each part of a row, which Arrow joins;
what comes back is the bytes of a partition's arrays joined, which NumPy and Arrow take apart. See
https://www.postgresql.org/docs/current/sql-copy.html (Binary Format).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from almanac.errors import BlockError
from almanac.list_blocks import ListBlock
from almanac.ranking_declared import ITEMS_COLUMN, SCORES_COLUMN, STORED_COLUMNS
from serving_cache.records import StagedPartition

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_WRITE = 1_024
"""Lists that the server takes in while the next ones are packed: some hundred KB."""
LEAST_COLUMN = "scores_least"
_TEXT_OID, _REAL_OID = 25, 700
_HEAD_BYTES, _EMPTY_BYTES = 20, 12
_SIZED = struct.Struct(">i")
_NUMBER = np.dtype([("size", ">i4"), ("value", ">f4")])
_OPENING = np.dtype([(name, ">i4") for name in ("size", "dimensions", "nulls", "kind", "entries", "first")])


def are_lists(columns: Sequence[str]) -> bool:
    """Whether a generation's columns are those of lists, not of numbers."""
    return tuple(columns[: len(STORED_COLUMNS)]) == STORED_COLUMNS


def copied_lists(generation: int, parts: Sequence[StagedPartition]) -> Iterator[memoryview]:
    """The rows (generation, partition, entity, items, scores, each attribute) of partitions, some at a time."""
    for part in parts:
        if isinstance(part.block, ListBlock):
            yield from _rows(generation, part.partition, part.block)


def _rows(generation: int, partition: int, block: ListBlock) -> Iterator[memoryview]:
    start = struct.pack(">hiqii", 3 + len(block.stored_columns), 8, generation, 4, partition)
    items = _sized(block.items)
    for row in range(0, block.rows, ROWS_PER_WRITE):
        yield _stream(start, block, items, slice(row, min(row + ROWS_PER_WRITE, block.rows)))


def _stream(start: bytes, block: ListBlock, items: pa.BinaryArray, rows: slice) -> memoryview:
    """Some rows: the parts of each joined by Arrow, an array of bytes a part."""
    import pyarrow as pa
    import pyarrow.compute as pc

    bounds = block.offsets[rows.start : rows.stop + 1].astype(np.int64)
    entries, bounds = slice(int(bounds[0]), int(bounds[-1])), bounds - bounds[0]
    counts, places = np.diff(bounds), block.places[entries]
    named = items.take(pa.array(places))
    ends = np.frombuffer(named.buffers()[1], np.int32)[: len(places) + 1]
    texts = _spans(named.buffers()[2], ends[bounds])
    parts = [_sized(block.keys[rows]), _openings(counts, _TEXT_OID, np.diff(ends[bounds])), texts]
    opening = _openings(counts, _REAL_OID, counts * _NUMBER.itemsize)
    for values in (block.scores[entries], *(values[places] for values in block.attributes.values())):
        numbers = np.empty(len(values), dtype=_NUMBER)
        numbers["size"], numbers["value"] = 4, values
        parts += [opening, _spans(numbers, bounds * _NUMBER.itemsize)]
    joined = pc.binary_join_element_wise(pa.scalar(start), *parts, b"")
    sizes = np.frombuffer(joined.buffers()[1], np.int32)
    return memoryview(joined.buffers()[2])[: int(sizes[len(joined)])]


def _sized(values: NDArray[Any]) -> pa.BinaryArray:
    """Keys or items as fields: int64 or text, each after its size."""
    text = values.dtype.kind == "S"
    fields = np.empty(len(values), np.dtype([("size", ">i4"), ("value", values.dtype if text else ">i8")]))
    fields["size"], fields["value"] = np.char.str_len(values) if text else 8, values
    return _cut(fields, fields["size"].astype(np.int64) + _SIZED.size)


def _openings(entries: NDArray[Any], kind: int, sizes: NDArray[Any]) -> pa.BinaryArray:
    """Size and header of arrays of so many entries, which take so many bytes; an empty one has no dimension."""
    filled = entries > 0
    fields = np.empty(len(entries), dtype=_OPENING)
    fields["size"] = np.where(filled, _HEAD_BYTES + sizes, _EMPTY_BYTES)
    fields["dimensions"], fields["nulls"], fields["kind"] = filled, 0, kind
    fields["entries"], fields["first"] = entries, 1
    return _cut(fields, _SIZED.size + np.where(filled, _HEAD_BYTES, _EMPTY_BYTES))


def _cut(fields: NDArray[Any], lengths: NDArray[Any]) -> pa.BinaryArray:
    """The first so many bytes of each."""
    width = fields.dtype.itemsize
    data = fields.view(np.uint8)
    if len(fields) and int(lengths.min()) < width:
        data = data.reshape(-1, width)[np.arange(width) < lengths[:, None]]
    return _spans(data, np.concatenate([[0], np.cumsum(lengths)]))


def _spans(data: Any, bounds: NDArray[Any]) -> pa.BinaryArray:
    """Bytes that lie one after another, from each bound up to the next."""
    import pyarrow as pa

    buffers = [None, pa.py_buffer(np.ascontiguousarray(bounds, np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(bounds) - 1, buffers)


def list_selects(columns: Sequence[str]) -> list[sql.Composable]:
    """What of a partition's rows gives its lists, for `block_of`; an aggregate each, in the order of the entities.

    Args:
        columns: the entity's, then those of lists.
    """
    entity, items, *numbers = map(sql.Identifier, columns)
    sizes = [sql.SQL("cardinality({0})"), sql.SQL("octet_length(array_send({0}))")]
    return [
        *(sql.SQL("array_agg({} ORDER BY {})").format(size.format(items), entity) for size in sizes),
        *(
            sql.SQL("string_agg(array_send({}), ''::bytea ORDER BY {})").format(name, entity)
            for name in (items, *numbers)
        ),
    ]


def summary_selects(columns: Sequence[str]) -> tuple[tuple[str, ...], list[sql.Composable]]:
    """What the gate on predictions sees of a list: how many items, the best score and the least, the best's attributes.

    Returns:
        Names, and a number for each; NaN where a list is empty.
    """
    _, items, scores, *attributes = map(sql.Identifier, columns)
    nothing = "coalesce({}, 'NaN'::real)"
    best = [sql.SQL(nothing).format(sql.SQL("{}[1]").format(name)) for name in (scores, *attributes)]
    least = sql.SQL(nothing).format(sql.SQL("{0}[cardinality({0})]").format(scores))
    names = (ITEMS_COLUMN, SCORES_COLUMN, *columns[3:], LEAST_COLUMN)
    return names, [sql.SQL("cardinality({})::real").format(items), *best, least]


def block_of(
    keys: NDArray[Any],
    columns: Sequence[str],
    sizes: NDArray[np.int64],
    given: Sequence[bytes],
    counts: NDArray[np.int64],
) -> ListBlock:
    """A partition's lists, of what `list_selects` gave.

    Args:
        columns: those of lists.
        sizes: bytes of each row's array of items; counts: how many there are.
        given: the joined arrays of items, of scores, and of each attribute.

    Raises:
        ValueError: an array has a null, or another shape than ours.
        BlockError: an item has two values of one attribute.
    """
    texts, *numbers = given
    offsets = np.concatenate([[0], np.cumsum(counts)])
    items, places = _dictionary(np.frombuffer(texts, np.uint8), sizes, counts)
    scores, *entries = [_reals(data, counts) for data in numbers]
    attributes: dict[str, NDArray[np.float32]] = {}
    for name, values in zip(columns[len(STORED_COLUMNS) :], entries, strict=True):
        attributes[name] = np.zeros(len(items), dtype=np.float32)
        attributes[name][places] = values
        if not np.array_equal(attributes[name][places], values):
            raise BlockError(f"an item of a list has two values of {name}: somebody changed them")
    return ListBlock(keys, offsets, items, attributes, places, scores)


def _without_heads(data: NDArray[np.uint8], sizes: NDArray[np.int64], counts: NDArray[Any]) -> NDArray[np.uint8]:
    """The elements of joined arrays, without what stands before each array's."""
    heads = np.where(counts > 0, _HEAD_BYTES, _EMPTY_BYTES)
    if int(sizes.sum()) != len(data) or bool((sizes < heads).any()):
        raise ValueError
    starts = np.cumsum(sizes) - sizes
    kept = np.ones(len(data), dtype=np.bool_)
    for size in (_HEAD_BYTES, _EMPTY_BYTES):
        kept[starts[heads == size, None] + np.arange(size)] = False
    elements: NDArray[np.uint8] = data[kept]
    return elements


def _reals(data: bytes, counts: NDArray[Any]) -> NDArray[np.float32]:
    sizes = np.where(counts > 0, _HEAD_BYTES + _NUMBER.itemsize * counts, _EMPTY_BYTES)
    found = _without_heads(np.frombuffer(data, np.uint8), sizes, counts).view(_NUMBER)
    if not bool((found["size"] == 4).all()):
        raise ValueError
    return found["value"].astype(np.float32)


def _dictionary(
    data: NDArray[np.uint8], sizes: NDArray[np.int64], counts: NDArray[Any]
) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """The different items of joined arrays of text, ascending, and each entry's place among them."""
    import pyarrow as pa

    body = _without_heads(data, sizes, counts)
    lengths = _lengths(body, sizes, counts)
    offsets = np.concatenate([[0], np.cumsum(lengths + _SIZED.size)])
    if int(offsets[-1]) != len(body):
        raise ValueError
    entries = pa.Array.from_buffers(
        pa.large_binary(), len(lengths), [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(body)]
    )
    encoded = entries.dictionary_encode()
    found = [item[_SIZED.size :] for item in encoded.dictionary.to_pylist()]
    order = sorted(range(len(found)), key=found.__getitem__)
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    places: NDArray[np.int64] = rank[encoded.indices.to_numpy()] if len(lengths) else np.empty(0, np.int64)
    return np.array([found[place] for place in order], dtype=np.bytes_ if found else "S1"), places


def _lengths(body: NDArray[np.uint8], sizes: NDArray[np.int64], counts: NDArray[Any]) -> NDArray[np.int64]:
    """How long each text is: each array's first, then each one's second, and so on, all arrays at a time."""
    spans = sizes - np.where(counts > 0, _HEAD_BYTES, _EMPTY_BYTES)
    at = np.cumsum(spans) - spans
    first = np.cumsum(counts) - counts
    found = np.zeros(int(counts.sum()), dtype=np.int64)
    weights = 256 ** np.arange(3, -1, -1, dtype=np.int64)
    for number in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > number)
        heads = at[rows, None] + np.arange(_SIZED.size)
        if int(heads.max()) >= len(body):
            raise ValueError
        length = body[heads] @ weights
        if bool((length > len(body)).any()):  # a null has the length -1, which is far too many here
            raise ValueError
        found[first[rows] + number] = length
        at[rows] += _SIZED.size + length
    return found
