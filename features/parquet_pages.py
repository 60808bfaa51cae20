"""What the pages of a Parquet file say of themselves: their own headers decide what a reader unpacks, not the footer.

A header is a Thrift structure in the compact protocol. It is read strictly: a field that is twice there, or of
another type, is refused, for two readers could understand it in two ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

HEADER_BYTES_MAX = 16 << 20
"""As Arrow's own limit; statistics of long texts stand in a header."""
PAGES_MAX = 1_000_000
"""Of one column in one row group."""
NESTED_MAX = 8
"""How deep structures in a header may lie; the format has three."""
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
_HEADERS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
"""Kind of a page -> the field that describes it."""
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)


class Page(NamedTuple):
    """A page as its header has it.

    Attributes:
        kind: `DATA`, `DICTIONARY` or `DATA_V2`; other kinds are passed over by readers.
        unpacked: bytes after decompression.
        values: nulls included.
        encoding: number of the encoding, as the format has it.
    """

    kind: int
    unpacked: int
    values: int
    encoding: int


class Damaged(ValueError):
    """A header cannot be read, or does not fit the column; says why."""


class _Cut(Exception):
    """The bytes end within a header."""


def pages_of(file: Any, start: int, end: int, window: int) -> Iterator[Page]:
    """The pages of a column in a row group.

    Args:
        file: has `read_at` and `size`, as Arrow's files.
        start: of the first page.
        end: behind the last one; both from the footer.
        window: how many bytes to read at once.

    Raises:
        Damaged: see there.
    """
    size = int(file.size())
    if not 4 <= start <= end <= size:
        raise Damaged(f"its pages lie from byte {start:,} to {end:,} of {size:,}")
    buffer, base = b"", start
    for _ in range(PAGES_MAX):
        if start >= end:
            return
        most = window
        while True:
            if not base <= start < base + len(buffer) or most > window:
                buffer, base = file.read_at(min(most, size - start), start), start
            try:
                fields, after = _structure(buffer, start - base, 0)
                break
            except _Cut:
                if start > base and most == window:  # the buffer began before it
                    buffer = b""
                    continue
                if most >= min(HEADER_BYTES_MAX, size - start):
                    raise Damaged(f"the page at byte {start:,} has no whole header") from None
                most *= 8
        page, packed = _page(fields, start)
        yield page
        start = base + after + packed
        if start > size:
            raise Damaged(f"its last page ends after byte {start:,} of {size:,}")
    raise Damaged(f"it has more than {PAGES_MAX:,} pages")


def _page(fields: dict[int, Any], start: int) -> tuple[Page, int]:
    """A page, and how many bytes of the file it takes behind its header."""
    kind, unpacked, packed = (_number(fields, field, start) for field in (1, 2, 3))
    if kind not in _HEADERS:
        return Page(kind, 0, 0, 0), packed
    described = fields.get(_HEADERS[kind])
    if not isinstance(described, dict):
        raise Damaged(f"the page at byte {start:,} does not say what it holds")
    encoding = _number(described, 4 if kind == DATA_V2 else 2, start)
    return Page(kind, unpacked, _number(described, 1, start), encoding), packed


def _number(fields: dict[int, Any], field: int, start: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise Damaged(f"the page at byte {start:,} has {value!r:.40} for a size or number")
    return value


def _structure(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The numbers and structures of a structure by field, and where it ends; everything else is passed over."""
    if depth > NESTED_MAX:
        raise Damaged(f"a page's header is nested more than {NESTED_MAX} deep")
    fields: dict[int, Any] = {}
    field = 0
    while True:
        if at >= len(data):
            raise _Cut
        head = data[at]
        at += 1
        kind = head & 15
        if kind == _STOP:
            return fields, at
        if head >> 4:
            field += head >> 4
        else:
            number, at = _varint(data, at)
            field = (number >> 1) ^ -(number & 1)
        if field in fields:
            raise Damaged(f"a page's header has field {field} twice")
        fields[field] = None
        if kind == _I32:
            number, at = _varint(data, at)
            fields[field] = (number >> 1) ^ -(number & 1)
        elif kind == _STRUCT:
            fields[field], at = _structure(data, at, depth + 1)
        elif kind not in (_TRUE, _FALSE):
            at = _past(data, at, kind, depth)


def _past(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where a value ends that nobody needs."""
    if kind in (_BYTE, _TRUE, _FALSE):  # booleans take a byte within lists
        at += 1
    elif kind in (_I16, _I32, _I64):
        at = _varint(data, at)[1]
    elif kind == _DOUBLE:
        at += 8
    elif kind == _BINARY:
        length, at = _varint(data, at)
        at += length
    elif kind == _STRUCT:
        at = _structure(data, at, depth + 1)[1]
    elif kind in (_LIST, _SET, _MAP):
        at = _past_many(data, at, kind, depth)
    else:
        raise Damaged(f"a page's header has a value of type {kind}, which there is not")
    if at > len(data):
        raise _Cut
    return at


def _past_many(data: bytes, at: int, kind: int, depth: int) -> int:
    if depth >= NESTED_MAX:
        raise Damaged(f"a page's header is nested more than {NESTED_MAX} deep")
    if at >= len(data):
        raise _Cut
    if kind == _MAP:
        count, at = _varint(data, at)
        if not count:
            return at
        if at >= len(data):
            raise _Cut
        kinds = [data[at] >> 4, data[at] & 15]
        at += 1
    else:
        count, kinds = data[at] >> 4, [data[at] & 15]
        at += 1
        if count == 15:
            count, at = _varint(data, at)
    for _ in range(count):  # each takes a byte at least, so the data ends it
        for one in kinds:
            at = _past(data, at, one, depth + 1)
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data):
            raise _Cut
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise Damaged("a page's header has a number of more than 64 bits")
