"""Sizes of records: how many bytes a record has for a broker, and how many a topic takes. Pure, no I/O.

A broker compares a topic's `max.message.bytes` with a whole batch as it is stored: the batch's own header, and of each
record key, value, and the names and contents of its headers in bytes, each behind its length.
"""

from __future__ import annotations

from collections.abc import Iterable

from streaming.events import EVENT_BYTES_MAX

RECORD_BYTES_MAX = 4 * EVENT_BYTES_MAX
"""Size of a record that a topic takes, in bytes, its batch included; the dead letters' takes twice as much."""
LETTER_BYTES_MAX = 2 * RECORD_BYTES_MAX
"""Size of a dead letter, in bytes, its batch included."""
_BATCH_BYTES = 61
"""Header of a batch, magic 2, with offset and length."""
_RECORD_BYTES = 11
"""Around a record, at most: attributes, and its place and time in the batch."""

Header = tuple[str, bytes | None]


def record_bytes(key: bytes | None, value: bytes | None, headers: Iterable[Header] = ()) -> int:
    """Size of a record that is alone in its batch, in bytes, as the topic's limit counts it; never too small."""
    own = list(headers)
    inner = _RECORD_BYTES + _field(key) + _field(value) + _varint_bytes(len(own)) + headers_bytes(own)
    return _BATCH_BYTES + _varint_bytes(inner) + inner


def headers_bytes(headers: Iterable[Header]) -> int:
    """Size of headers in a record, in bytes: names count as UTF-8, and each has two lengths."""
    return sum(_field(name.encode("utf-8", "surrogatepass")) + _field(content) for name, content in headers)


def _field(content: bytes | None) -> int:
    return 1 if content is None else _varint_bytes(len(content)) + len(content)


def _varint_bytes(number: int) -> int:
    """Bytes of a length as a record has it: zigzag, seven bits a byte."""
    return max(1, -(-(2 * number).bit_length() // 7))
