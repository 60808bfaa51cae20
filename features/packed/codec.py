"""The packed value: a feature view's row of one entity, as bytes in Redis. NumPy alone, so that the lookup reads it.

    bytes    what
    0        magic
    1        version of this codec
    2        1 if it is known when the row was created, else 0
    3        0
    4-7      fingerprint of the layout: which columns follow, and of which types
    8-15     event time, whole microseconds since 1970, signed
    16-23    when the row was created, alike; not there where it is not known
    after    a bit for each column, in the layout's order: set where it has a value
             columns of fixed width, those of one type together: FLOAT, DOUBLE, INT64, UNIX_TIMESTAMP, INT32, BOOL
             length in bytes of each other column, then their bytes: text, bytes, lists, serialized Values of Feast

All is little-endian and nothing is aligned. All up to the bits holds in every version, so that the newer of two
values is found whatever they hold: by event time and, of one event time, by creation, as offline. A null has its bit
unset, zeros or NaN for its number and no bytes; NaN and infinities are numbers like others.

A layout is named in the value and lies beside the values by that name (`features.packed.store`), so that a
process reads rows that were packed before columns came or went: by name, and what a row does not have is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError

MAGIC = 0xA1
CODEC_VERSION = 1
COLUMNS_MAX = 4_096
VALUE_BYTES_MAX = 16 * 1024 * 1024

NUMBERS = {"FLOAT": "<f4", "DOUBLE": "<f8", "INT64": "<i8", "UNIX_TIMESTAMP": "<i8", "INT32": "<i4", "BOOL": "|b1"}
"""Feast's value types of fixed width; a UNIX_TIMESTAMP is in whole seconds."""
TEXTS = frozenset({"STRING", "JSON", "UUID", "TIME_UUID", "DECIMAL"})
BYTES = frozenset({"BYTES", "PDF_BYTES", "IMAGE_BYTES"})
LISTS = {f"{name}_LIST": code for name, code in NUMBERS.items()}
"""Lists whose cells are their elements, one after the other. All other types are Feast's Value, serialized."""

Bits = NDArray[np.bool_]
Micros = NDArray[np.int64]


class Column(msgspec.Struct, frozen=True):
    """A feature: its name, and the name of its type among Feast's value types."""

    name: str
    type: str


class Layout(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """What the values of one feature view hold, in this order. Equal layouts have one fingerprint."""

    project: str
    view: str
    columns: tuple[Column, ...]

    @property
    def fingerprint(self) -> int:
        """Names this layout in its values; never 0."""
        return packing(self).fingerprint

    def encoded(self) -> bytes:
        """As JSON, to lie beside the values."""
        return msgspec.json.encode(self)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """A layout's bytes.

    Args:
        head, record: the first eight bytes, and everything before the tail; `dated` where creation is known.
        full: the bits of a row without a null.
        groups: for each type of fixed width that occurs, the columns' names in order.
        tail: names of the other columns, in order.
    """

    fingerprint: int
    head: int
    dated_head: int
    full: NDArray[np.uint8]
    record: np.dtype[Any]
    dated_record: np.dtype[Any]
    groups: Mapping[str, tuple[str, ...]]
    tail: tuple[str, ...]
    places: Mapping[str, int]


@lru_cache(maxsize=1_024)
def packing(layout: Layout) -> Packing:
    """How a layout's values lie in bytes.

    Raises:
        FeatureError: it has no columns, too many, or two of one name.
    """
    names = [column.name for column in layout.columns]
    if not 1 <= len(set(names)) == len(names) <= COLUMNS_MAX:
        raise FeatureError(f"view {layout.view} has {len(names)} features, expected 1 to {COLUMNS_MAX} of unlike names")
    found: dict[str, list[str]] = {kind: [] for kind in NUMBERS}
    tail: list[str] = []
    for column in layout.columns:
        found.get(column.type, tail).append(column.name)
    groups = {kind: tuple(held) for kind, held in found.items() if held}
    print_ = int.from_bytes(blake2b(layout.encoded(), digest_size=4).digest(), "little") or 1
    start: list[Any] = [("head", "<u8"), ("time", "<i8")]
    fields: list[Any] = [("valid", "u1", (-(-len(names) // 8),))]
    fields += [(kind, NUMBERS[kind], (len(held),)) for kind, held in groups.items()]
    if tail:
        fields.append(("lengths", "<u4", (len(tail),)))
    head = MAGIC | CODEC_VERSION << 8 | print_ << 32
    return Packing(
        fingerprint=print_,
        head=head,
        dated_head=head | 1 << 16,
        full=np.packbits(np.ones(len(names), dtype=np.uint8), bitorder="little"),
        record=np.dtype([*start, *fields]),
        dated_record=np.dtype([*start, ("created", "<i8"), *fields]),
        groups=groups,
        tail=tuple(tail),
        places={name: at for at, name in enumerate(names)},
    )


@dataclass(frozen=True)
class Cells:
    """One column of n rows: numbers, or for a column of the tail bytes objects; `valid` None where none is null."""

    values: NDArray[Any]
    valid: Bits | None = None


def records(
    layout: Layout,
    times: Micros,
    numbers: Mapping[str, Cells],
    tail_valid: Mapping[str, Bits],
    created: Micros | None = None,
) -> NDArray[Any]:
    """Everything of n values but the tail: a structured array of a record of `packing(layout)`; lengths are left 0.

    Args:
        times: event times in whole microseconds since 1970.
        numbers: the columns of fixed width.
        tail_valid: which cells of the other columns have a value.
        created: when the rows were, in microseconds since 1970; 0 or None: not known.
    """
    packed = packing(layout)
    dated = created is not None and bool(created.any())
    made = np.zeros(len(times), dtype=packed.dated_record if dated else packed.record)
    made["head"] = packed.dated_head if dated else packed.head
    made["time"] = times
    if dated:
        made["created"] = created
    nulls = {name: cells.valid for name, cells in numbers.items() if cells.valid is not None} | dict(tail_valid)
    made["valid"] = packed.full
    if nulls:
        bits = np.ones((len(times), len(packed.places)), dtype=bool)
        for name, valid in nulls.items():
            bits[:, packed.places[name]] = valid
        made["valid"] = np.packbits(bits, axis=1, bitorder="little")
    for kind, names in packed.groups.items():
        block = made[kind]
        blank = np.nan if kind in ("FLOAT", "DOUBLE") else 0
        for at, name in enumerate(names):
            cells = numbers[name]
            block[:, at] = cells.values if cells.valid is None else np.where(cells.valid, cells.values, blank)
    return made


def as_bytes(made: NDArray[Any]) -> list[bytes]:
    """The bytes of each record."""
    found: list[bytes] = made.view(f"V{made.dtype.itemsize}").tolist()
    return found


class UnknownLayouts(FeatureError):
    """Values were packed in layouts that this process has not met: fetch them, and decode again."""

    def __init__(self, view: str, fingerprints: set[int]) -> None:
        named = ", ".join(f"{found:08x}" for found in sorted(fingerprints)[:3])
        super().__init__(
            f"rows of view {view} are packed in a layout ({named}) that is not in Redis: materialize the view again"
        )
        self.fingerprints = fingerprints


@dataclass(frozen=True)
class Packed:
    """Rows of one layout, dated or not, but not yet taken apart: `where` are their places among all asked for."""

    layout: Layout
    where: NDArray[np.int64] | None
    """None: all of them, in order; absent ones among them, with a head of 0."""
    records: NDArray[Any]
    values: Sequence[bytes | None]

    @property
    def times(self) -> Micros:
        """Event times in microseconds."""
        found: Micros = self.records["time"]
        return found

    @property
    def present(self) -> Bits:
        """Which rows are there."""
        found: Bits = self.records["head"] != 0
        return found

    def valid(self, name: str) -> Bits | None:
        """Which cells of a column have a value; None if all have."""
        at = packing(self.layout).places[name]
        found: Bits = (self.records["valid"][:, at // 8] & (1 << at % 8)) != 0
        return None if found.all() else found


Known = Mapping[int, Layout]


def parse(layout: Layout, values: Sequence[bytes | None], known: Known | None = None) -> list[Packed]:
    """Read values: almost always all of this layout, and then at once.

    Args:
        values: as Redis gave them; None where there is none.
        known: further layouts of the view by fingerprint, for rows packed before its columns changed.

    Returns:
        One for each layout met, and of that for dated rows and others; absent rows are in none, unless there is
        one alone.

    Raises:
        UnknownLayouts: a value's layout is neither this one nor known.
        FeatureError: a value is damaged, or packed by a newer version.
    """
    packed = packing(layout)
    whole = _records(packed, values)
    if whole is not None:
        return [Packed(layout, None, whole, values)]
    groups: dict[bytes, list[int]] = {}
    for at, value in enumerate(values):
        if value is not None:
            groups.setdefault(value[:8], []).append(at)
    layouts = {packed.fingerprint: layout, **(known or {})}
    prints = {head: _fingerprint(layout.view, head) for head in groups}
    if unknown := set(prints.values()) - layouts.keys():
        raise UnknownLayouts(layout.view, unknown)
    found = []
    for head, places in groups.items():
        held = [values[at] for at in places]
        own = layouts[prints[head]]
        read = _records(packing(own), held)
        if read is None:
            raise damaged(layout.view)
        found.append(Packed(own, np.array(places, dtype=np.int64), read, held))
    return found


def _records(packed: Packing, values: Sequence[bytes | None]) -> NDArray[Any] | None:
    """The records of values that are all whole, of this layout and alike dated, or absent; None if they are not."""
    first = next((value for value in values if value is not None), b"")
    dated = first[2:3] == b"\1"
    record, expected = (packed.dated_record, packed.dated_head) if dated else (packed.record, packed.head)
    width = record.itemsize
    blank = bytes(width)
    if packed.tail:
        data = b"".join([value[:width] if value is not None else blank for value in values])
    elif None in values:
        data = b"".join([blank if value is None else value for value in values])
    else:
        data = b"".join(values)  # type: ignore[arg-type]
    if len(data) != width * len(values):
        return None
    read = np.frombuffer(data, dtype=record)
    heads = read["head"]
    if not (heads == expected).all() and not ((heads == expected) | (heads == 0)).all():
        return None
    if packed.tail:
        lengths = np.fromiter((width if value is None else len(value) for value in values), np.int64, len(values))
        if not (lengths - width == read["lengths"].sum(axis=1, dtype=np.int64)).all():
            return None
    return read


def _fingerprint(view: str, head: bytes) -> int:
    if len(head) < 8 or head[0] != MAGIC:
        raise damaged(view)
    if head[1] > CODEC_VERSION:
        raise newer(view, head[1])
    if head[1] != CODEC_VERSION or head[2] > 1 or head[3]:
        raise damaged(view)
    return int.from_bytes(head[4:8], "little")


def damaged(view: str) -> FeatureError:
    """What is raised for bytes that are no packed value."""
    return FeatureError(f"a row of view {view} in Redis is damaged: materialize the view again")


def newer(view: str, version: int) -> FeatureError:
    """What is raised for a value that a newer program has packed."""
    return FeatureError(
        f"a row of view {view} in Redis is packed by version {version}, this process knows {CODEC_VERSION}: upgrade it"
    )


def decode_layout(data: bytes) -> Layout:
    """Read a layout that lay beside the values.

    Raises:
        FeatureError: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Layout)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FeatureError(f"a layout in Redis cannot be read ({error}): materialize the features again") from None


def numbers_of(found: Sequence[Packed], n: int, names: Sequence[str]) -> NDArray[np.float64]:
    """Number columns as float64 (names, n): NaN where a cell is null, its row absent, or its layout without it."""
    if len(found) == 1 and found[0].where is None:
        return _numbers(found[0], tuple(names))
    made = np.full((len(names), n), np.nan)
    for part in found:
        made[:, part.where] = _numbers(part, tuple(names))
    return made


def _numbers(part: Packed, names: tuple[str, ...]) -> NDArray[np.float64]:
    shares = _shares(part.layout, names)
    made = np.empty((len(names), len(part.records)))
    if sum(len(share.of) for share in shares.values()) < len(names):
        made[:] = np.nan
    valid = part.records["valid"]
    whole = bool((valid == packing(part.layout).full).all())
    for kind, share in shares.items():
        block = part.records[kind].T
        made[share.to] = block if share.all_in_order else block[share.of]
        if not whole and kind not in _NAN:
            null = np.unpackbits(valid, axis=1, bitorder="little")[:, share.places].T == 0
            made[share.to] = np.where(null, np.nan, made[share.to])
    if not whole and (absent := ~part.present).any():
        made[:, absent] = np.nan
    return made


_NAN = frozenset({"FLOAT", "DOUBLE"})  # a null of these is NaN as it lies there


@dataclass(frozen=True)
class _Share:
    """Which of some columns are of one type: `to` are their places among those, `of` in the group, `places` in all."""

    to: Any
    of: NDArray[np.int64]
    places: NDArray[np.int64]
    all_in_order: bool


@lru_cache(maxsize=1_024)
def _shares(layout: Layout, names: tuple[str, ...]) -> Mapping[str, _Share]:
    packed, found = packing(layout), {}
    for kind, held in packed.groups.items():
        to = [at for at, name in enumerate(names) if name in held]
        of = [held.index(names[at]) for at in to]
        places = [packed.places[names[at]] for at in to]
        if to:
            run: Any = slice(to[0], to[-1] + 1) if to == list(range(to[0], to[-1] + 1)) else np.array(to)
            found[kind] = _Share(run, np.array(of), np.array(places), of == list(range(len(held))))
    return found
