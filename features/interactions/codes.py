"""Keys as numbers that order as the keys do, and tables of ragged columns: what the bulk forms are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.ragged import Ragged, Wholes, count_up, offsets_of

if TYPE_CHECKING:
    import pyarrow as pa


def coded(column: pa.ChunkedArray | pa.Array) -> tuple[Wholes, list[str]]:
    """Each text as its place among the distinct ones in order, and these."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks() if len(column) else pa.array([], pa.string())
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    keys: list[str] = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    there = np.bincount(codes, minlength=len(keys)) > 0  # a dictionary may know more than the rows that are left
    order = sorted(np.flatnonzero(there).tolist(), key=keys.__getitem__)
    place = np.empty(len(keys), np.int64)
    place[order] = np.arange(len(order))
    return place[codes], [keys[at] for at in order]


def among(keys: Sequence[str], known: Mapping[str, int]) -> Wholes:
    """The place of each key, -1 where it is not known."""
    return np.fromiter((known.get(key, -1) for key in keys), np.int64, len(keys))


def starts_of(*columns: NDArray[Any]) -> Wholes:
    """Where a run of rows begins that are alike in all columns."""
    n = len(columns[0])
    new = np.zeros(n, bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def ranges(firsts: Wholes, lengths: Wholes) -> Wholes:
    """`firsts[i]`, `firsts[i] + 1`, … as many as `lengths[i]`, for each i in turn."""
    return np.repeat(firsts, lengths) + count_up(lengths)


def ragged_of(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """A list column as values and offsets; a null list is empty."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    lengths = np.asarray(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    values = column.flatten()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return Ragged(np.asarray(values.to_numpy(zero_copy_only=False), object), offsets_of(lengths))
    return Ragged(np.asarray(values.to_numpy(zero_copy_only=False)), offsets_of(lengths))


def list_array(values: pa.Array, offsets: Wholes) -> pa.Array:
    """A list column of values and offsets."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
