"""Event times as whole numbers of one unit: microseconds, or nanoseconds where a source has those."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from almanac.clock import MICROSECOND, at_micros, micros_of
from almanac.errors import FeatureError
from features.asof.keys import Ints

if TYPE_CHECKING:
    import pyarrow as pa

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
LEAST, GREATEST = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)


def unit_of(kind: pa.DataType, what: str) -> str:
    """The unit in which times of a type are compared.

    Raises:
        FeatureError: it is no type of times; `what` names view and column.
    """
    from pyarrow import types

    if types.is_timestamp(kind):
        return "ns" if kind.unit == "ns" else "us"
    if types.is_date(kind):
        return "us"
    raise FeatureError(f"{what} is {kind}, no timestamp: give timestamps")


@dataclass(frozen=True)
class Times:
    """A column of times: whole numbers, and which of them are null (None: none)."""

    values: Ints
    absent: npt.NDArray[np.bool_] | None

    @classmethod
    def of(cls, column: pa.Array | pa.ChunkedArray, unit: str, *, up: bool = False) -> Times:
        """Times in a unit; what is finer is rounded down, or up."""
        import pyarrow as pa
        from pyarrow import types

        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
        if types.is_date(array.type):
            array = array.cast(pa.timestamp("us"))
        absent = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
        values = array.view(pa.int64())
        values = (values.fill_null(0) if absent is not None else values).to_numpy(zero_copy_only=False)
        return cls(converted(values, array.type.unit, unit, up=up), absent)


def converted(values: Ints, unit: str, wanted: str, *, up: bool) -> Ints:
    """Whole numbers of another unit: rounded down or up, held within 64 bits."""
    old, new = PER_SECOND[unit], PER_SECOND[wanted]
    if new >= old:
        factor = new // old
        return values if factor == 1 else np.clip(values, LEAST // factor + 1, GREATEST // factor) * factor
    return -(-values // (old // new)) if up else values // (old // new)


def of_moment(moment: datetime, unit: str) -> int:
    """An aware time as a whole number."""
    return micros_of(moment) * (PER_SECOND[unit] // PER_SECOND["us"])


def to_moment(value: int, unit: str, *, up: bool = False) -> datetime | None:
    """A whole number as an aware time, rounded down, or up; None beyond what a `datetime` holds."""
    finer = PER_SECOND[unit] // PER_SECOND["us"]
    try:
        return at_micros(-(-value // finer) if up else value // finer)
    except OverflowError:
        return None


def span_of(ttl: timedelta | None, unit: str) -> int | None:
    """A TTL as a whole number; None where it limits nothing: none, zero, or longer than time goes."""
    if not ttl:
        return None
    span = ttl // MICROSECOND * (PER_SECOND[unit] // PER_SECOND["us"])
    return span if span < GREATEST // 2 else None
