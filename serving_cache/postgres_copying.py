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


class Packing:
    """Packs rows (generation, partition, entity, each output) of one generation, some thousands at a time.

    What is the same in every row is written once: what was packed must be sent before the next is.
    """

    def __init__(self, generation: int) -> None:
        self._generation = generation
        self._blank: dict[np.dtype[Any], NDArray[Any]] = {}

    def packed(self, parts: Sequence[StagedPartition]) -> Iterator[bytes | memoryview]:
        """The rows of partitions with equal columns; those without rows give none."""
        filled = [part for part in parts if part.block.rows]
        if not filled:
            return
        owners = np.repeat([part.partition for part in filled], [part.block.rows for part in filled])
        keys = np.concatenate([part.block.keys for part in filled])
        columns = [np.concatenate([part.block.columns[name] for part in filled]) for name in filled[0].block.columns]
        for start in range(0, len(keys), ROWS_PER_WRITE):
            step = slice(start, start + ROWS_PER_WRITE)
            yield self._stream(owners[step], keys[step], [column[step] for column in columns])

    def _stream(self, owners: NDArray[Any], keys: NDArray[Any], columns: list[NDArray[Any]]) -> bytes | memoryview:
        text = keys.dtype.kind == "S"
        rows = self._rows(_row(keys.dtype.str if text else ">i8", len(columns)), len(columns))[: len(keys)]
        rows["partition"], rows["key"] = owners, keys
        for number, column in enumerate(columns):
            rows[f"value_{number}"] = column
        if not text:
            return rows.data.cast("B")
        rows["key_size"] = np.char.str_len(keys)
        packed = rows.view(np.uint8).reshape(len(rows), -1)
        kept = np.ones(packed.shape, dtype=bool)
        width, offsets = keys.dtype.itemsize, rows.dtype.fields
        assert offsets is not None  # noqa: S101  (it is structured)
        start = offsets["key"][1]
        kept[:, start : start + width] = np.arange(width) < rows["key_size"][:, None]
        return packed[kept].tobytes()

    def _rows(self, kind: np.dtype[Any], columns: int) -> NDArray[Any]:
        if kind not in self._blank:
            rows = self._blank[kind] = np.zeros(ROWS_PER_WRITE, dtype=kind)
            rows["fields"], rows["generation_size"], rows["generation"] = 3 + columns, 8, self._generation
            rows["partition_size"], rows["key_size"] = 4, 8
            for number in range(columns):
                rows[f"size_{number}"] = 4
        return self._blank[kind]


@lru_cache(maxsize=64)
def _row(key: str, columns: int) -> np.dtype[Any]:
    fields = [("fields", ">i2"), ("generation_size", ">i4"), ("generation", ">i8")]
    fields += [("partition_size", ">i4"), ("partition", ">i4"), ("key_size", ">i4"), ("key", key)]
    for number in range(columns):
        fields += [(f"size_{number}", ">i4"), (f"value_{number}", ">f4")]
    return np.dtype(fields)
