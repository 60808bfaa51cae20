"""Record batches made byte by byte: what a client of Kafka may send, though no library would.

Such as header names that are not UTF-8, or a batch that unpacks to a thousand times its size.
"""

from __future__ import annotations

import gzip
import socket
import struct
from collections.abc import Sequence

import pyarrow as pa

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""A batch's compression, as its attributes say it."""
MESSAGE_TOO_LARGE = 10
ANSWER_SECONDS_MAX = 60.0
_PRODUCE, _VERSION = 0, 7

Header = tuple[bytes, bytes | None]


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_CRC32C = _crc_table()


def crc32c(data: bytes) -> int:
    """The checksum of a batch."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def varint(number: int) -> bytes:
    """A signed number, zigzag, seven bits a byte."""
    rest, found = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*found, rest])


def _sized(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


def record(value: bytes | None, key: bytes | None = None, headers: Sequence[Header] = (), at: int = 0) -> bytes:
    """One record.

    Args:
        at: its place in the batch.
    """
    own = varint(len(headers)) + b"".join(_sized(name) + _sized(content) for name, content in headers)
    body = b"\0" + varint(0) + varint(at) + _sized(key) + _sized(value) + own
    return varint(len(body)) + body


def batch(records: bytes, count: int, codec: str = "none", millis: int = 0, packed: bytes | None = None) -> bytes:
    """A batch of records that stand one behind the other.

    Args:
        records: as `record` made them, one behind the other; compressed here.
        millis: their time, since 1970.
        packed: the records compressed; default: made here.
    """
    packed = compressed(records, codec) if packed is None else packed
    body = struct.pack(">hiqqqhii", CODECS[codec], count - 1, millis, millis, -1, -1, -1, count) + packed
    after = struct.pack(">ibI", -1, 2, crc32c(body)) + body
    return struct.pack(">qi", 0, len(after)) + after


def compressed(data: bytes, codec: str) -> bytes:
    """Bytes as a batch of that compression has them."""
    if codec == "none":
        return data
    return gzip.compress(data, 9) if codec == "gzip" else bytes(pa.compress(data, codec, asbytes=True))


def produce(bootstrap: str, topic: str, partition: int, records: bytes) -> int:
    """Send a batch to a broker that leads the partition; returns the broker's error code, 0 for none."""

    def text(of: str) -> bytes:
        return struct.pack(">h", len(of)) + of.encode()

    head = struct.pack(">hhi", _PRODUCE, _VERSION, 1) + text("tests")
    body = struct.pack(">hhii", -1, -1, 30_000, 1) + text(topic) + struct.pack(">iii", 1, partition, len(records))
    request = head + body + records
    host, port = bootstrap.rsplit(":", 1)
    with socket.create_connection((host, int(port)), ANSWER_SECONDS_MAX) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            (size,) = struct.unpack(">i", answer.read(4))
            found = answer.read(size)
    at = 4 + 4 + 2 + len(topic.encode()) + 4 + 4
    return int(struct.unpack(">h", found[at : at + 2])[0])
