"""What all versions of a block share: its header, its keys, its checksum, and its limits.

All little-endian; each part starts at a multiple of 8 bytes. The header begins alike in every version:

    offset  size  what
    0       4     magic "ALMB"
    4       2     version
    6       2     key width in bytes; 0 means int64 keys
    8       4     rows
    12      2     columns
    14      2     size of the column names in bytes
    16      4     CRC32 of everything but these four bytes
    20      4     size of the whole block in bytes
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from almanac.errors import BlockError

BLOCK_BYTES_MAX = 64 * 1024 * 1024
ROWS_MAX = 4_000_000
COLUMNS_MAX = 64
KEY_BYTES_MAX = 256
NAMES_BYTES_MAX = 0xFFFF

MAGIC = b"ALMB"
HEADER = struct.Struct("<4sHHIHHII")
INT64 = np.dtype("<i8")
FLOAT32 = np.dtype("<f4")
REMEDY = "rebuild it from Postgres (`almanac rebuild`)"
_CRC_AT = 16
_ALIGN = 8

Keys = NDArray[Any]


class Header(NamedTuple):
    """The fields that every version has."""

    magic: bytes
    version: int
    width: int
    rows: int
    columns: int
    names_size: int
    crc: int
    size: int


def read_header(view: memoryview, size_max: int) -> Header:
    """The header of a block of any version.

    Raises:
        BlockError: these bytes are no block, or too many.
    """
    if len(view) < HEADER.size:
        raise BlockError(f"block has {len(view)} bytes, less than a header: {REMEDY}")
    if len(view) > size_max:
        raise BlockError(f"block has {len(view):,} bytes, more than {size_max:,}: {REMEDY}")
    header = Header(*HEADER.unpack_from(view))
    if header.magic != MAGIC:
        raise BlockError(f"these bytes are no block (they start with {bytes(view[:4])!r}): {REMEDY}")
    return header


def check_version(header: Header, version: int) -> None:
    """Refuse a block of another version than its reader's.

    Raises:
        BlockError: says which.
    """
    if header.version != version:
        raise BlockError(f"block has version {header.version}, this program reads {version}: upgrade it, or {REMEDY}")


def check_whole(view: memoryview, header: Header, expected: int) -> None:
    """Refuse bytes that were cut, that grew or that were changed.

    Args:
        expected: the size that the fields of the header imply.

    Raises:
        BlockError: says what does not fit.
    """
    if not len(view) == header.size == expected:
        raise BlockError(
            f"block has {len(view):,} bytes, its header says {header.size:,} and implies {expected:,}: {REMEDY}"
        )
    if header.crc != checksum(view[: HEADER.size], view[HEADER.size :]):
        raise BlockError(f"block fails its checksum: {REMEDY}")


def sealed(version: int, width: int, shape: tuple[int, int, int], body: bytes, size_max: int) -> bytes:
    """A block of its parts: header, then body.

    Args:
        shape: rows, columns, and the size of their names.

    Raises:
        BlockError: it would be larger than `size_max`.
    """
    size = HEADER.size + len(body)
    if size > size_max:
        raise BlockError(f"block would have {size:,} bytes, at most {size_max:,} fit: make partitions smaller")
    fields = (MAGIC, version, width, *shape)
    crc = checksum(HEADER.pack(*fields, 0, size), body)
    return HEADER.pack(*fields, crc, size) + body


def check_keys(keys: Keys) -> None:
    """Refuse keys that are no row of whole numbers or texts, ascending and unique.

    Raises:
        BlockError: says why.
    """
    if keys.ndim != 1 or not (keys.dtype == np.int64 or keys.dtype.kind == "S"):
        raise BlockError(f"block keys are {keys.dtype} with shape {keys.shape}: give a row of int64 or bytes")
    if len(keys) > ROWS_MAX:
        raise BlockError(f"block has {len(keys):,} rows, at most {ROWS_MAX:,} fit: make partitions smaller")
    if keys.dtype.kind == "S" and keys.dtype.itemsize > KEY_BYTES_MAX:
        raise BlockError(f"block keys have {keys.dtype.itemsize} bytes, at most {KEY_BYTES_MAX} fit: shorten them")
    if not ascending(keys):
        raise BlockError("block keys are not ascending and unique: sort them and drop duplicates")


def ascending(keys: Keys) -> bool:
    """Whether each key is above the one before."""
    return len(keys) < 2 or bool(np.all(keys[1:] > keys[:-1]))


def check_columns(columns: Mapping[str, NDArray[Any]], rows: int, what: str) -> None:
    """Refuse columns without a name, of another type than float32, or of another length.

    Raises:
        BlockError: says which.
    """
    for name, column in columns.items():
        if not name or "\0" in name:
            raise BlockError(f"block column is named {name!r}: give a name without NUL")
        if column.dtype != np.float32 or column.shape != (rows,):
            raise BlockError(
                f"block column {name} is {column.dtype} with shape {column.shape}: give float32, one per {what}"
            )


def find_key(keys: Keys, key: int | str) -> int | None:
    """Index of a key among sorted ones; None if it is not there, or is of the other kind."""
    wanted: int | bytes = key.encode() if isinstance(key, str) else key
    if isinstance(wanted, bytes) != (keys.dtype.kind == "S"):
        return None
    if isinstance(wanted, bytes):
        # NumPy would cut a longer key to the block's width, and take a trailing NUL for padding.
        if len(wanted) > keys.dtype.itemsize or wanted.endswith(b"\0"):
            return None
    elif not -(2**63) <= wanted < 2**63:
        return None
    index = int(np.searchsorted(keys, np.array(wanted, dtype=keys.dtype)))
    return index if index < len(keys) and keys[index] == wanted else None


def canonical_keys(keys: Keys) -> tuple[Keys, int]:
    """Keys as a block has them, texts as wide as the longest one and no wider; and that width, 0 for whole numbers."""
    if keys.dtype.kind != "S":
        return keys.astype(INT64, copy=False), 0
    width = max(1, int(np.char.str_len(keys).max())) if len(keys) else 1
    return keys.astype(f"S{width}", copy=False), width


def joined_names(names: Mapping[str, Any]) -> bytes:
    """Names as a block has them.

    Raises:
        BlockError: they are too long.
    """
    joined = "\0".join(names).encode()
    if len(joined) > NAMES_BYTES_MAX:
        raise BlockError(f"block column names take {len(joined)} bytes: shorten them to {NAMES_BYTES_MAX:,} in all")
    return joined


def split_names(data: memoryview, columns: int) -> list[str]:
    """The names that `joined_names` joined.

    Raises:
        BlockError: they are not text, or not as many as there are columns.
    """
    try:
        names = bytes(data).decode().split("\0") if columns or len(data) else []
    except UnicodeDecodeError:
        raise BlockError(f"block has column names that are no text: {REMEDY}") from None
    if len(names) != columns or len(set(names)) != columns:
        raise BlockError(f"block names {len(set(names))} of {columns} columns: {REMEDY}")
    return names


def block_hash(data: bytes | memoryview) -> str:
    """The block's name: BLAKE2b-128 of its bytes, in hex (32 characters)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def checksum(header: bytes | memoryview, body: bytes | memoryview) -> int:
    """CRC32 of a block, but for the place where it stands."""
    around = zlib.crc32(header[_CRC_AT + 4 :], zlib.crc32(header[:_CRC_AT]))
    return zlib.crc32(body, around)


def aligned(size: int) -> int:
    """The size of a part with its padding."""
    return -(-size // _ALIGN) * _ALIGN


def padded(part: bytes) -> bytes:
    """A part, filled up with NUL."""
    return part.ljust(aligned(len(part)), b"\0")
