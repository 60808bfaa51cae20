"""The block codec: one partition's predictions, packed, named by their content, read without parsing.

Layout, version 1, numbers (`list_blocks.py` has version 2, lists); the header is that of `block_layout.py`, then:

    offset  size  what
    24            column names: UTF-8, separated by NUL
                  keys: int64, or bytes padded with NUL to the key width
                  columns: float32, one after another in the order of their names

A block holds keys and values only; as_of and computed_at stand in the manifest,
so that equal predictions give equal blocks. To that end `encode` is canonical:
keys of bytes are as wide as the longest one and no wider.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.block_layout import BLOCK_BYTES_MAX as BLOCK_BYTES_MAX
from almanac.block_layout import (
    COLUMNS_MAX,
    FLOAT32,
    HEADER,
    INT64,
    aligned,
    canonical_keys,
    check_columns,
    check_keys,
    check_version,
    check_whole,
    find_key,
    joined_names,
    padded,
    read_header,
    sealed,
    split_names,
)
from almanac.block_layout import block_hash as block_hash
from almanac.errors import BlockError

VERSION = 1


@dataclass(frozen=True, eq=False)
class Block:
    """One partition's predictions.

    Args:
        keys: (rows,) int64 or fixed-width bytes `S<n>` (UTF-8), ascending and unique.
        columns: name to (rows,) float32, in the declaration's order.

    Raises:
        BlockError: keys are not ascending and unique, or shapes, types or sizes do not fit.
    """

    keys: NDArray[Any]
    columns: dict[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        check_keys(self.keys)
        if not 1 <= len(self.columns) <= COLUMNS_MAX:
            raise BlockError(f"block has {len(self.columns)} columns: give 1 to {COLUMNS_MAX}")
        check_columns(self.columns, len(self.keys), "key")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.keys)

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """Columns of a row in the record, in order."""
        return tuple(self.columns)

    @cached_property
    def encoded(self) -> bytes:
        """The block as `encode` packs it; packed once, whoever asks."""
        return encode(self)

    @cached_property
    def hash(self) -> str:
        """The block's name, `block_hash` of its bytes."""
        return block_hash(self.encoded)

    def row(self, key: int | str) -> dict[str, float] | None:
        """One key's values by column name; None if the block has no such key."""
        index = self.find(key)
        if index is None:
            return None
        return {name: float(column[index]) for name, column in self.columns.items()}

    def find(self, key: int | str) -> int | None:
        """Index of a key; None if the block has no such key, or keys of the other kind."""
        return find_key(self.keys, key)


def encode(block: Block) -> bytes:
    """Pack a block; equal blocks give equal bytes.

    Raises:
        BlockError: it would be larger than `BLOCK_BYTES_MAX`.
    """
    keys, width = canonical_keys(block.keys)
    names = joined_names(block.columns)
    values = [column.astype(FLOAT32, copy=False).tobytes() for column in block.columns.values()]
    body = b"".join(padded(part) for part in (names, keys.tobytes(), *values))
    return sealed(VERSION, width, (block.rows, len(block.columns), len(names)), body, BLOCK_BYTES_MAX)


def decode(data: bytes | memoryview) -> Block:
    """Read a block; its arrays are read-only views of `data`, nothing is copied or parsed per row.

    Raises:
        BlockError: the bytes are corrupt, cut short, too large, or of a newer version.
    """
    view = memoryview(data)
    header = read_header(view, BLOCK_BYTES_MAX)
    check_version(header, VERSION)
    rows, width = header.rows, header.width
    keys_at = HEADER.size + aligned(header.names_size)
    at = keys_at + aligned((width or 8) * rows)
    check_whole(view, header, at + header.columns * aligned(4 * rows))
    names = split_names(view[HEADER.size : HEADER.size + header.names_size], header.columns)
    keys = np.frombuffer(view, dtype=np.dtype(f"S{width}") if width else INT64, count=rows, offset=keys_at)
    found: dict[str, NDArray[np.float32]] = {}
    for name in names:
        found[name] = np.frombuffer(view, dtype=FLOAT32, count=rows, offset=at)
        at += aligned(4 * rows)
    return Block(keys=keys, columns=found)
