"""A digest of what each entity is scored from, of the bytes alone: its features, or what is asked of its pairs.

Digests are uint64, in the order of the entities.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.ragged import Wholes

if TYPE_CHECKING:
    import pyarrow as pa

    from almanac.list_scoring import Prepared

ENTITY_BYTES = 8
"""Of a digest. It is compared with the same entity's of the run before and no other, so that of changes one in 2**64
goes unnoticed."""

Digests = NDArray[np.uint64]


def entity_digests(table: pa.Table) -> Digests | None:
    """A digest of each row, uint64 (rows,), of its bytes alone; None if anything in it is null."""
    fixed: list[NDArray[np.uint8]] = []
    ragged: list[tuple[memoryview, list[int]]] = []
    for name in table.column_names:
        if not _add(table[name].combine_chunks(), fixed, ragged):
            return None
    rows = np.ascontiguousarray(np.hstack(fixed)) if fixed else np.empty((table.num_rows, 0), np.uint8)
    width, data = rows.shape[1], memoryview(rows.tobytes())
    made = []
    for row in range(table.num_rows):
        digest = hashlib.blake2b(data[row * width : (row + 1) * width], digest_size=ENTITY_BYTES)
        for values, bounds in ragged:
            digest.update(values[bounds[row] : bounds[row + 1]])
        made.append(digest.digest())
    return np.frombuffer(b"".join(made), "<u8")


def item_digests(keys: NDArray[np.bytes_], attributes: Mapping[str, NDArray[np.float32]]) -> Digests:
    """A digest of what a list says of each item: its key and its attributes."""
    columns = [np.ascontiguousarray(values, np.float32).tobytes() for values in attributes.values()]
    made = []
    for place, key in enumerate(keys.tolist()):
        digest = hashlib.blake2b(b"".join(column[4 * place : 4 * place + 4] for column in columns), digest_size=8)
        digest.update(key)
        made.append(digest.digest())
    return np.frombuffer(b"".join(made), "<u8")


def pair_digests(asked: Prepared, items: Digests) -> Digests:
    """A digest of each entity's candidate items, in order, and of what the model is asked of each of them.

    Args:
        items: `item_digests` of all items.
    """
    width = asked.inputs.shape[1] * asked.inputs.itemsize
    inputs, named = memoryview(asked.inputs.tobytes()), memoryview(items[asked.pairs.item_index].tobytes())
    made = []
    for first, last in itertools.pairwise(asked.pairs.offsets.tolist()):
        digest = hashlib.blake2b(named[ENTITY_BYTES * first : ENTITY_BYTES * last], digest_size=ENTITY_BYTES)
        digest.update(inputs[width * first : width * last])
        made.append(digest.digest())
    return np.frombuffer(b"".join(made), "<u8")


def _add(column: Any, fixed: list[NDArray[np.uint8]], ragged: list[tuple[memoryview, list[int]]]) -> bool:
    """Lay a column out for `entity_digests`: what has one width in each row, and what has not; False for nulls."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if column.null_count:
        return False
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            data, bounds = _texts(column)
            fixed.append(_bytes(np.diff(bounds)))
            ragged.append((data, bounds.tolist()))
        else:
            fixed.append(_bytes(column.to_numpy(zero_copy_only=False)))
        return True
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    values = column.flatten()
    if values.null_count:
        return False
    fixed.append(_bytes(lengths))
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        data, bounds = _texts(values)
        # How long each text is counts too, or "ab", "c" would be as "a", "bc".
        ragged.append((memoryview(np.diff(bounds).tobytes()), (ends * 8).tolist()))
        ragged.append((data, bounds[ends].tolist()))
    else:
        plain = values.to_numpy(zero_copy_only=False)
        ragged.append((memoryview(plain.tobytes()), (ends * plain.itemsize).tolist()))
    return True


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """One value a row as bytes, uint8 (rows, width)."""
    plain = np.ascontiguousarray(values)
    return plain.view(np.uint8).reshape(len(plain), plain.itemsize)


def _texts(column: Any) -> tuple[memoryview, Wholes]:
    """The bytes of all texts, joined, and where each begins and the last ends."""
    import pyarrow as pa

    large = column.cast(pa.large_binary())
    _, offsets, data = large.buffers()
    bounds = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
    return memoryview(data if data is not None else b""), bounds
