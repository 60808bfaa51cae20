"""A column of any Arrow type as the type that its feature is declared with: the same value, or a refusal. Pure.

Everything that reads or writes features goes through `declared`: batch and training, materialization, pushes, the
archive, Feast's SDK. So an entity has one value of a feature everywhere. What is taken:

    declared         column
    Float32, Float64 numbers, decimals, true (1) and false (0): the nearest one that there is; none becomes infinite
    Int32, Int64     whole numbers within range, whole doubles within 2**53, whole decimals, true and false
    Bool             true and false, 0 and 1
    UnixTimestamp    times of any unit, days, whole seconds since 1970: the second that has begun; no zone means UTC
    String, Uuid, …  text, bytes that are UTF-8, whole numbers, UUIDs
    Bytes, …         bytes, text as UTF-8
    Array, Set       lists without nulls, of what is taken for an element

A null stays null. Any other pair of types is refused by its column, a value that does not fit by its row. Types that
hold anything (Map, Struct, Json lists, lists of lists) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from features.packed.codec import BYTES, NUMBERS, TEXTS

NUMBER_TYPES = {
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "INT64": pa.int64(),
    "UNIX_TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "INT32": pa.int32(),
    "BOOL": pa.bool_(),
}
"""Arrow types of numbers and moments, by Feast's value type."""
WHOLE_DOUBLES_MAX = 2**53
"""Above it a double does not say which whole number is meant."""
SECONDS_MAX = (2**63 - 1) // 1_000_000
"""Seconds before and after 1970 that microseconds can count."""
SHOWN_CHARS_MAX = 40
COLLECTIONS = ("_LIST", "_SET")
AS_THEY_ARE = (NUMBERS.keys() | TEXTS | BYTES) - {"UNIX_TIMESTAMP"}
"""Types whose own Arrow type holds nothing that they cannot: such a column is not looked at."""

Bits = NDArray[np.bool_]


Of = TypeVar("Of", pa.Array, pa.ChunkedArray)


class Misfit(ValueError):
    """A column that is not what its feature is declared as.

    Attributes:
        row: of the first value that does not fit, from 0; None where no value of the column's type can.
        found: what is there, for a message.
        remedy: what to do.
    """

    def __init__(self, found: str, remedy: str, row: int | None = None) -> None:
        super().__init__(f"{found}: {remedy}")
        self.found, self.remedy, self.row = found, remedy, row

    @property
    def says(self) -> str:
        """What the column has, or of which type it is."""
        return f"is {self.found}" if self.row is None else f"has {self.found}"


def declared_type(kind: str) -> pa.DataType | None:
    """The Arrow type that a feature of a Feast value type has everywhere; None of types that hold anything."""
    if kind in NUMBERS:
        return NUMBER_TYPES[kind]
    if kind in TEXTS:
        return pa.string()
    if kind in BYTES:
        return pa.binary()
    element = element_of(kind)
    inside = None if element is None else declared_type(element)
    return None if inside is None else pa.list_(inside)


def nearest(column: Of, wanted: pa.DataType) -> Of:
    """Numbers as the nearest ones of a floating type; infinite where they are beyond it.

    Arrow divides a decimal by its power of ten as doubles, which misses the nearest one in up to half of all cases.
    What it reads of a text is exact.
    """
    exact = column.cast(pa.string()) if types.is_decimal(column.type) else column
    return exact.cast(wanted, safe=False)


def element_of(kind: str) -> str | None:
    """The value type of a collection's elements; None of one that is no collection of plain values."""
    for ending in COLLECTIONS:
        name = kind.removesuffix(ending)
        if name != kind:
            return name if name in NUMBERS or name in TEXTS or name in BYTES else None
    return None


def declared(column: Of, kind: str) -> Of:
    """A column as its feature's declared type; the column itself where it is of that type already.

    Args:
        column: of any type.
        kind: name of Feast's value type.

    Raises:
        Misfit: a value, or the column's type, does not fit; the first such row.
    """
    wanted = declared_type(kind)
    if wanted is None or (column.type == wanted and kind in AS_THEY_ARE):
        return column
    if isinstance(column, pa.Array):
        return _array(column, kind, wanted)
    parts, first = [], 0
    for chunk in column.chunks:
        try:
            parts.append(_array(chunk, kind, wanted))
        except Misfit as misfit:
            row = None if misfit.row is None else first + misfit.row
            raise Misfit(misfit.found, misfit.remedy, row) from None
        first += len(chunk)
    if not parts:
        _array(pa.nulls(0, column.type), kind, wanted)  # refused by its type, though it has no rows
    return pa.chunked_array(parts, wanted)


def _array(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    array = _plain(array, kind)
    if types.is_null(array.type):
        return pa.nulls(len(array), wanted)
    element = element_of(kind)
    if element is not None:
        return _list(array, kind, element, wanted)
    if array.type == wanted and kind in AS_THEY_ARE:
        return array
    make = _MAKERS[_kind_group(kind)].get(_group(array.type))
    if make is None:
        raise Misfit(f"{array.type}", f"write {_wanted(kind)}, or declare the feature as what the column is")
    return make(array, kind, wanted)


def _plain(array: pa.Array, kind: str) -> pa.Array:
    """Without dictionaries, run lengths, views and extensions, whose values are those below them."""
    if isinstance(array, pa.ExtensionArray):
        if array.type.extension_name == "arrow.uuid" and kind in TEXTS:
            return pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if types.is_string_view(array.type):
        return array.cast(pa.string())
    return array.cast(pa.binary()) if types.is_binary_view(array.type) else array


def _group(kind: pa.DataType) -> str:
    """What values of an Arrow type are: one word."""
    for name, test in _GROUPS.items():
        if test(kind):
            return name
    return str(kind)


_GROUPS: dict[str, Callable[[pa.DataType], bool]] = {
    "bool": types.is_boolean,
    "whole": types.is_integer,
    "floating": types.is_floating,
    "decimal": types.is_decimal,
    "moment": lambda kind: types.is_timestamp(kind) or types.is_date(kind),
    "text": lambda kind: types.is_string(kind) or types.is_large_string(kind),
    "bytes": lambda kind: types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind),
}


def _kind_group(kind: str) -> str:
    """What values of a Feast value type are: one word."""
    if kind in TEXTS or kind in BYTES:
        return "text" if kind in TEXTS else "bytes"
    wanted = NUMBER_TYPES[kind]
    return _group(wanted)


def _wanted(kind: str) -> str:
    """What to write for a value type, in words."""
    return {
        "floating": "numbers",
        "whole": "whole numbers",
        "bool": "true and false, or 0 and 1",
        "moment": "times in UTC, or whole seconds since 1970",
        "text": "text",
        "bytes": "bytes",
    }[_kind_group(kind)]


def _need(fits: Bits, array: pa.Array, remedy: str) -> None:
    """Refuse the first value that is none of those that fit.

    Args:
        fits: (n,); whatever of a null.

    Raises:
        Misfit: names the row.
    """
    wrong = ~fits
    if array.null_count:
        wrong &= np.asarray(array.is_valid().to_numpy(zero_copy_only=False))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise Misfit(_shown(array[row]), remedy, row)


def _shown(value: pa.Scalar) -> str:
    try:
        text = ascii(value.as_py()) if not types.is_floating(value.type) else repr(float(value.as_py()))
    except (ValueError, OverflowError):  # a moment beyond what Python counts
        text = str(value.cast(pa.int64()))
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


def _values(array: pa.Array) -> NDArray[Any]:
    """Numbers as NumPy has them; zero for a null."""
    filled = array.fill_null(pa.scalar(0).cast(array.type)) if array.null_count else array
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def _to_floating(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    """The nearest number; a finite one that would become infinite is refused."""
    if types.is_boolean(array.type) or types.is_float16(array.type):
        array = array.cast(pa.float32())  # all of them are floats as they are
    made = nearest(array, wanted)
    if types.is_boolean(array.type) or types.is_integer(array.type) or not len(array):
        return made
    infinite = np.isinf(_values(made))
    if infinite.any():
        finite = ~np.isinf(_values(array)) if types.is_floating(array.type) else np.ones(len(array), bool)
        _need(
            ~(infinite & finite), array, f"write numbers that {kind.lower()} can hold, or declare the feature Float64"
        )
    return made


def _to_whole(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    """Whole numbers within the range of the type; doubles within 2**53 as well."""
    if types.is_boolean(array.type):
        return array.cast(wanted)
    info = np.iinfo(np.int32 if kind == "INT32" else np.int64)
    least, greatest = int(info.min), int(info.max)
    if types.is_decimal(array.type):
        return _whole_decimals(array, kind, wanted)
    if types.is_floating(array.type):
        least, greatest = max(least, -WHOLE_DOUBLES_MAX), min(greatest, WHOLE_DOUBLES_MAX)
    remedy = f"write whole numbers from {least:,} to {greatest:,}, or declare the feature Float64"
    values = _values(array)
    if types.is_floating(array.type):
        with np.errstate(invalid="ignore"):
            numbers = values.astype(np.float64)
            _need((np.floor(numbers) == numbers) & (numbers >= least) & (numbers <= greatest), array, remedy)
            made = np.where(np.isfinite(numbers), numbers, 0).astype(np.int64)
        mask = np.asarray(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else None
        return pa.array(made, mask=mask).cast(wanted)
    _need(_within(values, least, greatest), array, remedy)
    return array.cast(wanted)


def _within(values: NDArray[Any], least: int, greatest: int) -> Bits:
    """Which whole numbers lie within limits, ends included; limits may be beyond what their type holds."""
    held = np.iinfo(values.dtype)
    fits = np.ones(len(values), bool)
    if held.min < least:
        fits &= values >= values.dtype.type(least)
    if held.max > greatest:
        fits &= values <= values.dtype.type(greatest)
    return fits


def _whole_decimals(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    """One by one where the whole column does not fit, to name the row."""
    try:
        return array.cast(wanted)
    except pa.ArrowInvalid:
        fits = [_casts(value, wanted) for value in array]
    _need(np.array(fits, bool), array, f"write whole numbers that {kind.lower()} can hold, or declare Float64")
    return array.cast(wanted)


def _casts(value: pa.Scalar, wanted: pa.DataType) -> bool:
    try:
        value.cast(wanted)
    except pa.ArrowInvalid:
        return False
    return True


def _to_bool(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    values = _values(array)
    _need((values == 0) | (values == 1), array, "write true and false, or 0 and 1")
    made = values == 1
    mask = np.asarray(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else None
    return pa.array(made, pa.bool_(), mask=mask)


def _to_moment(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    """The second that has begun; whole numbers are seconds since 1970."""
    if types.is_date(array.type):
        array = array.cast(pa.timestamp("s") if types.is_date32(array.type) else pa.timestamp("ms"))
    per_second = 1
    counted = array
    if types.is_timestamp(array.type):
        per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[array.type.unit]
        counted = array.cast(pa.timestamp(array.type.unit)).cast(pa.int64())
    counts = _values(counted)
    least, greatest = -SECONDS_MAX * per_second, (SECONDS_MAX + 1) * per_second - 1
    _need(_within(counts, least, greatest), array, "write times that microseconds since 1970 can count")
    counts = counts.astype(np.int64)
    if array.type == wanted and not (counts % per_second).any():
        return array
    mask = np.asarray(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else None
    return pa.array(counts // per_second * 1_000_000, pa.int64(), mask=mask).cast(wanted)


def _to_text(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    try:
        return array.cast(wanted)
    except pa.ArrowInvalid:  # bytes that are no text
        fits = [_casts(value, wanted) for value in array]
    _need(np.array(fits, bool), array, "write text in UTF-8")
    return array.cast(wanted)


def _to_bytes(array: pa.Array, kind: str, wanted: pa.DataType) -> pa.Array:
    return array.cast(wanted)


_MAKERS: dict[str, dict[str, Callable[[pa.Array, str, pa.DataType], pa.Array]]] = {
    "floating": dict.fromkeys(("bool", "whole", "floating", "decimal"), _to_floating),
    "whole": dict.fromkeys(("bool", "whole", "floating", "decimal"), _to_whole),
    "bool": dict.fromkeys(("whole", "floating"), _to_bool),
    "moment": dict.fromkeys(("moment", "whole"), _to_moment),
    "text": dict.fromkeys(("text", "bytes", "whole"), _to_text),
    "bytes": dict.fromkeys(("text", "bytes"), _to_bytes),
}
"""For each kind of declared type, what makes it of each kind of column."""


def _list(array: pa.Array, kind: str, element: str, wanted: pa.DataType) -> pa.Array:
    """Lists whose elements are as declared."""
    if types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    elif types.is_list_view(array.type) or types.is_large_list_view(array.type):
        array = pa.array(array.to_pylist(), pa.list_(array.type.value_type))
    if not (types.is_list(array.type) or types.is_large_list(array.type)):
        raise Misfit(
            f"{array.type}", f"write lists of {_wanted(element)}, or declare the feature as what the column is"
        )
    inside = array.flatten()
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    first = len(inside)
    if inside.null_count:
        first = int(np.argmax(np.asarray(inside.is_null().to_numpy(zero_copy_only=False))))
    elif array.type == wanted and element in AS_THEY_ARE:
        return array
    try:
        made = declared(inside, element)
    except Misfit as misfit:
        if misfit.row is None:
            raise Misfit(str(array.type), misfit.remedy) from None
        if misfit.row < first:
            row = int(np.searchsorted(ends, misfit.row, "right"))
            raise Misfit(f"a list with {misfit.found} in it", misfit.remedy, row) from None
    if first < len(inside):
        raise Misfit(
            "lists with nulls in them", "give a value at each place", int(np.searchsorted(ends, first, "right"))
        )
    offsets = np.concatenate([np.zeros(1, np.int64), ends]).astype(np.int32)
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), made, type=wanted, mask=mask)
