"""Lists out of packed values, with NumPy alone: numbers as they lie there, texts out of Feast's serialized Value.

A list of texts is Feast's message `Value`, whose field 12 holds the texts at field 1. Its bytes are taken apart here
because the processes that read them must not import Feast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.ragged import Ragged
from features.packed.codec import LISTS, Bits, Packed, damaged, packing

TEXT_LIST = "STRING_LIST"
KINDS = frozenset({*LISTS, TEXT_LIST})
"""Types whose cells are lists that are read here."""
_FIELD, _ENTRY = 0x62, 0x0A
"""Heads of field 12 of Value and of field 1 of what it holds: both of wire type 2, bytes with their length."""
_MORE = 0x80
"""The bit of a varint's byte that says that another follows."""


def lists_of(found: Sequence[Packed], usable: Bits, name: str) -> Ragged:
    """A list column of n rows; empty where a cell is null, its row absent, or its layout without it.

    Args:
        usable: (n,), False for rows that are not to be read.

    Returns:
        Numbers of the column's own type, or texts as objects.

    Raises:
        FeatureError: a cell is damaged.
    """
    lists: list[list[str] | NDArray[Any]] = [[]] * len(usable)
    dtype: Any = object
    for part in found:
        kind = next((column.type for column in part.layout.columns if column.name == name), None)
        if kind not in KINDS:
            continue
        dtype = object if kind == TEXT_LIST else np.dtype(LISTS[kind]).newbyteorder("=")
        places = range(len(usable)) if part.where is None else part.where.tolist()
        for place, cell in zip(places, _cells(part, name), strict=True):
            if cell and usable[place]:
                lists[place] = _list(cell, kind, part.layout.view)
    return Ragged.of(lists, dtype)


def _list(cell: bytes, kind: str, view: str) -> list[str] | NDArray[Any]:
    if kind == TEXT_LIST:
        try:
            return texts(cell)
        except (ValueError, IndexError):
            raise damaged(view) from None
    code = np.dtype(LISTS[kind])
    if len(cell) % code.itemsize:
        raise damaged(view)
    return np.frombuffer(cell, dtype=code)


def _cells(part: Packed, name: str) -> Iterator[bytes]:
    """The bytes of one column of the tail, a row after the other; none of a row that is absent."""
    packed = packing(part.layout)
    at, width = packed.tail.index(name), part.records.dtype.itemsize
    ends = width + np.cumsum(part.records["lengths"], axis=1, dtype=np.int64)
    starts = (ends[:, at] - part.records["lengths"][:, at]).tolist()
    for value, start, end in zip(part.values, starts, ends[:, at].tolist(), strict=True):
        yield b"" if value is None else value[start:end]


def texts(cell: bytes) -> list[str]:
    """The texts of a serialized list; of no bytes, none.

    Raises:
        ValueError, IndexError: these bytes are no such list.
    """
    if not cell:
        return []
    if cell[0] != _FIELD:
        raise ValueError("another field")
    size, at = _varint(cell, 1)
    if at + size != len(cell):
        raise ValueError("another length")
    found = []
    while at < len(cell):
        if cell[at] != _ENTRY:
            raise ValueError("another field")
        size, at = _varint(cell, at + 1)
        if at + size > len(cell):
            raise ValueError("cut short")
        found.append(cell[at : at + size].decode())
        at += size
    return found


def _varint(cell: bytes, at: int) -> tuple[int, int]:
    """A whole number and where the next byte is."""
    number = shift = 0
    while True:
        byte = cell[at]
        number |= (byte & ~_MORE) << shift
        at, shift = at + 1, shift + 7
        if not byte & _MORE:
            return number, at
        if shift > 28:
            raise ValueError("too long a number")


def varint(number: int) -> bytes:
    """A whole number as protobuf writes it."""
    made = bytearray()
    while number >= _MORE:
        made.append(number & ~_MORE & 0xFF | _MORE)
        number >>= 7
    made.append(number)
    return bytes(made)


def entry_head(size: int) -> bytes:
    """What stands before a text of so many bytes."""
    return bytes([_ENTRY]) + varint(size)


def list_head(size: int) -> bytes:
    """What stands before the entries of a list, of so many bytes."""
    return bytes([_FIELD]) + varint(size)
