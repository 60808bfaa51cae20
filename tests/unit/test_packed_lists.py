"""Lists in packed values: what Feast's own messages hold is what NumPy reads, and damage is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import FeatureError
from features.packed.arrow import encode
from features.packed.codec import Column, Layout, parse
from features.packed.lists import lists_of, texts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

LAYOUT = Layout(
    project="p",
    view="v",
    columns=(
        Column("names", "STRING_LIST"),
        Column("n", "INT64"),
        Column("at", "INT64_LIST"),
        Column("weights", "FLOAT_LIST"),
    ),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.just("x" * 200) | st.just("y" * 20_000)
ROWS = st.fixed_dictionaries(
    {
        "names": st.none() | st.lists(TEXTS, max_size=5),
        "n": st.none() | st.integers(-5, 5),
        "at": st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        "weights": st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=4),
    }
)
SCHEMA = pa.schema(
    [
        ("names", pa.list_(pa.string())),
        ("n", pa.int64()),
        ("at", pa.list_(pa.int64())),
        ("weights", pa.list_(pa.float32())),
    ]
)


def packed(rows: list[dict[str, Any]], layout: Layout = LAYOUT) -> list[bytes]:
    return encode(layout, pa.Table.from_pylist(rows, schema=SCHEMA), np.arange(len(rows), dtype=np.int64))


def read(values: list[bytes | None], name: str, usable: Any = None) -> list[list[Any]]:
    found = lists_of(parse(LAYOUT, values), np.ones(len(values), bool) if usable is None else usable, name)
    return [found.values[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)]


@given(st.lists(ROWS, min_size=1, max_size=5), st.data())
def test_lists_come_back_as_they_were_and_absent_ones_are_empty(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    values: list[bytes | None] = list(packed(rows))
    absent = data.draw(st.sets(st.integers(0, len(rows) - 1)))
    for at in absent:
        values[at] = None
    for name in ("names", "at", "weights"):
        expected = [[] if at in absent else row[name] or [] for at, row in enumerate(rows)]
        assert read(values, name) == expected


def test_feast_reads_the_same_lists() -> None:
    from feast.protos.feast.types.Value_pb2 import StringList, Value

    for names in ([], ["a"], ["é" * 300, "", "b"], ["c" * 70] * 300):
        message = Value(string_list_val=StringList(val=names)).SerializeToString()
        assert texts(message) == names
        value = packed([{"names": names, "n": 1, "at": [], "weights": []}])[0]
        assert value.endswith(message)


def test_a_row_that_is_not_usable_has_no_lists() -> None:
    values = packed([{"names": ["a"], "n": 1, "at": [1], "weights": []}] * 2)
    assert read(list(values), "names", np.array([True, False])) == [["a"], []]


def test_a_column_that_a_row_was_packed_without_is_empty() -> None:
    fewer = Layout(project="p", view="v", columns=(Column("n", "INT64"), Column("at", "INT64_LIST")))
    row = {"names": ["a"], "n": 1, "at": [7], "weights": []}
    values = [*packed([row], fewer), *packed([row])]
    found = parse(LAYOUT, values, {found.fingerprint: found for found in (fewer,)})
    assert lists_of(found, np.ones(2, bool), "names").lengths.tolist() == [0, 1]
    assert lists_of(found, np.ones(2, bool), "at").values.tolist() == [7, 7]


@pytest.mark.parametrize(
    "cell", [b"c\x00", b"b", b"b\x05", b"b\x02\n\x05", b"b\x01\x0b", b"b\x03\n\x01\xff", b"b\xff\xff\xff\xff\xff\xff"]
)
def test_a_damaged_list_of_texts_is_no_list(cell: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        texts(cell)


def test_a_list_with_a_null_in_it_is_refused_with_its_column() -> None:
    table = pa.table({"names": pa.array([["a", None]]), "n": [1], "at": pa.array([[1]]), "weights": [[1.0]]})
    with pytest.raises(FeatureError, match="feature names of view v"):
        encode(LAYOUT, table, np.zeros(1, np.int64))
