"""Between packed cells and Feast's values: protobuf `Value` messages, their bytes, and plain Python values.

Everything here goes column by column. The bytes of a column's messages are written at once where its type is of fixed
width: protobuf takes a whole number in the longest form of a varint as well as in the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from struct import Struct
from typing import Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.value_type import ValueType
from numpy.typing import NDArray

from almanac.errors import FeatureError
from features.packed.codec import BYTES, LISTS, NUMBERS, TEXTS, Layout, Packed, packing

PLAIN = frozenset({"FLOAT", "DOUBLE", "INT32", "INT64", "BOOL"})
"""Types whose cells are the Python values that Feast shows."""
NULL = "NULL"
"""The type of a column that no row has."""
_NULL_ENTRY = b"\x0a\x00"  # of a repeated Value: a message without anything
_VARINT_BYTES = 10
_FIXED = {
    "FLOAT": (b"\x0a\x05\x35", "<f4"),
    "DOUBLE": (b"\x0a\x09\x29", "<f8"),
    "BOOL": (b"\x0a\x02\x38", "u1"),
}
_PACK = {"FLOAT": Struct("<f").pack, "DOUBLE": Struct("<d").pack, "BOOL": Struct("?").pack}
_WHOLE = {"INT32": 0x18, "INT64": 0x20, "UNIX_TIMESTAMP": 0x40}
_SHORT = {"STRING": 0x12, **dict.fromkeys(BYTES, 0x0A)}
SHAPES_MAX = 1_024
FEW = 8  # cells; for fewer, arrays cost more than they save
_SHORT_BYTES_MAX = 120  # with its own head below 128, so that each length is one byte


def attribute(kind: str) -> str:
    """Field of Feast's Value that holds a value of this type."""
    return "bytes_val" if kind in BYTES else f"{kind.lower()}_val"


@dataclass(slots=True, kw_only=True)
class Cells:
    """One feature of n entities.

    Args:
        kind: name of its value type.
        values: numbers as Python's; bytes of what is in the tail of a packed value; None where there is none.
        nulls: places of the Nones.
    """

    kind: str
    values: list[Any]
    nulls: Sequence[int] = ()

    @classmethod
    def of(cls, parts: Sequence[Packed], names: Sequence[str], rows: int) -> list[Cells]:
        """The columns of some features, in their order.

        Args:
            parts: as `parse` read them.
            rows: how many entities were asked for.
        """
        if len(parts) == 1 and parts[0].where is None:
            return _of_one(parts[0], names)
        blank = cls(kind=NULL, values=[None] * rows, nulls=range(rows))
        found = dict.fromkeys(names, blank)
        for part in parts:
            places = range(rows) if part.where is None else part.where.tolist()
            for name, cells in zip(names, _of_one(part, names), strict=True):
                found[name] = found[name]._over(cells, places, name)
        return [found[name] for name in names]

    def without(self, places: Sequence[int]) -> Cells:
        """The same with these places None."""
        values = self.values.copy()
        for at in places:
            values[at] = None
        return replace(self, values=values, nulls=sorted({*self.nulls, *places}))

    def _over(self, cells: Cells, places: Sequence[int], name: str) -> Cells:
        """These cells with those of a part at their places."""
        if cells.kind == NULL:
            return self
        if self.kind not in (NULL, cells.kind):
            raise FeatureError(
                f"rows of one answer have feature {name} as {self.kind.lower()} and as {cells.kind.lower()}, for the "
                "view's type was changed: materialize the view again"
            )
        values = self.values.copy()
        for at, value in zip(places, cells.values, strict=True):
            values[at] = value
        return Cells(kind=cells.kind, values=values, nulls=[at for at, value in enumerate(values) if value is None])


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Where some features lie in the values of a layout.

    Args:
        kinds: value type of each feature; NULL of one that the layout has not.
        groups: place of each feature among those of its type; -1 in the tail or nowhere.
        tail: those of them that have no fixed width.
        bits: place of each feature's bit; -1 nowhere.
        full: the bits of a row without nulls.
        plain: whether all are numbers as Feast shows them.
    """

    kinds: tuple[str, ...]
    groups: tuple[int, ...]
    tail: tuple[str, ...]
    bits: tuple[int, ...]
    full: bytes
    plain: bool


@lru_cache(maxsize=SHAPES_MAX)
def _shape(layout: Layout, names: tuple[str, ...]) -> _Shape:
    packed = packing(layout)
    types = {column.name: column.type for column in layout.columns}
    kinds = tuple(types.get(name, NULL) for name in names)
    groups = [packed.groups.get(kind, ()) for kind in kinds]
    return _Shape(
        kinds=kinds,
        groups=tuple(held.index(name) if name in held else -1 for name, held in zip(names, groups, strict=True)),
        tail=tuple(name for name in names if name in packed.tail),
        bits=tuple(packed.places.get(name, -1) for name in names),
        full=np.packbits(np.ones(len(types), dtype=np.uint8), bitorder="little").tobytes(),
        plain=all(kind in PLAIN for kind in kinds),
    )


def plain_columns(part: Packed, names: tuple[str, ...]) -> list[list[Any]] | None:
    """The columns of features that are numbers as Feast shows them; None where one of them is not."""
    shape = _shape(part.layout, names)
    if not shape.plain:
        return None
    columns = _numbers(part, shape)
    for at, places in _nulls(part, shape).items():
        for place in places:
            columns[at][place] = None
    return columns


def _numbers(part: Packed, shape: _Shape) -> list[list[Any]]:
    """Each feature of fixed width; nothing for others."""
    blocks = {kind: part.records[kind].T.tolist() for kind in set(shape.kinds) & NUMBERS.keys()}
    return [blocks[kind][at] if at >= 0 else [] for kind, at in zip(shape.kinds, shape.groups, strict=True)]


def _of_one(part: Packed, names: Sequence[str]) -> list[Cells]:
    shape = _shape(part.layout, tuple(names))
    columns = _numbers(part, shape)
    if shape.tail:
        held = _tail(part, shape.tail)
        columns = [held.get(name, column) for name, column in zip(names, columns, strict=True)]
    rows = len(part.records)
    found = [Cells(kind=kind, values=values) for kind, values in zip(shape.kinds, columns, strict=True)]
    for at, kind in enumerate(shape.kinds):
        if kind == NULL:
            found[at] = Cells(kind=NULL, values=[None] * rows, nulls=range(rows))
    for at, places in _nulls(part, shape).items():
        found[at].nulls = places
        for place in places:
            found[at].values[place] = None
    return found


def _nulls(part: Packed, shape: _Shape) -> dict[int, list[int]]:
    """Places without a value, of the features that have some; an absent row has none of its values."""
    bits = part.records["valid"]
    if bits.tobytes() == shape.full * len(bits):
        return {}
    found = {}
    for at, bit in enumerate(shape.bits):
        if bit >= 0:
            missing = np.flatnonzero((bits[:, bit // 8] & (1 << bit % 8)) == 0)
            if len(missing):
                found[at] = missing.tolist()
    return found


def _tail(part: Packed, names: Sequence[str]) -> dict[str, list[Any]]:
    """The bytes of each cell of columns without a fixed width."""
    packed = packing(part.layout)
    width = part.records.dtype.itemsize
    lengths = part.records["lengths"]
    ends = width + np.cumsum(lengths, axis=1, dtype=np.int64)
    starts = ends - lengths
    found = {}
    for name in names:
        at = packed.tail.index(name)
        bounds = zip(part.values, starts[:, at].tolist(), ends[:, at].tolist(), strict=True)
        found[name] = [None if value is None else value[start:end] for value, start, end in bounds]
    return found


def python_values(cells: Cells, hint: ValueType | None) -> list[Any]:
    """What Feast's `to_dict` shows.

    Args:
        hint: the type that the feature view declares, which decides what text is a UUID.
    """
    if cells.kind in PLAIN or cells.kind == NULL:
        return cells.values
    if cells.kind in BYTES or (cells.kind == "STRING" and (hint is None or hint is ValueType.STRING)):
        if cells.kind in BYTES:
            return cells.values
        return [None if value is None else value.decode() for value in cells.values]
    made = (message(cells.kind, value) for value in cells.values)
    return [feast_value_type_to_python_type(value, hint) for value in made]


def message(kind: str, value: Any) -> Value:
    """One cell as Feast's message; an empty one for None."""
    if value is None:
        return Value()
    if kind in NUMBERS or kind in BYTES:
        return Value(**{attribute(kind): value})
    if kind in TEXTS:
        return Value(**{attribute(kind): value.decode()})
    if kind in LISTS:
        made = Value()
        held = getattr(made, attribute(kind))
        held.SetInParent()
        held.val.extend(np.frombuffer(value, dtype=LISTS[kind]).tolist())
        return made
    found: Value = Value.FromString(value)
    return found


def messages(cells: Cells) -> list[Value]:
    """Each cell as Feast's message."""
    name = attribute(cells.kind)
    if cells.kind in NUMBERS or cells.kind in BYTES:
        return [Value() if value is None else Value(**{name: value}) for value in cells.values]
    return [message(cells.kind, value) for value in cells.values]


def entries(cells: Cells) -> bytes:
    """The bytes of a repeated Value at field 1, one entry for each cell."""
    write: Callable[[Cells], list[bytes]]
    if cells.kind in _FIXED:
        write = _fixed
    elif cells.kind in _WHOLE:
        write = _whole
    elif cells.kind in _SHORT:
        write = _short
    else:
        write = _any
    return b"".join(write(cells))


def _filled(cells: Cells) -> list[Any]:
    return [0 if value is None else value for value in cells.values] if cells.nulls else cells.values


def _with_nulls(cells: Cells, made: NDArray[Any]) -> list[bytes]:
    found: list[bytes] = made.view(f"V{made.dtype.itemsize}").tolist()
    for at in cells.nulls:
        found[at] = _NULL_ENTRY
    return found


def _fixed(cells: Cells) -> list[bytes]:
    head, code = _FIXED[cells.kind]
    if len(cells.values) <= FEW:
        pack = _PACK[cells.kind]
        return [_NULL_ENTRY if value is None else head + pack(value) for value in cells.values]
    made = np.empty(len(cells.values), dtype=[("head", "S3"), ("value", code)])
    made["head"] = head
    with np.errstate(over="ignore"):
        made["value"] = _filled(cells)
    return _with_nulls(cells, made)


def _whole(cells: Cells) -> list[bytes]:
    if len(cells.values) <= FEW:
        return _any(cells)
    made = np.empty((len(cells.values), 3 + _VARINT_BYTES), dtype=np.uint8)
    made[:, 0] = 0x0A
    made[:, 1] = 1 + _VARINT_BYTES
    made[:, 2] = _WHOLE[cells.kind]
    numbers = np.array(_filled(cells), dtype=np.int64).view(np.uint64)
    for place in range(_VARINT_BYTES):
        more = 0x80 if place < _VARINT_BYTES - 1 else 0
        made[:, 3 + place] = (numbers >> np.uint64(7 * place)).astype(np.uint8) & 0x7F | more
    return _with_nulls(cells, np.ascontiguousarray(made).view(f"V{3 + _VARINT_BYTES}").reshape(-1))


def _short(cells: Cells) -> list[bytes]:
    tag = _SHORT[cells.kind]
    found = []
    for value in cells.values:
        if value is None:
            found.append(_NULL_ENTRY)
        elif len(value) <= _SHORT_BYTES_MAX:
            found.append(bytes((0x0A, len(value) + 2, tag, len(value))) + value)
        else:
            found.append(_entry(message(cells.kind, value)))
    return found


def _any(cells: Cells) -> list[bytes]:
    return [_entry(message(cells.kind, value)) for value in cells.values]


def _entry(value: Value) -> bytes:
    content: bytes = value.SerializeToString()
    return b"\x0a" + varint(len(content)) + content


_BYTES = [bytes([number]) for number in range(128)]


def varint(number: int) -> bytes:
    """A number of 64 bits at most as protobuf writes it."""
    if 0 <= number < len(_BYTES):
        return _BYTES[number]
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
