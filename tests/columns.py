"""A column of each Arrow type that a Parquet file can bring, with values that are easily got wrong."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa


def whole(kind: pa.DataType) -> list[Any]:
    info = np.iinfo(kind.to_pandas_dtype())
    wanted = [0, 1, 2, -1, 2**24 + 1, -(2**31), 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**62 + 2**37 + 1]
    wanted += [int(info.min), int(info.max)]
    return [number for number in wanted if info.min <= number <= info.max]


FLOATS = [0.0, -0.0, 1.0, 15.0, 15.9, 0.1, -1.5, 2.0**31, 2.0**53, 2.0**53 + 2, 1e39, math.nan, math.inf, -math.inf]
MOMENTS = [0, 1, -1, 1_700_000_000, 1_700_000_000_123, -1_700_000_000_999, 2**62]


def columns() -> Iterator[pa.Array]:
    """A column of each Arrow type, with values that are easily got wrong; None is among them."""
    for width in (8, 16, 32, 64):
        for kind in (getattr(pa, f"int{width}")(), getattr(pa, f"uint{width}")()):
            yield pa.array([*whole(kind), None], kind)
    yield pa.array([*map(np.float16, (0.0, 1.0, 1.5, math.nan, math.inf)), None], pa.float16())
    with np.errstate(over="ignore"):
        yield pa.array([*np.array(FLOATS).astype(np.float32).tolist(), None], pa.float32())
    yield pa.array([*FLOATS, None], pa.float64())
    yield pa.array([True, False, None])
    yield pa.array([Decimal("1"), Decimal("1.5"), Decimal("-3"), None], pa.decimal128(20, 2))
    yield pa.array([Decimal(10) ** 30, Decimal("7"), None], pa.decimal256(50, 1))
    for text in (pa.string(), pa.large_string(), pa.string_view()):
        yield pa.array(["12", "", "ü", None], text)
    for raw in (pa.binary(), pa.large_binary(), pa.binary_view()):
        yield pa.array([b"12", b"", b"\xff", None], raw)
    yield pa.array([b"ab", b"\xff\xfe", None], pa.binary(2))
    yield pa.array([date(2026, 1, 1), date(1960, 2, 29), None], pa.date32())
    yield pa.array([date(2026, 1, 1), None], pa.date64())
    for unit, zone in (("s", "UTC"), ("s", None), ("ms", "Asia/Tokyo"), ("us", "UTC"), ("us", None), ("ns", "UTC")):
        yield pa.array([*MOMENTS, None], pa.int64()).cast(pa.timestamp(unit, zone))
    yield pa.array([1, None], pa.duration("us"))
    yield pa.array([1, None], pa.time32("s"))
    yield pa.array([1, None], pa.time64("ns"))
    yield pa.array([15.9, 3.0, None, 3.0]).dictionary_encode()
    yield pa.array(["a", None, "b"]).dictionary_encode()
    for kind in (pa.list_(pa.float64()), pa.large_list(pa.float64()), pa.list_(pa.float64(), 2)):
        yield pa.array([[1.0, 2.0], [1.0, 1.5], None, [1e39, 0.1], [1.0, None]], kind)
    yield pa.array([[1, 2**40], [], None, [0]], pa.list_(pa.int64()))
    yield pa.array([["a"], ["b", None], None, []], pa.list_(pa.string()))
    yield pa.array([[datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC)], None], pa.list_(pa.timestamp("us", "UTC")))
    yield pa.array([{"a": 1}, None], pa.struct([("a", pa.int64())]))
    yield pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))
    yield pa.nulls(2)
    yield pa.array([uuid.UUID(int=7).bytes, None], pa.uuid())
