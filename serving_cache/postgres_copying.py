"""Predictions as the stream of a binary COPY, made a column at a time.

A row of fixed width is a structured dtype, so that an array of rows is the
stream itself: https://www.postgresql.org/docs/current/sql-copy.html (Binary Format).
Keys of text are packed at their longest, and what is too much is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving_cache.records import StagedPartition

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
ROWS_PER_WRITE = 8_192
"""What the server takes in while the next rows are packed; as much as a socket holds."""


def grouped(parts: Sequence[StagedPartition]) -> Iterator[list[StagedPartition]]:
    """Partitions in their order, small ones together up to `ROWS_PER_WRITE`."""
    group: list[StagedPartition] = []
    rows = 0
    for part in parts:
        if group and rows + part.block.rows > ROWS_PER_WRITE:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += part.block.rows
    if group:
        yield group


def copied(generation: int, parts: Sequence[StagedPartition]) -> Iterator[bytes | memoryview]:
    """The rows (generation, partition, entity, each output) of partitions with equal columns, some thousands at a time.

    Args:
        parts: those without rows give none.
    """
    filled = [part for part in parts if part.block.rows]
    if not filled:
        return
    owners = np.repeat([part.partition for part in filled], [part.block.rows for part in filled])
    keys = np.concatenate([part.block.keys for part in filled])
    columns = [np.concatenate([part.block.columns[name] for part in filled]) for name in filled[0].block.columns]
    for start in range(0, len(keys), ROWS_PER_WRITE):
        step = slice(start, start + ROWS_PER_WRITE)
        yield _stream(generation, owners[step], keys[step], [column[step] for column in columns])


def _stream(
    generation: int, owners: NDArray[Any], keys: NDArray[Any], columns: list[NDArray[Any]]
) -> bytes | memoryview:
    text = keys.dtype.kind == "S"
    rows = np.empty(len(keys), dtype=_row(keys.dtype.str if text else ">i8", len(columns)))
    rows["fields"] = 3 + len(columns)
    rows["generation_size"], rows["generation"] = 8, generation
    rows["partition_size"], rows["partition"] = 4, owners
    rows["key_size"], rows["key"] = np.char.str_len(keys) if text else 8, keys
    for number, column in enumerate(columns):
        rows[f"size_{number}"], rows[f"value_{number}"] = 4, column
    if not text:
        return rows.data.cast("B")
    packed = rows.view(np.uint8).reshape(len(rows), -1)
    kept = np.ones(packed.shape, dtype=bool)
    start = rows.dtype.fields["key"][1]
    width = keys.dtype.itemsize
    kept[:, start : start + width] = np.arange(width) < rows["key_size"][:, None]
    return packed[kept].tobytes()


@lru_cache(maxsize=64)
def _row(key: str, columns: int) -> np.dtype[Any]:
    fields = [("fields", ">i2"), ("generation_size", ">i4"), ("generation", ">i8")]
    fields += [("partition_size", ">i4"), ("partition", ">i4"), ("key_size", ">i4"), ("key", key)]
    for number in range(columns):
        fields += [(f"size_{number}", ">i4"), (f"value_{number}", ">f4")]
    return np.dtype(fields)
