"""The packed value: what goes in comes out, of every type; what is no value, or a newer one, is refused in one line."""

from __future__ import annotations

import math
import string
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almanac.errors import FeatureError
from features.packed.arrow import arrow_type, decode, encode, micros, schema_of
from features.packed.codec import (
    CODEC_VERSION,
    Column,
    Layout,
    UnknownLayouts,
    decode_layout,
    numbers_of,
    packing,
    parse,
)
from features.packed.keys import Keys, by_bucket

WIDE = {
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.floats(),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "UNIX_TIMESTAMP": st.integers(-6 * 10**10, 10**11),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "BOOL": st.booleans(),
    "STRING": st.text(max_size=8),
    "JSON": st.just('{"a": [1, null]}'),
    "BYTES": st.binary(max_size=8),
    "MAP": st.binary(max_size=8),  # Feast's own serialization: bytes to this
    "FLOAT_LIST": st.lists(st.floats(width=32), max_size=4),
    "BOOL_LIST": st.lists(st.booleans(), max_size=4),
    "INT64_LIST": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    "STRING_LIST": st.binary(max_size=8),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[Layout, pa.Table, np.ndarray[Any, Any]]:
    kinds = draw(st.lists(st.sampled_from(sorted(WIDE)), min_size=1, max_size=12))
    rows = draw(st.integers(0, 6))
    columns = tuple(Column(f"c{at}", kind) for at, kind in enumerate(kinds))
    arrays = [
        pa.array(draw(st.lists(st.none() | WIDE[kind], min_size=rows, max_size=rows)), _plain(kind)).cast(
            arrow_type(kind)
        )
        for kind in kinds
    ]
    times = draw(st.lists(st.integers(-(2**62), 2**62), min_size=rows, max_size=rows))
    layout = Layout(project="p", view="v", columns=columns)
    return layout, pa.table(arrays, schema=schema_of(layout)), np.array(times, dtype=np.int64)


def _plain(kind: str) -> pa.DataType:
    return pa.int64() if kind == "UNIX_TIMESTAMP" else arrow_type(kind)


def bits(value: Any) -> Any:
    """A cell in a form whose equality tells NaN from null, and zero from minus zero."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return [bits(each) for each in value] if isinstance(value, list) else value


def same(found: pa.Table, expected: pa.Table) -> bool:
    return found.schema == expected.schema and all(
        [bits(cell) for cell in found[name].to_pylist()] == [bits(cell) for cell in expected[name].to_pylist()]
        for name in expected.column_names
    )


FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ANY = settings(max_examples=60, deadline=None)


@FEW
@given(tables(), st.integers(0, 2**62))
def test_rows_come_back_as_they_were(packed: tuple[Layout, pa.Table, np.ndarray[Any, Any]], created: int) -> None:
    layout, table, times = packed
    found = parse(layout, encode(layout, table, times, np.full(len(times), created)))
    assert same(decode(layout, found, len(table)), table)
    np.testing.assert_array_equal(found[0].times, times)
    sliced = encode(layout, table.slice(1), times[1:])  # an array that begins in the middle of its buffers
    assert sliced == encode(layout, table, times)[1:]


@FEW
@given(tables(), st.data())
def test_absent_rows_are_null_and_the_others_stay_in_place(
    packed: tuple[Layout, pa.Table, np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    layout, table, times = packed
    values: list[bytes | None] = list(encode(layout, table, times))
    absent = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    values = [None if gone else value for value, gone in zip(values, absent, strict=True)]
    order = pa.array([None if gone else at for at, gone in enumerate(absent)], pa.int64())
    found = parse(layout, values)
    assert same(decode(layout, found, len(values)), table.take(order))
    dated = encode(layout, table, times, np.full(len(times), 7))
    mixed = [dated[at] if value is not None and at % 2 else value for at, value in enumerate(values)]
    assert same(decode(layout, parse(layout, mixed), len(values)), table.take(order))
    assert found[0].present.tolist() == [not gone for gone in absent]


@FEW
@given(tables(), tables())
def test_rows_of_another_layout_are_read_by_name(
    one: tuple[Layout, pa.Table, np.ndarray[Any, Any]], two: tuple[Layout, pa.Table, np.ndarray[Any, Any]]
) -> None:
    layout, table, times = one
    other, others, other_times = two
    values = encode(layout, table, times) + encode(other, others, other_times)
    known = {found.fingerprint: found for found in (other,)}
    read = decode(layout, parse(layout, values, known), len(values))
    assert same(read.slice(0, len(table)), table)
    kinds = {column.name: column.type for column in other.columns}
    for column in layout.columns:
        part = read[column.name].slice(len(table))
        if kinds.get(column.name) == column.type:
            assert [bits(c) for c in part.to_pylist()] == [bits(c) for c in others[column.name].to_pylist()]
        elif column.name not in kinds:
            assert part.null_count == len(others)


def test_a_layout_that_is_nowhere_is_named() -> None:
    old = Layout(project="p", view="v", columns=(Column("a", "FLOAT"),))
    new = Layout(project="p", view="v", columns=(Column("a", "FLOAT"), Column("b", "FLOAT")))
    values = encode(old, pa.table({"a": [1.0]}), np.array([5]))
    with pytest.raises(UnknownLayouts, match="materialize the view again") as caught:
        parse(new, values)
    assert caught.value.fingerprints == {old.fingerprint}
    assert decode_layout(old.encoded()) == old


@ANY
@given(st.lists(st.none() | st.binary(max_size=40), min_size=1, max_size=3), st.booleans())
def test_any_bytes_are_read_or_refused_in_one_line(values: list[bytes | None], tail: bool) -> None:
    layout = Layout(project="p", view="v", columns=(Column("a", "FLOAT"), *([Column("b", "STRING")] if tail else [])))
    for harmed in (values, [value and struct.pack("<Q", packing(layout).head) + value for value in values]):
        told = ""
        try:
            decode(layout, parse(layout, harmed), len(harmed))
        except FeatureError as error:
            told = str(error)
        assert "\n" not in told


@pytest.mark.parametrize("kind", ["FLOAT", "STRING", "MAP"])
def test_a_value_of_a_newer_version_is_refused_and_says_what_to_do(kind: str) -> None:
    layout = Layout(project="p", view="v", columns=(Column("a", kind),))
    (value,) = encode(layout, pa.table({"a": pa.array([None], arrow_type(kind))}), np.array([5]))
    newer = bytes([value[0], CODEC_VERSION + 1]) + value[2:]
    with pytest.raises(
        FeatureError, match=f"packed by version {CODEC_VERSION + 1}, this process knows {CODEC_VERSION}"
    ):
        parse(layout, [value, newer])


@ANY
@given(st.lists(st.none() | st.floats(width=32), max_size=8), st.booleans())
def test_numbers_are_read_at_once_and_null_is_nan(cells: list[float | None], mixed: bool) -> None:
    columns = (Column("a", "FLOAT"), Column("b", "FLOAT"), *([Column("n", "INT32")] if mixed else []))
    layout = Layout(project="p", view="v", columns=columns)
    table = pa.table({"a": pa.array(cells, pa.float32()), "b": pa.nulls(len(cells)), "n": pa.nulls(len(cells))})
    values = [*encode(layout, table, np.zeros(len(cells), np.int64)), None]
    names = [column.name for column in columns]
    found = numbers_of(parse(layout, values), len(values), names)
    np.testing.assert_array_equal(found[0], [np.nan if cell is None else cell for cell in [*cells, None]])
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize(
    ("column", "cells", "said"),
    [
        ("INT32", pa.array([2**40]), "is no int32"),
        ("FLOAT", pa.array(["x"]), "is no float"),
        ("INT64", pa.array([1.5]), "is no int64"),
        ("FLOAT_LIST", pa.array([[1.0, None]]), "lists with nulls"),
        ("MAP", pa.array([[1]]), "is no map"),
    ],
)
def test_a_column_that_does_not_match_is_named_before_anything_is_packed(
    column: str, cells: pa.Array, said: str
) -> None:
    layout = Layout(project="p", view="shop", columns=(Column("a", column),))
    with pytest.raises(FeatureError, match=f"feature a of view shop.*{said}"):
        encode(layout, pa.table({"a": cells}), np.array([1]))
    with pytest.raises(FeatureError, match="view shop lack its feature a"):
        encode(layout, pa.table({"b": cells}), np.array([1]))


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.int64(), pa.string()])
def test_event_times_without_a_zone_are_refused(kind: pa.DataType) -> None:
    with pytest.raises(FeatureError, match="time zone UTC"):
        micros(pa.nulls(1, kind), "shop")
    with pytest.raises(FeatureError, match="1 rows of view shop have no event time"):
        micros(pa.nulls(1, pa.timestamp("us", tz="UTC")), "shop")


WHOLE = Keys(project="p", view="v", join_keys=(Column("id", "INT64"),))
TEXT = Keys(project="p", view="v", join_keys=(Column("id", "STRING"),))


@ANY
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_keys_of_whole_numbers_are_alike_from_lists_and_arrays(entities: list[int]) -> None:
    keys = WHOLE.of(entities)
    assert keys == WHOLE.of(np.array(entities, dtype=np.int64)) == [WHOLE.of([entity])[0] for entity in entities]
    assert len(set(keys)) == len(set(entities))
    assert all(len(key) == 20 and key.startswith(b"f{") and key[4:5] == b"}" for key in keys)
    same_kind = Keys(project="p", view="v", join_keys=(Column("id", "INT32"),))
    assert same_kind.of(entities) == keys


@ANY
@given(st.lists(st.tuples(st.text(alphabet=string.printable), st.text(max_size=3)), unique=True))
def test_keys_of_several_join_keys_are_told_apart(entities: list[tuple[str, str]]) -> None:
    both = Keys(project="p", view="v", join_keys=(Column("b", "STRING"), Column("a", "STRING")))
    turned = Keys(project="p", view="v", join_keys=(Column("a", "STRING"), Column("b", "STRING")))
    left, right = [one for one, _ in entities], [two for _, two in entities]
    keys = both.of(left, right)
    assert len(set(keys)) == len(entities)
    assert keys == turned.of(right, left)
    assert sorted(at for group in by_bucket(keys) for at in group) == list(range(len(keys)))


@pytest.mark.parametrize("entity", [1.5, None, "x", 2**70, float("nan"), b"\xff"])
def test_what_is_no_key_is_named(entity: Any) -> None:
    with pytest.raises(FeatureError, match="is no int64"):
        WHOLE.of([1, entity])
    if not isinstance(entity, int | float | str):
        with pytest.raises(FeatureError, match="is no string"):
            TEXT.of(["a", entity])


def test_keys_spread_over_the_buckets_and_views_share_them() -> None:
    groups = by_bucket(WHOLE.of(range(25_600)))
    assert len(groups) == 256
    assert 60 < min(map(len, groups)) <= max(map(len, groups)) < 140
    other = Keys(project="p", view="w", join_keys=(Column("id", "INT64"),))
    assert [key[:5] for key in other.of(range(100))] == [key[:5] for key in WHOLE.of(range(100))]
    assert not {key[5:12] for key in other.of([1])} & {key[5:12] for key in WHOLE.of([1])}
