"""Ranked lists on their way into the record and back: arrays in each row, which a person can query.

Into a binary COPY a row at a time, for rows differ in length; back as the bytes of a partition's arrays joined, which
NumPy and Arrow take apart. See https://www.postgresql.org/docs/current/sql-copy.html (Binary Format).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from almanac.errors import BlockError
from almanac.list_blocks import ListBlock
from almanac.ranking_declared import ITEMS_COLUMN, SCORES_COLUMN, STORED_COLUMNS
from serving_cache.records import StagedPartition

ROWS_PER_WRITE = 1_024
"""Lists that the server takes in while the next ones are packed: some hundred KB."""
LEAST_COLUMN = "scores_least"
_TEXT_OID, _REAL_OID = 25, 700
_HEAD_BYTES, _EMPTY_BYTES = 20, 12
_SIZED = struct.Struct(">i")
_ARRAY = struct.Struct(">iiiii")
_EMPTY = struct.Struct(">iii")
_NUMBER = np.dtype([("size", ">i4"), ("value", ">f4")])


def are_lists(columns: Sequence[str]) -> bool:
    """Whether a generation's columns are those of lists, not of numbers."""
    return tuple(columns[: len(STORED_COLUMNS)]) == STORED_COLUMNS


def copied_lists(generation: int, parts: Sequence[StagedPartition]) -> Iterator[bytes]:
    """The rows (generation, partition, entity, items, scores, each attribute) of partitions, some at a time."""
    for part in parts:
        if isinstance(part.block, ListBlock):
            yield from _rows(generation, part.partition, part.block)


def _rows(generation: int, partition: int, block: ListBlock) -> Iterator[bytes]:
    start = struct.pack(">hiqii", 3 + len(block.stored_columns), 8, generation, 4, partition)
    keys = [_key(key) for key in block.keys.tolist()]
    items = [_SIZED.pack(len(item)) + item for item in block.items.tolist()]
    places, bounds = block.places.tolist(), block.offsets.tolist()
    numbers = [_numbers(block.scores)]
    numbers += [_numbers(values[block.places]) for values in block.attributes.values()]
    width = _NUMBER.itemsize
    made: list[bytes] = []
    for row, key in enumerate(keys):
        first, last = bounds[row], bounds[row + 1]
        texts = b"".join([items[place] for place in places[first:last]])
        made += (start, key, _opening(last - first, _TEXT_OID, len(texts)), texts)
        opening = _opening(last - first, _REAL_OID, width * (last - first))
        for values in numbers:
            made += (opening, values[width * first : width * last])
        if (row + 1) % ROWS_PER_WRITE == 0:
            yield b"".join(made)
            made = []
    yield b"".join(made)


def _key(key: int | bytes) -> bytes:
    return _SIZED.pack(len(key)) + key if isinstance(key, bytes) else struct.pack(">iq", 8, key)


def _numbers(values: NDArray[np.float32]) -> bytes:
    found = np.empty(len(values), dtype=_NUMBER)
    found["size"], found["value"] = 4, values
    return found.tobytes()


@lru_cache(maxsize=65_536)
def _opening(entries: int, kind: int, size: int) -> bytes:
    """Size and header of an array of so many entries, which take so many bytes."""
    if not entries:
        return _SIZED.pack(_EMPTY_BYTES) + _EMPTY.pack(0, 0, kind)
    return _SIZED.pack(_HEAD_BYTES + size) + _ARRAY.pack(1, 0, kind, entries, 1)


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
    change = np.zeros(len(data) + 1, dtype=np.int8)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + heads, -1)
    elements: NDArray[np.uint8] = data[np.cumsum(change[:-1], dtype=np.int8) == 0]
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
