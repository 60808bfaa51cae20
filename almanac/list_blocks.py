"""The block codec of ranked lists: one partition's lists, packed, with the same guarantees as numbers have.

Layout, version 2; the header is that of `block_layout.py` (its columns are the items' attributes), then:

    offset  size  what
    24      4     items in the dictionary
    28      4     entries: items in all lists together
    32      4     item width in bytes
    36      4     nothing
    40            attribute names: UTF-8, separated by NUL
                  keys: int64, or bytes padded with NUL to the key width
                  offsets: uint32, rows + 1; row i has the entries from offset i up to offset i + 1
                  dictionary: the items' keys, ascending, as bytes padded with NUL to the item width
                  attributes: float32 per item of the dictionary, one after another in the order of their names
                  entries' items: places in the dictionary; uint16 if it has at most 65,536 items, else uint32
                  entries' scores: float32

Canonical as version 1 is: the dictionary holds the items of the lists and no
others, so that equal lists give equal bytes, whatever they were made of.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.block_layout import (
    BLOCK_BYTES_MAX,
    FLOAT32,
    HEADER,
    INT64,
    KEY_BYTES_MAX,
    REMEDY,
    Header,
    aligned,
    ascending,
    block_hash,
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
from almanac.blocks import VERSION as NUMBERS_VERSION
from almanac.blocks import Block, decode
from almanac.errors import BlockError, PredictionError
from almanac.ranked import ITEMS_MAX, RankedList
from almanac.ranking_declared import ATTRIBUTES_MAX, SCORES_COLUMN, STORED_COLUMNS

VERSION = 2
ENTRIES_MAX = 16_000_000
"""Items in all lists of one block."""
_SECOND = struct.Struct("<IIII")
_NARROW_MAX = 1 << 16
_UINT32 = np.dtype("<u4")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ListBlock:
    """One partition's lists, best item first.

    Args:
        keys: (rows,) int64 or fixed-width bytes `S<n>` (UTF-8), ascending and unique.
        offsets: (rows + 1,) whole numbers from 0, never descending: which entries each list has.
        items: fixed-width bytes (UTF-8), ascending and unique: the items of all lists, and no others.
        attributes: name to (items,) float32.
        places: (entries,) whole numbers: each entry's place in `items`.
        scores: (entries,) float32.

    Raises:
        BlockError: something is not as said above; make one with `of` to have the dictionary put in order.
    """

    keys: NDArray[Any]
    offsets: NDArray[Any]
    items: NDArray[Any]
    attributes: dict[str, Floats]
    places: NDArray[Any]
    scores: Floats

    def __post_init__(self) -> None:
        check_keys(self.keys)
        _check_dictionary(self.items)
        check_columns(self.attributes, len(self.items), "item")
        check_columns({SCORES_COLUMN: self.scores}, len(self.places), "entry")
        _check_offsets(self.offsets, len(self.keys), len(self.places))
        if self.places.dtype.kind not in "iu" or self.places.ndim != 1:
            raise BlockError(f"block places are {self.places.dtype}: give a row of whole numbers")
        used = np.zeros(len(self.items), dtype=np.bool_)
        if len(self.places):
            if int(self.places.min()) < 0 or int(self.places.max()) >= len(self.items):
                raise BlockError(
                    f"a list names an item that is not among the {len(self.items):,} of its block: {REMEDY}"
                )
            used[self.places] = True
        if not used.all():
            raise BlockError("a block holds an item that is in none of its lists: leave it out")
        if len(self.attributes) > ATTRIBUTES_MAX:
            raise BlockError(f"block has {len(self.attributes)} attributes: give at most {ATTRIBUTES_MAX}")

    @classmethod
    def of(
        cls,
        keys: NDArray[Any],
        offsets: NDArray[Any],
        items: NDArray[Any],
        attributes: dict[str, Floats],
        places: NDArray[Any],
        scores: Floats,
    ) -> ListBlock:
        """A block whose lists speak of some of `items`, which are ascending and unique: the others are left out.

        Raises:
            BlockError: as for the block itself.
        """
        used = np.zeros(len(items), dtype=np.bool_)
        used[places] = True
        renumbered = (np.cumsum(used) - 1)[places]
        mine = {name: values[used] for name, values in attributes.items()}
        return cls(keys, offsets, items[used], mine, renumbered, scores)

    @property
    def rows(self) -> int:
        """Number of rows: entities, each with its list."""
        return len(self.keys)

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """Columns of a row in the record, in order."""
        return (*STORED_COLUMNS, *self.attributes)

    @cached_property
    def columns(self) -> dict[str, Floats]:
        """Every number that the record will hold: scores by entry, attributes by item."""
        return {SCORES_COLUMN: self.scores, **self.attributes}

    @cached_property
    def encoded(self) -> bytes:
        """The block as `encode_lists` packs it; packed once, whoever asks."""
        return encode_lists(self)

    @cached_property
    def hash(self) -> str:
        """The block's name, `block_hash` of its bytes."""
        return block_hash(self.encoded)

    def find(self, key: int | str) -> int | None:
        """Index of a key; None if the block has no such key, or keys of the other kind."""
        return find_key(self.keys, key)

    def row(self, key: int | str) -> RankedList | None:
        """One key's list; None if the block has no such key.

        Raises:
            BlockError: the list is none: an item stands twice, scores ascend, or a number is not finite.
        """
        index = self.find(key)
        if index is None:
            return None
        chosen = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        places = self.places[chosen]
        try:
            return RankedList(
                items=tuple(item.decode() for item in self.items[places].tolist()),
                scores=tuple(self.scores[chosen].tolist()),
                attributes={name: tuple(values[places].tolist()) for name, values in self.attributes.items()},
            )
        except (PredictionError, UnicodeDecodeError) as error:
            raise BlockError(f"the list of {key} in its block is none ({error}): {REMEDY}") from None


AnyBlock = Block | ListBlock


def empty_block(columns: Sequence[str], *, whole_keys: bool) -> AnyBlock:
    """The block of a partition that nobody falls into, with these columns of the record."""
    keys = np.empty(0, dtype=np.int64 if whole_keys else "S1")
    nothing = np.empty(0, dtype=np.float32)
    if tuple(columns[: len(STORED_COLUMNS)]) != STORED_COLUMNS:
        return Block(keys=keys, columns=dict.fromkeys(columns, nothing))
    attributes = dict.fromkeys(columns[len(STORED_COLUMNS) :], nothing)
    places = np.empty(0, dtype=np.int64)
    return ListBlock(keys, np.zeros(1, dtype=np.int64), np.empty(0, dtype="S1"), attributes, places, nothing)


def encode_lists(block: ListBlock) -> bytes:
    """Pack a block of lists; equal blocks give equal bytes.

    Raises:
        BlockError: it would be larger than `BLOCK_BYTES_MAX`.
    """
    keys, width = canonical_keys(block.keys)
    items, item_width = canonical_keys(block.items)
    names = joined_names(block.attributes)
    second = _SECOND.pack(len(items), len(block.places), item_width, 0)
    parts = [
        names,
        keys.tobytes(),
        block.offsets.astype(_UINT32).tobytes(),
        items.tobytes(),
        *(values.astype(FLOAT32, copy=False).tobytes() for values in block.attributes.values()),
        block.places.astype(_place_type(len(items))).tobytes(),
        block.scores.astype(FLOAT32, copy=False).tobytes(),
    ]
    body = second + b"".join(padded(part) for part in parts)
    return sealed(VERSION, width, (block.rows, len(block.attributes), len(names)), body, BLOCK_BYTES_MAX)


def decode_lists(data: bytes | memoryview) -> ListBlock:
    """Read a block of lists; its arrays are read-only views of `data`.

    Raises:
        BlockError: the bytes are corrupt, cut short, too large, of another version, or no lists.
    """
    view = memoryview(data)
    header = read_header(view, BLOCK_BYTES_MAX)
    check_version(header, VERSION)
    return _lists(view, header)


def unpacked(data: bytes | memoryview) -> AnyBlock:
    """Read a block of either version.

    Raises:
        BlockError: the bytes are corrupt, cut short, too large, or of a newer version.
    """
    version = read_header(memoryview(data), BLOCK_BYTES_MAX).version
    return decode(data) if version == NUMBERS_VERSION else decode_lists(data)


def _lists(view: memoryview, header: Header) -> ListBlock:
    if len(view) < HEADER.size + _SECOND.size:
        raise BlockError(f"block has {len(view)} bytes, less than a header: {REMEDY}")
    count, entries, item_width, nothing = _SECOND.unpack_from(view, HEADER.size)
    place = _place_type(count)
    parts: list[tuple[Any, int]] = [
        (np.dtype(np.uint8), header.names_size),
        (np.dtype(f"S{header.width}") if header.width else INT64, header.rows),
        (_UINT32, header.rows + 1),
        (np.dtype(f"S{item_width}") if item_width <= KEY_BYTES_MAX else np.dtype("S1"), count),
        *[(FLOAT32, count)] * header.columns,
        (place, entries),
        (FLOAT32, entries),
    ]
    start = HEADER.size + _SECOND.size
    check_whole(view, header, start + sum(aligned(kind.itemsize * size) for kind, size in parts))
    if nothing or item_width < 1 or item_width > KEY_BYTES_MAX:
        raise BlockError(f"block has items of {item_width} bytes, 1 to {KEY_BYTES_MAX} fit: {REMEDY}")
    found: list[NDArray[Any]] = []
    for kind, size in parts:
        found.append(np.frombuffer(view, dtype=kind, count=size, offset=start))
        start += aligned(kind.itemsize * size)
    names = split_names(memoryview(found[0].tobytes()), header.columns)
    attributes = dict(zip(names, found[4:-2], strict=True))
    return ListBlock(found[1], found[2], found[3], attributes, found[-2], found[-1])


def _place_type(items: int) -> np.dtype[Any]:
    return np.dtype("<u2") if items <= _NARROW_MAX else _UINT32


def _check_dictionary(items: NDArray[Any]) -> None:
    if items.ndim != 1 or items.dtype.kind != "S":
        raise BlockError(f"block items are {items.dtype} with shape {items.shape}: give a row of bytes")
    if items.dtype.itemsize > KEY_BYTES_MAX:
        raise BlockError(f"block items have {items.dtype.itemsize} bytes, at most {KEY_BYTES_MAX} fit: shorten them")
    if not ascending(items):
        raise BlockError("block items are not ascending and unique: sort them and drop duplicates")


def _check_offsets(offsets: NDArray[Any], rows: int, entries: int) -> None:
    if offsets.dtype.kind not in "iu" or offsets.shape != (rows + 1,):
        raise BlockError(f"block offsets are {offsets.dtype} with shape {offsets.shape}: give {rows + 1} whole numbers")
    lengths = np.diff(offsets.astype(np.int64, copy=False))
    if int(offsets[0]) != 0 or int(offsets[-1]) != entries or (rows and int(lengths.min()) < 0):
        raise BlockError(f"block offsets do not rise from 0 to {entries:,}: {REMEDY}")
    if entries > ENTRIES_MAX or (rows and int(lengths.max()) > ITEMS_MAX):
        raise BlockError(
            f"block has {entries:,} entries, at most {ENTRIES_MAX:,} fit and {ITEMS_MAX:,} in a list: "
            "make partitions or lists smaller"
        )
