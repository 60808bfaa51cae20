"""What a Parquet footer must hold before pyarrow is asked about its columns.

pyarrow asks Arrow for a column's description without a handler for what Arrow throws: a description that Arrow
refuses, by a histogram or statistic of another length, ends the whole process (SIGABRT). So each is looked at first.
"""

from __future__ import annotations

from typing import Any

from features.parquet_pages import Damaged

NESTED_MAX = 16
"""How deep structures in a footer may lie; the format has eight."""
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_GROUPS, _COLUMNS, _METADATA, _ENCRYPTED = 4, 1, 3, 8
_TYPE, _STATISTICS, _SIZES = 1, 12, 16
_LIMITS = (1, 2, 5, 6)
"""The least and greatest value, in the old and the new place."""
_TEXT_SIZE, _REPETITIONS, _DEFINITIONS = 1, 2, 3


def check_footer(data: bytes, schema: Any) -> None:
    """Refuse a footer of which a column's description would end the process.

    Args:
        data: the footer, without its length and sign.
        schema: pyarrow's, made of it.

    Raises:
        Damaged: says of which row group and column.
    """
    columns = [schema.column(at) for at in range(len(schema))]
    fields, _ = _structure(data, 0, 0)
    for number, group in enumerate(_structures(fields.get(_GROUPS))):
        chunks = _structures(group.get(_COLUMNS))
        if len(chunks) != len(columns):
            raise Damaged(f"row group {number} has {len(chunks):,} columns, the schema {len(columns):,}")
        for column, chunk in zip(columns, chunks, strict=True):
            if why := _wrong(column, chunk):
                raise Damaged(f"column {column.path}, row group {number}: {why}")


def _wrong(column: Any, chunk: dict[int, Any]) -> str | None:
    """What is wrong with the description of a column; None if nothing is."""
    kind, described = column.physical_type, chunk.get(_METADATA)
    if _ENCRYPTED in chunk:
        return "it is encrypted"
    if not isinstance(described, dict):
        return "it is not described"
    place = described.get(_TYPE)
    if not isinstance(place, int) or not 0 <= place < len(_TYPES) or _TYPES[place] != kind:
        return f"its type is {place!r:.20}, and {kind} in the schema"
    statistics = described.get(_STATISTICS)
    width = column.length if kind == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS.get(kind, 0)
    for size in [statistics.get(field) for field in _LIMITS] if isinstance(statistics, dict) else []:
        if isinstance(size, int) and size < width:
            return f"its least or greatest value has {size} bytes, not {width}"
    sizes = described.get(_SIZES)
    if isinstance(sizes, dict):
        if _TEXT_SIZE in sizes and kind != "BYTE_ARRAY":
            return f"it says a size of texts, and is {kind}"
        levels = {_REPETITIONS: column.max_repetition_level, _DEFINITIONS: column.max_definition_level}
        for field, most in levels.items():
            counts = sizes.get(field)
            if isinstance(counts, list) and len(counts) not in (0, most + 1):
                return f"it counts {len(counts):,} levels, not {most + 1}"
    return None


def _structures(value: Any) -> list[dict[int, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _structure(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """A structure by field, and where it ends: numbers, lists and structures; of a text its size alone."""
    if depth > NESTED_MAX:
        raise Damaged(f"its footer is nested more than {NESTED_MAX} deep")
    fields: dict[int, Any] = {}
    field = 0
    while True:
        head, at = _byte(data, at)
        kind = head & 15
        if kind == _STOP:
            return fields, at
        if head >> 4:
            field += head >> 4
        else:
            field, at = _number(data, at)
        if field in fields:
            raise Damaged(f"its footer has field {field} twice")
        if kind in (_TRUE, _FALSE):
            fields[field] = None
        else:
            fields[field], at = _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        return _number(data, at)
    if kind == _BINARY:
        size, at = _varint(data, at)
        if size > len(data) - at:
            raise Damaged("its footer ends within a text")
        return size, at + size
    if kind == _STRUCT:
        return _structure(data, at, depth + 1)
    if kind in (_LIST, _SET):
        return _many(data, at, depth)
    if kind in (_TRUE, _FALSE, _BYTE):  # booleans take a byte within lists
        return None, _byte(data, at)[1]
    if kind == _DOUBLE:
        return None, at + 8
    raise Damaged(f"its footer has a value of type {kind}, which there is not")


def _many(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    if depth >= NESTED_MAX:
        raise Damaged(f"its footer is nested more than {NESTED_MAX} deep")
    head, at = _byte(data, at)
    count = head >> 4
    if count == 15:
        count, at = _varint(data, at)
    found = []
    for _ in range(count):  # each takes a byte at least, so the data ends it
        one, at = _value(data, at, head & 15, depth + 1)
        found.append(one)
    return found, at


def _number(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        byte, at = _byte(data, at)
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise Damaged("its footer has a number of more than 64 bits")


def _byte(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise Damaged("its footer ends within a value")
    return data[at], at + 1
