"""The block codec: one partition's predictions, packed, named by their content, read without parsing.

Layout, version 1, all little-endian; each part starts at a multiple of 8 bytes:

    offset  size  what
    0       4     magic "ALMB"
    4       2     version
    6       2     key width in bytes; 0 means int64 keys
    8       4     rows
    12      2     columns
    14      2     size of the column names in bytes
    16      4     CRC32 of everything but these four bytes
    20      4     size of the whole block in bytes
    24            column names: UTF-8, separated by NUL
                  keys: int64, or bytes padded with NUL to the key width
                  columns: float32, one after another in the order of their names

A block holds keys and values only; as_of and computed_at stand in the manifest,
so that equal predictions give equal blocks. To that end `encode` is canonical:
keys of bytes are as wide as the longest one and no wider.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.errors import BlockError

VERSION = 1
BLOCK_BYTES_MAX = 64 * 1024 * 1024
ROWS_MAX = 4_000_000
COLUMNS_MAX = 64
KEY_BYTES_MAX = 256

_MAGIC = b"ALMB"
_HEADER = struct.Struct("<4sHHIHHII")
_CRC_AT = 16
_ALIGN = 8
_INT64 = np.dtype("<i8")
_FLOAT32 = np.dtype("<f4")
_REMEDY = "rebuild it from Postgres (`almanac rebuild`)"


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
        keys = self.keys
        if keys.ndim != 1 or not (keys.dtype == np.int64 or keys.dtype.kind == "S"):
            raise BlockError(f"block keys are {keys.dtype} with shape {keys.shape}: give a row of int64 or bytes")
        if len(keys) > ROWS_MAX:
            raise BlockError(f"block has {len(keys):,} rows, at most {ROWS_MAX:,} fit: make partitions smaller")
        if keys.dtype.kind == "S" and keys.dtype.itemsize > KEY_BYTES_MAX:
            raise BlockError(f"block keys have {keys.dtype.itemsize} bytes, at most {KEY_BYTES_MAX} fit: shorten them")
        if len(keys) > 1 and not bool(np.all(keys[1:] > keys[:-1])):
            raise BlockError("block keys are not ascending and unique: sort them and drop duplicates")
        if not 1 <= len(self.columns) <= COLUMNS_MAX:
            raise BlockError(f"block has {len(self.columns)} columns: give 1 to {COLUMNS_MAX}")
        for name, column in self.columns.items():
            if not name or "\0" in name:
                raise BlockError(f"block column is named {name!r}: give a name without NUL")
            if column.dtype != np.float32 or column.shape != keys.shape:
                raise BlockError(
                    f"block column {name} is {column.dtype} with shape {column.shape}: give float32, one per key"
                )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.keys)

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
        wanted: int | bytes = key.encode() if isinstance(key, str) else key
        if isinstance(wanted, bytes) != (self.keys.dtype.kind == "S"):
            return None
        if isinstance(wanted, bytes):
            # NumPy would cut a longer key to the block's width, and take a trailing NUL for padding.
            if len(wanted) > self.keys.dtype.itemsize or wanted.endswith(b"\0"):
                return None
        elif not -(2**63) <= wanted < 2**63:
            return None
        index = int(np.searchsorted(self.keys, np.array(wanted, dtype=self.keys.dtype)))
        return index if index < len(self.keys) and self.keys[index] == wanted else None


def encode(block: Block) -> bytes:
    """Pack a block; equal blocks give equal bytes.

    Raises:
        BlockError: it would be larger than `BLOCK_BYTES_MAX`.
    """
    keys, width = _canonical_keys(block.keys)
    names = "\0".join(block.columns).encode()
    if len(names) > 0xFFFF:
        raise BlockError(f"block column names take {len(names)} bytes: shorten them to 65,535 in all")
    values = [column.astype(_FLOAT32, copy=False).tobytes() for column in block.columns.values()]
    body = b"".join(_padded(part) for part in (names, keys.tobytes(), *values))
    size = _HEADER.size + len(body)
    if size > BLOCK_BYTES_MAX:
        raise BlockError(f"block would have {size:,} bytes, at most {BLOCK_BYTES_MAX:,} fit: make partitions smaller")
    fields = (_MAGIC, VERSION, width, block.rows, len(block.columns), len(names))
    unchecked = _HEADER.pack(*fields, 0, size)
    return _HEADER.pack(*fields, _checksum(unchecked, body), size) + body


def decode(data: bytes | memoryview) -> Block:
    """Read a block; its arrays are read-only views of `data`, nothing is copied or parsed per row.

    Raises:
        BlockError: the bytes are corrupt, cut short, too large, or of a newer version.
    """
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise BlockError(f"block has {len(view)} bytes, less than a header: {_REMEDY}")
    if len(view) > BLOCK_BYTES_MAX:
        raise BlockError(f"block has {len(view):,} bytes, more than {BLOCK_BYTES_MAX:,}: {_REMEDY}")
    magic, version, width, rows, columns, names_size, crc, size = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise BlockError(f"these bytes are no block (they start with {bytes(view[:4])!r}): {_REMEDY}")
    if version != VERSION:
        raise BlockError(f"block has version {version}, this program reads {VERSION}: upgrade it, or {_REMEDY}")
    expected = _size(width, rows, columns, names_size)
    if not len(view) == size == expected:
        raise BlockError(f"block has {len(view):,} bytes, its header says {size:,} and implies {expected:,}: {_REMEDY}")
    if crc != _checksum(view[: _HEADER.size], view[_HEADER.size :]):
        raise BlockError(f"block fails its checksum: {_REMEDY}")
    names = bytes(view[_HEADER.size : _HEADER.size + names_size]).decode().split("\0")
    if len(names) != columns:
        raise BlockError(f"block names {len(names)} of {columns} columns: {_REMEDY}")
    at = _HEADER.size + _aligned(names_size)
    keys = np.frombuffer(view, dtype=np.dtype(f"S{width}") if width else _INT64, count=rows, offset=at)
    at += _aligned(keys.nbytes)
    found: dict[str, NDArray[np.float32]] = {}
    for name in names:
        found[name] = np.frombuffer(view, dtype=_FLOAT32, count=rows, offset=at)
        at += _aligned(4 * rows)
    return Block(keys=keys, columns=found)


def block_hash(data: bytes | memoryview) -> str:
    """The block's name: BLAKE2b-128 of its bytes, in hex (32 characters)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _canonical_keys(keys: NDArray[Any]) -> tuple[NDArray[Any], int]:
    if keys.dtype.kind != "S":
        return keys.astype(_INT64, copy=False), 0
    width = max(1, int(np.char.str_len(keys).max())) if len(keys) else 1
    return keys.astype(f"S{width}", copy=False), width


def _checksum(header: bytes | memoryview, body: bytes | memoryview) -> int:
    around = zlib.crc32(header[_CRC_AT + 4 :], zlib.crc32(header[:_CRC_AT]))
    return zlib.crc32(body, around)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _padded(part: bytes) -> bytes:
    return part.ljust(_aligned(len(part)), b"\0")


def _size(width: int, rows: int, columns: int, names_size: int) -> int:
    """Bytes of a block with such a header."""
    return _HEADER.size + _aligned(names_size) + _aligned((width or 8) * rows) + columns * _aligned(4 * rows)
