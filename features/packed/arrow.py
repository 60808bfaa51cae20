"""Packed values from Arrow tables and back: whole columns at a time, no loop over cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from almanac.errors import FeatureError
from features import declared_types
from features.declared_types import Misfit, declared, declared_type
from features.packed.codec import (
    LISTS,
    NUMBERS,
    TEXTS,
    VALUE_BYTES_MAX,
    Bits,
    Cells,
    Column,
    Layout,
    Micros,
    Packed,
    as_bytes,
    damaged,
    packing,
    records,
)
from features.packed.lists import TEXT_LIST, entry_head, list_head

NUMBER_TYPES = declared_types.NUMBER_TYPES | {"UNIX_TIMESTAMP": pa.timestamp("s", tz="UTC")}


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a Feast value type; `binary` (Feast's Value, serialized) for those that have none here."""
    if kind in NUMBER_TYPES:
        return NUMBER_TYPES[kind]
    if kind in TEXTS:
        return pa.string()
    if kind in LISTS:
        return pa.list_(NUMBER_TYPES[kind.removesuffix("_LIST")])
    return pa.binary()


def schema_of(layout: Layout) -> pa.Schema:
    """The columns that `encode` takes and `decode` gives."""
    return pa.schema([(column.name, arrow_type(column.type)) for column in layout.columns])


def encode(layout: Layout, table: pa.Table, times: Micros, created: Micros | None = None) -> list[bytes]:
    """Pack rows.

    Args:
        table: the layout's columns (others are left), of `schema_of(layout)` or of types that can be cast to it.
        times: event times in whole microseconds since 1970, one for each row.
        created: when each row was, alike; 0 or None where that is not known.

    Returns:
        The value of each row.

    Raises:
        FeatureError: a column is absent, or holds what its type cannot; says which. Nothing is packed then.
    """
    columns = {column.name: _cast(layout, column, table) for column in layout.columns}
    numbers, tail = {}, []
    for column in layout.columns:
        array = columns[column.name]
        if column.type in NUMBERS:
            numbers[column.name] = _cells(array, column.type)
        else:
            tail.append(_as_binary(layout, column, array))
    valid = {name: _valid(columns[name]) for name in packing(layout).tail if columns[name].null_count}
    made = records(layout, times, numbers, valid, created)
    if not tail:
        return as_bytes(made)
    data, offsets = _interleaved(tail)
    made["lengths"] = np.diff(offsets).reshape(len(times), len(tail))
    ends = offsets[:: len(tail)].tolist()
    values = [head + data[a:b] for head, a, b in zip(as_bytes(made), ends, ends[1:], strict=False)]
    if values and max(map(len, values)) > VALUE_BYTES_MAX:
        raise FeatureError(
            f"a row of view {layout.view} is larger than {VALUE_BYTES_MAX} bytes: keep such data elsewhere"
        )
    return values


def decode(layout: Layout, found: Sequence[Packed], n: int) -> pa.Table:
    """The columns of n rows that `parse` has read, of `schema_of(layout)`; null where a cell or its row is absent.

    What was packed in another layout is taken by name; where its type cannot be brought to this layout's, it is null.

    Raises:
        FeatureError: a text is not UTF-8.
    """
    columns = {}
    for column in layout.columns:
        wanted = arrow_type(column.type)
        parts = [_column(part, column, wanted) for part in found]
        if len(found) == 1 and found[0].where is None:
            columns[column.name] = parts[0]
            continue
        order = np.full(n, -1, dtype=np.int64)
        places = [part.where for part in found if part.where is not None]
        if places:
            order[np.concatenate(places)] = np.arange(sum(map(len, parts)))
        every = pa.concat_arrays(parts) if parts else pa.nulls(0, wanted)
        columns[column.name] = every.take(pa.array(order, mask=order < 0))
    return pa.table(columns, schema=schema_of(layout))


def micros(column: pa.ChunkedArray | pa.Array, view: str) -> Micros:
    """Event times of an Arrow column as microseconds since 1970.

    Raises:
        FeatureError: it has nulls, no time zone, or is no column of moments.
    """
    remedy = "write them as timestamps in microseconds with the time zone UTC"
    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        raise FeatureError(f"event times of view {view} are {column.type}: {remedy}")
    if column.null_count:
        raise FeatureError(f"{column.null_count} rows of view {view} have no event time: {remedy}")
    found = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64())
    whole = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    return np.asarray(whole.to_numpy(zero_copy_only=False))


def _cast(layout: Layout, column: Column, table: pa.Table) -> pa.Array:
    if column.name not in table.column_names:
        raise FeatureError(
            f"rows of view {layout.view} lack its feature {column.name}: add the column, or apply the view"
        )
    given = table.column(column.name).combine_chunks()
    wanted = arrow_type(column.type)
    if pa.types.is_binary(given.type) and declared_type(column.type) != pa.binary() and wanted == pa.binary():
        return given  # Feast's Value, serialized
    try:
        if declared_type(column.type) is None and not pa.types.is_null(given.type):
            raise Misfit(str(given.type), "write it through Feast, which makes its own values of it")
        fitting = pa.nulls(len(given), wanted) if pa.types.is_null(given.type) else declared(given, column.type)
    except Misfit as misfit:
        where = "" if misfit.row is None else f" in row {misfit.row + 1:,}"
        raise FeatureError(
            f"feature {column.name} of view {layout.view} {misfit.says}{where}, which is no "
            f"{column.type.lower()}: {misfit.remedy}"
        ) from None
    if column.type == TEXT_LIST and pa.types.is_list(fitting.type):
        return _text_lists(fitting)
    if fitting.type != wanted and wanted == pa.binary():
        raise FeatureError(
            f"feature {column.name} of view {layout.view} is {given.type}, which is no {column.type.lower()}: "
            "write it through Feast, which makes its own values of it"
        )
    return fitting if fitting.type == wanted else fitting.cast(wanted)


def _text_lists(given: pa.Array) -> pa.Array:
    """Lists of texts as Feast's Value, serialized; a null stays one."""
    plain = given.flatten().cast(pa.binary())
    headed = pc.binary_join_element_wise(_heads(plain, entry_head), plain, b"")
    lengths = pc.fill_null(pc.list_value_length(given), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    inside = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), headed), b"")
    whole = pc.binary_join_element_wise(_heads(inside, list_head), inside, b"")
    return pc.if_else(given.is_valid(), whole, pa.scalar(None, pa.binary())) if given.null_count else whole


def _heads(cells: pa.Array, head: Callable[[int], bytes]) -> pa.Array:
    """What stands before each cell, made once for each length."""
    sizes, places = np.unique(pc.binary_length(cells).to_numpy(zero_copy_only=False), return_inverse=True)
    return pa.array([head(size) for size in sizes.tolist()], pa.binary()).take(pa.array(places))


def _valid(array: pa.Array) -> Bits:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False))


def _cells(array: pa.Array, kind: str) -> Cells:
    plain = array.cast(pa.int64()) if kind == "UNIX_TIMESTAMP" else array
    if not plain.null_count:
        return Cells(plain.to_numpy(zero_copy_only=False))
    blank = pa.scalar(False if kind == "BOOL" else 0, plain.type)
    return Cells(plain.fill_null(blank).to_numpy(zero_copy_only=False), _valid(array))


def _as_binary(layout: Layout, column: Column, array: pa.Array) -> pa.Array:
    """The bytes of each cell of a column of the tail; none for a null."""
    if column.type not in LISTS:
        return array.cast(pa.binary()).cast(pa.large_binary()).fill_null(b"")
    filled = array.fill_null(pa.scalar([], array.type)) if array.null_count else array
    elements = filled.flatten()
    if elements.null_count:
        raise FeatureError(
            f"feature {column.name} of view {layout.view} has lists with nulls in them: give a value at each place"
        )
    cells = _cells(elements, column.type.removesuffix("_LIST")).values
    data = np.ascontiguousarray(cells, dtype=LISTS[column.type])
    offsets = np.zeros(len(filled) + 1, dtype=np.int64)
    np.cumsum(pc.list_value_length(filled).to_numpy(zero_copy_only=False), out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets * data.itemsize), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(filled), buffers)


def _interleaved(columns: Sequence[pa.Array]) -> tuple[bytes, NDArray[np.int64]]:
    """The bytes of all cells row by row, and where each cell begins."""
    n, k = len(columns[0]), len(columns)
    order = (np.arange(n)[:, None] + np.arange(k) * n).ravel()
    return _bytes_of(pa.concat_arrays(columns).take(pa.array(order)))


def _bytes_of(array: pa.Array) -> tuple[bytes, NDArray[np.int64]]:
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets, dtype=np.int64, count=len(array) + 1, offset=8 * array.offset)
    inside = b"" if data is None else data.to_pybytes()
    return inside[places[0] : places[-1]], places - places[0]


def _column(part: Packed, column: Column, wanted: pa.DataType) -> pa.Array:
    own = next((held for held in part.layout.columns if held.name == column.name), None)
    n = len(part.records)
    if own is None:
        return pa.nulls(n, wanted)
    valid = part.valid(own.name)
    if part.where is None:
        valid = part.present if valid is None else valid & part.present
    array = _numbers(part, own, valid) if own.type in NUMBERS else _tail(part, own, valid)
    if array.type == wanted:
        return array
    try:
        return array.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(n, wanted)


def _numbers(part: Packed, own: Column, valid: Bits | None) -> pa.Array:
    held = packing(part.layout).groups[own.type]
    values = np.ascontiguousarray(part.records[own.type][:, held.index(own.name)])
    return pa.array(values, mask=None if valid is None else ~valid).cast(NUMBER_TYPES[own.type])


def _tail(part: Packed, own: Column, valid: Bits | None) -> pa.Array:
    packed = packing(part.layout)
    width, k, n = part.records.dtype.itemsize, len(packed.tail), len(part.records)
    offsets = np.zeros(n * k + 1, dtype=np.int64)
    np.cumsum(part.records["lengths"].ravel(), out=offsets[1:])
    data = b"".join([value[width:] for value in part.values if value is not None])
    every = pa.Array.from_buffers(pa.large_binary(), n * k, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    at = packed.tail.index(own.name)
    cells = every if k == 1 else every.take(pa.array(np.arange(at, n * k, k)))
    if own.type in LISTS:
        return _lists(cells, own, valid, part.layout.view)
    if valid is not None:
        cells = pc.if_else(pa.array(valid), cells, pa.scalar(None, cells.type))
    try:
        return cells.cast(pa.binary()).cast(arrow_type(own.type))
    except pa.ArrowInvalid:
        raise damaged(part.layout.view) from None


def _lists(cells: pa.Array, own: Column, valid: Bits | None, view: str) -> pa.Array:
    data, offsets = _bytes_of(cells)
    code = np.dtype(LISTS[own.type])
    if (offsets % code.itemsize).any():
        raise damaged(view)
    kind = NUMBER_TYPES[own.type.removesuffix("_LIST")]
    elements = pa.array(np.frombuffer(data, dtype=code)).cast(kind)
    places = pa.array((offsets // code.itemsize).astype(np.int32))
    return pa.ListArray.from_arrays(places, elements, mask=None if valid is None else pa.array(~valid))
