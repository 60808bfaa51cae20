"""Of every column type and declared type an entity has one value offline and online, or is refused by file and row."""

from __future__ import annotations

import math
import struct
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from almanac.errors import FeatureError
from features.asof import Files, View, join, latest
from features.declared_types import Misfit, declared, declared_type
from features.packed.arrow import arrow_type, decode, encode
from features.packed.codec import BYTES, LISTS, NUMBERS, TEXTS, Column, Layout, parse
from tests.columns import columns
from tests.joins import at, entities_of, one_view, rows_of

UTC_SECONDS = pa.timestamp("s", tz="UTC")
KINDS = sorted([*NUMBERS, "STRING", "UUID", "BYTES", *LISTS, "STRING_LIST"])


COLUMNS = {str(column.type): column for column in columns()}


def bits(value: Any) -> Any:
    """A value so that NaN equals itself and nothing else, and -0.0 is not 0.0."""
    if isinstance(value, list):
        return [bits(each) for each in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return type(value).__name__, value


def plain(column: Any) -> list[Any]:
    """Values of a column; moments as whole seconds, for Python does not count all of them."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(UTC_SECONDS).cast(pa.int64())
    elif pa.types.is_list(kind) and pa.types.is_timestamp(kind.value_type):
        column = column.cast(pa.list_(UTC_SECONDS)).cast(pa.list_(pa.int64()))
    return [bits(value) for value in column.to_pylist()]


def keyed(column: Any) -> pa.Table:
    """Rows of keys 0, 1, … with these values of the feature x."""
    n = len(column)
    return pa.table({"k": list(range(n)), "ts": [at(0)] * n, "x": column})


def offline(table: pa.Table, kind: str, keys: list[int] | None = None) -> Any:
    """The feature x of some keys as batch reads it."""
    view = one_view(table, source=rows_of(table), kinds={"x": kind})
    asked = list(range(len(table))) if keys is None else keys
    return join(entities_of(pa.array(asked, pa.int64()), [at(1)] * len(asked)), [view])["x"]


def materialized(table: pa.Table, kind: str) -> Any:
    """The same as it lies online after a materialization."""
    view = one_view(table, kinds={"x": kind})
    found = pa.Table.from_batches(list(latest(view, at(-1), at(1)))).sort_by("k")
    return pushed(found["x"], kind)


def pushed(column: Any, kind: str) -> Any:
    """A column as it lies online after a push."""
    layout = Layout(project="p", view="v", columns=(Column("x", kind),))
    values = encode(layout, pa.table({"x": column}), np.zeros(len(column), np.int64))
    return decode(layout, parse(layout, values), len(values))["x"]


def fitting(column: pa.Array, kind: str) -> tuple[list[int], list[int]] | None:
    """Rows whose values can be of a type, and rows whose values cannot; None where none of the column's type can."""
    good, bad = [], []
    for row in range(len(column)):
        try:
            declared(column.slice(row, 1), kind)
            good.append(row)
        except Misfit as misfit:
            if misfit.row is None:
                return None
            bad.append(row)
    return good, bad


@pytest.mark.parametrize("name", COLUMNS)
def test_a_value_is_the_same_offline_and_online_or_refused_by_row(name: str) -> None:
    column = COLUMNS[name]
    for kind in KINDS:
        found, table = fitting(column, kind), keyed(column)
        if found is None:
            for read in (offline, materialized):
                with pytest.raises(FeatureError, match=rf"^the source of view v: column x is .*declares {kind}: "):
                    read(table, kind)
            if kind == "STRING_LIST" and pa.types.is_binary(column.type):
                continue  # taken as Feast's own bytes of such a list
            with pytest.raises(FeatureError, match="feature x of view v is "):
                pushed(column, kind)
            continue
        good, bad = found
        some = pa.concat_arrays([column.slice(0, 0), *(column.slice(row, 1) for row in good)])
        values = offline(keyed(some), kind)
        assert values.type == declared_type(kind)
        online = values if kind != "STRING_LIST" else pushed(values, kind)  # lists of text lie online as Feast has them
        assert plain(online) == plain(materialized(keyed(some), kind)) == plain(pushed(some, kind)), kind
        assert plain(offline(table, kind, good)) == plain(values), kind  # nobody asks for the others
        if bad:
            says = f"row {bad[0] + 1} of those that it gave: column x has .*, view v declares {kind}: "
            for read in (offline, materialized):
                with pytest.raises(FeatureError, match=says):
                    read(table, kind)
            with pytest.raises(FeatureError, match=rf"feature x of view v has .* in row {bad[0] + 1}, "):
                pushed(column, kind)


RIGHT = [
    (pa.array([15.0, -0.0, None]), "INT64", [15, 0, None]),
    (pa.array([2.0**53, -(2.0**53)]), "INT64", [2**53, -(2**53)]),
    (pa.array([True, False]), "INT64", [1, 0]),
    (pa.array([2**63 - 1], pa.uint64()), "INT64", [2**63 - 1]),
    (pa.array([Decimal("3.00")]), "INT32", [3]),
    (pa.array([1, 0, None]), "BOOL", [True, False, None]),
    (pa.array([1.0, -0.0]), "BOOL", [True, False]),
    (pa.array([0.1, 1e-60]), "FLOAT", [float(np.float32(0.1)), 0.0]),
    (pa.array([math.nan, -math.inf, None]), "FLOAT", [math.nan, -math.inf, None]),
    (pa.array([2**53 + 1]), "DOUBLE", [2.0**53]),
    (pa.array([7, 12]), "STRING", ["7", "12"]),
    (pa.array([b"ab"], pa.binary(2)), "STRING", ["ab"]),
    (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), "UUID", [str(uuid.UUID(int=7))]),
    (pa.array([-1], pa.timestamp("ns")), "UNIX_TIMESTAMP", [datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)]),
    (pa.array([5]), "UNIX_TIMESTAMP", [datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)]),
    (pa.array([date(1970, 1, 2)]), "UNIX_TIMESTAMP", [datetime(1970, 1, 2, tzinfo=UTC)]),
    (pa.array([[1.0], None, []]), "INT64_SET", [[1], None, []]),
]


@pytest.mark.parametrize(("column", "kind", "values"), RIGHT, ids=lambda value: str(getattr(value, "type", value))[:40])
def test_what_is_taken_is_the_right_value(column: pa.Array, kind: str, values: list[Any]) -> None:
    found = declared(column, kind)
    assert found.type == declared_type(kind)
    assert [bits(value) for value in found.to_pylist()] == [bits(value) for value in values]


REFUSED = [
    (pa.array([15.0, None, 15.9]), "INT64", 2, "15.9"),
    (pa.array([math.nan]), "INT64", 0, "nan"),
    (pa.array([2.0**53 + 2]), "INT64", 0, "9007199254740994.0"),
    (pa.array([0, 2**31]), "INT32", 1, "2147483648"),
    (pa.array([2**63], pa.uint64()), "INT64", 0, "9223372036854775808"),
    (pa.array([Decimal("1.00"), Decimal("1.50")]), "INT64", 1, "1.50"),
    (pa.array([1, 2]), "BOOL", 1, "2"),
    (pa.array([math.inf, 1e39]), "FLOAT", 1, "1e\\+39"),
    (pa.array([2**62], pa.timestamp("s")), "UNIX_TIMESTAMP", 0, "4611686018427387904"),
    (pa.array([[1.0], [], [2.0, 2.5]]), "INT64_LIST", 2, "2.5"),
    (pa.array([["a"], [None]]), "STRING_LIST", 1, "nulls"),
    (pa.array([1], pa.duration("s")), "INT64", None, "duration"),
    (pa.array([datetime(2026, 1, 1, tzinfo=UTC)]), "INT64", None, "timestamp"),
    (pa.array(["1"]), "INT64", None, "string"),
    (pa.array([1.0]), "STRING", None, "double"),
    (pa.array([1.0]), "UNIX_TIMESTAMP", None, "double"),
    (pa.array([1.0]), "DOUBLE_LIST", None, "double"),
]


@pytest.mark.parametrize(("column", "kind", "row", "says"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_refused_says_the_row_and_the_value(column: pa.Array, kind: str, row: int | None, says: str) -> None:
    with pytest.raises(Misfit, match=says) as caught:
        declared(column, kind)
    assert caught.value.row == row
    halves = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    with pytest.raises(Misfit) as caught:
        declared(halves, kind)
    assert caught.value.row == row


@given(st.integers(-(10**18) + 1, 10**18 - 1), st.integers(0, 18), st.sampled_from(["DOUBLE", "FLOAT"]))
@example(-567_800, 5, "DOUBLE")
@example(7, 2, "DOUBLE")
def test_a_decimal_becomes_the_nearest_number(digits: int, scale: int, kind: str) -> None:
    value = Decimal(digits).scaleb(-scale)
    column = pa.array([value, None], pa.decimal128(38, scale))
    number = float(value) if kind == "DOUBLE" else float(np.float32(str(value)))
    assert declared(column, kind).to_pylist() == [number, None]
    assert declared(pa.array([[value]], pa.list_(column.type)), f"{kind}_LIST").to_pylist() == [[number]]


@given(st.lists(st.none() | st.floats() | st.integers(-(2**60), 2**60).map(float), max_size=5))
def test_doubles_are_whole_numbers_exactly_up_to_2_53(values: list[float | None]) -> None:
    wrong = [
        row
        for row, value in enumerate(values)
        if value is not None and not (math.isfinite(value) and value == int(value) and abs(value) <= 2**53)
    ]
    column = pa.array(values, pa.float64())
    if wrong:
        with pytest.raises(Misfit) as caught:
            declared(column, "INT64")
        assert caught.value.row == wrong[0]
    else:
        assert declared(column, "INT64").to_pylist() == [None if value is None else int(value) for value in values]


@pytest.mark.parametrize("kind", sorted(NUMBERS.keys() | TEXTS | BYTES))
def test_a_column_of_its_type_is_not_copied(kind: str) -> None:
    column = pa.nulls(3, declared_type(kind))
    assert declared(column, kind) is column


def day(folder: Path, name: str, values: pa.Array, first: int = 0) -> None:
    keys = list(range(first, first + len(values)))
    table = pa.table({"cell_id": keys, "event_timestamp": [at(0)] * len(keys), "local_hour": values})
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)


def hours_of(folder: Path, keys: list[int], kind: str = "INT64") -> list[Any]:
    view = View(
        name="visits",
        source=Files(paths=(str(folder),)),
        keys={"cell_id": "cell_id"},
        timestamp="event_timestamp",
        features={"local_hour": "local_hour"},
        kinds={"local_hour": kind},
    )
    entities = pa.table({"cell_id": keys, "event_timestamp": [at(1)] * len(keys)})
    found: list[Any] = join(entities, [view])["local_hour"].to_pylist()
    return found


def test_doubles_in_the_file_of_a_whole_number_are_taken_or_refused_by_file_column_and_row(tmp_path: Path) -> None:
    day(tmp_path, "2026-01-01", pa.array([3.0, 4.0, None]))
    day(tmp_path, "2026-01-02", pa.array([12.0, 15.0, 14.0, 15.9, 16.0]), first=10)
    assert hours_of(tmp_path, [0, 2, 11, 14]) == [3, None, 15, 16]
    says = (
        r"2026-01-02\.parquet, row 4: column local_hour has 15\.9, view visits declares INT64: write whole numbers "
        r"from -9,007,199,254,740,992 to 9,007,199,254,740,992, or declare the feature Float64"
    )
    with pytest.raises(FeatureError, match=says):
        hours_of(tmp_path, [0, 13])
    assert hours_of(tmp_path, [13], "DOUBLE") == [15.9]


def test_files_of_several_types_agree_on_the_declared_one(tmp_path: Path) -> None:
    day(tmp_path, "2026-01-01", pa.array([3, 4]))
    day(tmp_path, "2026-01-02", pa.array([5.0, 6.5]), first=10)
    day(tmp_path, "2026-01-03", pa.array([7, 8], pa.int16()), first=20)
    assert hours_of(tmp_path, [0, 10, 21]) == [3, 5, 8]
    with pytest.raises(FeatureError, match=r"2026-01-02\.parquet, row 2: column local_hour has 6\.5"):
        hours_of(tmp_path, [0, 11])
    assert hours_of(tmp_path, [1, 11], "FLOAT") == [4.0, 6.5]


def test_two_views_may_declare_one_column_each_in_its_own_way() -> None:
    table = keyed(pa.array([1.0, 0.1]))
    source = rows_of(table)
    kinds = ("FLOAT", "DOUBLE")
    views = [one_view(table, source=source, name=kind, features={"x": kind}, kinds={"x": kind}) for kind in kinds]
    found = join(entities_of([1], [at(1)]), views)
    assert (found["FLOAT"].to_pylist(), found["DOUBLE"].to_pylist()) == ([float(np.float32(0.1))], [0.1])
    assert (found["FLOAT"].type, found["DOUBLE"].type) == (arrow_type("FLOAT"), arrow_type("DOUBLE"))
