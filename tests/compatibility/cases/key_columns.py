"""Columns of Parquet files as entities' keys."""

from __future__ import annotations

import tempfile
import uuid
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.schemas import Needed, check_schema
from tests.compatibility.tables import Case, Converted, Table, Taken, cell

WHOLE, TEXT = "whole numbers", "text"


def case(column: pa.Array, kind: str) -> Case:
    """A column of keys, of a view whose keys are whole numbers or text."""

    def attempt() -> Taken | Converted:
        moments = pa.array([datetime(2026, 11, 21, tzinfo=UTC)] * len(column), pa.timestamp("us", "UTC"))
        needed = Needed(view="v", key="key", whole_keys=kind == WHOLE, moments=("event_timestamp",))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "keys.parquet"
            pq.write_table(pa.table({"key": column, "event_timestamp": moments}), path)
            check_schema(str(path), needed)
        return Taken() if column.type in (pa.int64(), pa.string()) else Converted(kind)

    return Case(f"{cell(str(column.type))} of {kind}", attempt)


NUMBERS, NAMES = pa.array([1, 2]), pa.array(["a", "b"])
TABLE = Table(
    given="column of a file as key",
    cases=(
        case(NUMBERS, WHOLE),
        *(case(NUMBERS.cast(kind), WHOLE) for kind in (pa.int8(), pa.uint32(), pa.uint64())),
        case(NUMBERS.dictionary_encode(), WHOLE),
        *(case(NUMBERS.cast(kind), WHOLE) for kind in (pa.float64(), pa.decimal128(20, 0), pa.string())),
        case(NAMES, TEXT),
        *(case(NAMES.cast(kind), TEXT) for kind in (pa.large_string(), pa.string_view())),
        case(NAMES.dictionary_encode(), TEXT),
        case(NAMES.cast(pa.binary()), TEXT),
        case(pa.array([uuid.UUID(int=1).bytes], pa.uuid()), TEXT),
        case(pa.array([date(2026, 11, 21)]), TEXT),
        case(NUMBERS, TEXT),
        case(pa.nulls(2), TEXT),
    ),
)
