"""The point-in-time engine against a search through all rows, on random histories; what it refuses; what it skips."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from almanac.errors import FeatureError
from features.asof import Files, Rows, View, Wanted, join, latest
from features.asof import chunks as asof_chunks
from features.asof import keys as asof_keys
from features.asof import newest as asof_latest
from features.asof import search as asof_search
from tests.joins import BEGAN, STAMP, at, entities_of, one_view, rows_of

TTLS = (None, timedelta(0), timedelta(seconds=1), timedelta(seconds=4))
Row = dict[str, Any]

seconds = st.integers(0, 8).map(lambda number: BEGAN + timedelta(seconds=number))
maybe_second = st.one_of(st.none(), seconds)
WHOLE = st.one_of(st.none(), st.sampled_from([-3, 0, 1, 2, 2**40]))
TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "ä", "b"]))
source_rows = st.lists(
    st.fixed_dictionaries({"k": WHOLE, "t": TEXT, "ts": maybe_second, "cr": maybe_second}), max_size=30
)
entity_rows = st.lists(st.fixed_dictionaries({"kk": WHOLE, "tt": TEXT, "event_timestamp": maybe_second}), max_size=12)
shapes = st.fixed_dictionaries(
    {
        "keys": st.sampled_from([{"k": "kk"}, {"t": "tt"}, {"k": "kk", "t": "tt"}, {}]),
        "ttl": st.sampled_from(TTLS),
        "created": st.sampled_from([None, "cr"]),
    }
)


def oracle(entity: Row, rows: list[Row], view: View, by_moment: bool) -> int | None:
    """The place of the row that the entity saw."""
    moment, best = entity["event_timestamp"], None
    for place, row in enumerate(rows):
        seen = moment is not None and row["ts"] is not None and row["ts"] <= moment
        seen = seen and all(row[old] is not None and row[old] == entity[new] for old, new in view.keys.items())
        seen = seen and (not view.ttl or row["ts"] + view.ttl >= moment)
        if by_moment and view.created:
            seen = seen and row["cr"] is not None and row["cr"] <= moment
        if seen and (best is None or order(row, place, view) > best):
            best = order(row, place, view)
    return None if best is None else best[-1]


def order(row: Row, place: int, view: View) -> tuple[datetime, datetime, int]:
    created = row["cr"] if view.created else None
    return row["ts"], created or datetime.min.replace(tzinfo=UTC), place


def source_table(rows: list[Row]) -> pa.Table:
    kinds = {"k": pa.int32(), "t": pa.string(), "ts": STAMP, "cr": STAMP}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items() if name != "k"}
    whole = pa.array([row["k"] for row in rows], pa.int64())
    return pa.table({"k": whole, **columns, "place": pa.array(range(len(rows)), pa.int64())})


def entity_table(rows: list[Row]) -> pa.Table:
    kinds = {"kk": pa.int64(), "tt": pa.large_string(), "event_timestamp": pa.timestamp("ns", tz="UTC")}
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})


def view_of(source: Files | Rows, shape: Row, name: str = "v") -> View:
    return View(name=name, source=source, timestamp="ts", features={"place": f"{name}__place"}, **shape)


def written(table: pa.Table, folder: Path, cut: int) -> Files:
    """As two files of small row groups."""
    for number, part in enumerate((table.slice(0, cut), table.slice(cut))):
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=5)
    return Files(paths=(str(folder),))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that every way through the engine is taken."""
    monkeypatch.setattr(asof_chunks, "BATCH_ROWS_MAX", 7)
    monkeypatch.setattr(asof_keys, "DENSE_ENTRIES_MAX", 4)
    monkeypatch.setattr(asof_search, "NARROW_ROWS_MIN", 1)
    monkeypatch.setattr(asof_search, "IMPROVEMENTS_MAX", 1)
    monkeypatch.setattr(asof_chunks, "SPOOL_BYTES_MAX", 64)
    monkeypatch.setattr(asof_latest, "PENDING_ROWS_MAX", 3)
    monkeypatch.setattr(asof_latest, "HELD_BYTES_MAX", 100)


many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
fewer = settings(many, max_examples=25)


@many
@given(rows=source_rows, entities=entity_rows, shape=shapes, other=shapes, by_moment=st.booleans())
def test_join_finds_what_a_search_through_all_rows_finds(
    rows: list[Row], entities: list[Row], shape: Row, other: Row, by_moment: bool
) -> None:
    source = rows_of(source_table(rows))
    views = [view_of(source, shape, "a"), view_of(source, other, "b"), view_of(source, {**shape, "ttl": TTLS[2]}, "c")]
    table = entity_table(entities)
    found = join(table, views, created_by_moment=by_moment)
    assert found.select(table.column_names).equals(table)
    for view in views:
        expected = [oracle(entity, rows, view, by_moment) for entity in entities]
        assert found[f"{view.name}__place"].to_pylist() == expected


at_one_moment = st.tuples(entity_rows, seconds).map(
    lambda drawn: [{**row, "event_timestamp": drawn[1]} for row in drawn[0]]
)


@fewer
@given(
    rows=source_rows,
    entities=st.one_of(entity_rows, at_one_moment),
    shape=shapes,
    cut=st.integers(0, 30),
    by_moment=st.booleans(),
)
@pytest.mark.usefixtures("small")
def test_join_streams_files_and_what_does_not_fit_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    entities: list[Row],
    shape: Row,
    cut: int,
    by_moment: bool,
) -> None:
    table = source_table(rows)
    batches = Rows(schema=table.schema, read=lambda wanted: table.select(list(wanted.columns)).to_batches(4))
    for source in (written(table, tmp_path_factory.mktemp("files"), cut), batches):
        view = view_of(source, shape)
        expected = [oracle(entity, rows, view, by_moment) for entity in entities]
        for _ in range(3):  # the second time an index is made of files, the third time it is found
            found = join(entity_table(entities), [view], created_by_moment=by_moment)
            assert found["v__place"].to_pylist() == expected


@fewer
@given(rows=source_rows, shape=shapes, cut=st.integers(0, 30), start=seconds, end=seconds)
@pytest.mark.usefixtures("small")
def test_latest_is_the_newest_row_of_each_key(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], shape: Row, cut: int, start: datetime, end: datetime
) -> None:
    view = view_of(written(source_table(rows), tmp_path_factory.mktemp("files"), cut), shape)
    best: dict[tuple[Any, ...], tuple[datetime, datetime, int]] = {}
    for place, row in enumerate(rows):
        if row["ts"] is not None and start <= row["ts"] <= end:
            key = tuple(row[name] for name in view.keys)
            best[key] = max(best.get(key, order(row, place, view)), order(row, place, view))
    found = pa.Table.from_batches(latest(view, start, end)).to_pylist() if best else list(latest(view, start, end))
    assert sorted(row["v__place"] for row in found) == sorted(place for _, _, place in best.values())
    for row in found:
        assert [row[new] for new in view.keys.values()] == [rows[row["v__place"]][old] for old in view.keys]
        assert row["ts"] == rows[row["v__place"]]["ts"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (pa.array([1, 2], pa.int16()), pa.array([2, 1], pa.uint32())),
        (pa.array([1, 2], pa.int64()), pa.array([2.0, 1.0])),
        (pa.array([1.0, float("nan")]), pa.array([None, 1], pa.int64())),
        (pa.array(["b", "a"]), pa.array(["a", "b"]).dictionary_encode()),
        (pa.array([b"b", b"a"]), pa.array([b"a", b"b"], pa.large_binary())),
        (pa.array([True, False]), pa.array([False, True])),
        (pa.array([date(2026, 1, 2), date(2026, 1, 1)]), pa.array([date(2026, 1, 1), date(2026, 1, 2)])),
        (pa.array([at(1), at(0)], STAMP), pa.array([at(0), at(1)], pa.timestamp("ns", "UTC"))),
    ],
    ids=str,
)
def test_keys_of_different_types_meet(theirs: pa.Array, ours: pa.Array) -> None:
    table = pa.table({"k": theirs, "ts": pa.array([at(0), at(0)], STAMP), "x": [1, 2]})
    found = join(entities_of(ours, pa.array([at(1), at(1)], STAMP)), [one_view(table)])["x"].to_pylist()
    assert found == ([None, 1] if ours.null_count else [2, 1])


def test_times_are_compared_to_the_nanosecond_and_without_a_zone_they_are_utc() -> None:
    fine = pa.timestamp("ns")
    table = pa.table({"k": [1, 1], "ts": pa.array([1_000_000_001, 1_000_000_003], fine), "x": [1, 2]})
    asked = entities_of([1] * 4, pa.array([1_000_000_000, 1_000_000_001, 1_000_000_002, 1_000_000_003], fine))
    assert join(asked, [one_view(table)])["x"].to_pylist() == [None, 1, 1, 2]
    coarse = table.set_column(1, "ts", pa.array([1, 2], pa.timestamp("s")))
    asked = entities_of([1] * 3, pa.array([1_999_999_999, 2_000_000_000, 5_000_000_001], fine))
    assert join(asked, [one_view(coarse, ttl=timedelta(seconds=3))])["x"].to_pylist() == [1, 2, None]
    far = entities_of([1], pa.array([datetime(9999, 12, 31, tzinfo=UTC)], STAMP))
    assert join(far, [one_view(table, ttl=timedelta.max)])["x"].to_pylist() == [2]


def test_values_stay_as_they_are_and_rows_keep_their_order() -> None:
    lists, texts = [[1.5], None, []], ["ä", "", None]
    numbers = [float("nan"), float("inf"), None]
    table = pa.table({"k": [3, 1, 2], "ts": pa.array([at(0)] * 3, STAMP), "l": lists, "t": texts, "n": numbers})
    view = one_view(table, features={"l": "v__l", "t": "v__t", "n": "v__n"})
    asked = entities_of([2, 3, 3, 9, 1], pa.array([at(1)] * 5, STAMP)).append_column("more", pa.array(list("abcde")))
    found = join(asked, [view])
    assert found.column_names == ["k", "event_timestamp", "more", "v__l", "v__t", "v__n"]
    assert found["v__l"].to_pylist() == [[], [1.5], [1.5], None, None]
    assert found["v__t"].to_pylist() == [None, "ä", "ä", None, ""]
    assert str(found["v__n"].to_pylist()) == "[None, nan, nan, None, inf]"


COLUMNS = {
    "dictionary": pa.array(["a", "b", None, "c"]).dictionary_encode(),
    "decimal": pa.array([Decimal("1.5"), None, Decimal(2), Decimal(3)]),
    "struct": pa.array([{"a": 1}, None, {"a": 2}, {"a": 3}]),
    "map": pa.array([[("k", 1)], None, [], [("z", 2)]], pa.map_(pa.string(), pa.int64())),
    "lists": pa.array([["x"], None, [], ["y"]]),
    "fixed": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
    "view": pa.array(["a", "b", None, "c"], pa.string_view()),
    "nothing": pa.nulls(4),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_features_of_any_type_are_joined(tmp_path: Path, name: str) -> None:
    table = pa.table({"k": [1, 2, 3, 4], "ts": pa.array([at(0), at(1), at(2), at(3)], STAMP), "x": COLUMNS[name]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    values = COLUMNS[name].to_pylist()
    asked = entities_of([4, 3, 9, 1], pa.array([at(5)] * 4, STAMP))
    for source in (rows_of(table), Files(paths=(str(tmp_path),))):
        views = [
            one_view(table, source=source, features={"x": f"x{ttl}"}, ttl=timedelta(seconds=ttl)) for ttl in (0, 3)
        ]
        found = join(asked, views)
        assert found["x0"].to_pylist() == [values[3], values[2], None, values[0]]
        assert found["x3"].to_pylist() == [values[3], values[2], None, None]


def test_files_with_other_types_and_column_orders_are_one_source(tmp_path: Path) -> None:
    first = pa.table({"k": [1], "ts": pa.array([at(0)], STAMP), "x": pa.array([1.5], pa.float64())})
    second = pa.table(
        {"x": pa.array([2.5], pa.float32()), "k": pa.array([2], pa.int8()), "ts": pa.array([at(0)], STAMP)}
    )
    pq.write_table(first, tmp_path / "a.parquet")
    pq.write_table(second, tmp_path / "b.parquet")
    (tmp_path / ".draft.parquet").write_bytes(b"half a file")
    for filesystem in (None, LocalFileSystem()):
        view = one_view(first, source=Files(paths=(str(tmp_path),), filesystem=filesystem))
        assert join(entities_of([2, 1], pa.array([at(1)] * 2, STAMP)), [view])["x"].to_pylist() == [2.5, 1.5]


def test_a_source_is_told_what_matters() -> None:
    asked: list[Wanted] = []
    table = pa.table({"k": [1], "ts": pa.array([at(5)], STAMP), "x": [1], "y": [2]})

    def read(wanted: Wanted) -> list[pa.RecordBatch]:
        asked.append(wanted)
        return table.select(list(wanted.columns)).to_batches()

    view = one_view(table, source=Rows(schema=table.schema, read=read), ttl=timedelta(seconds=3))
    join(entities_of([1, 1], pa.array([at(9), at(6)], STAMP)), [view])
    assert asked == [Wanted(columns=("k", "ts", "x"), earliest=at(3), latest=at(9))]


GOOD = pa.table({"k": [1], "ts": pa.array([at(0)], STAMP), "x": [1]})
ASKED = entities_of([1], pa.array([at(0)], STAMP))


@pytest.mark.parametrize(
    ("entities", "view", "said"),
    [
        (ASKED.drop_columns("k"), one_view(GOOD), "view v: the entities have no column k"),
        (ASKED, one_view(GOOD, features={"y": "y"}), "view v: the source has no column y"),
        (ASKED, one_view(GOOD, features={"x": "k"}), "a column k already"),
        (entities_of(["1"], ASKED["event_timestamp"]), one_view(GOOD), "key k is string in the entities and int64"),
        (entities_of([1], ["2026"]), one_view(GOOD), "event_timestamp is string, no timestamp"),
        (ASKED, one_view(GOOD, timestamp="x", features={}), "view v: x is int64, no timestamp"),
        (ASKED, one_view(GOOD, source=Files(paths=("nowhere/*.parquet",))), "view v has no Parquet files"),
    ],
    ids=["key", "column", "name", "type", "moment", "time", "files"],
)
def test_what_does_not_fit_is_refused(entities: pa.Table, view: View, said: str) -> None:
    with pytest.raises(FeatureError, match=said):
        join(entities, [view])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    view = one_view(GOOD, source=Files(paths=(str(path),)))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(FeatureError, match=r"view v: .*a\.parquet is no readable Parquet file"):
        join(ASKED, [view])
    pq.write_table(pa.table({"k": [1], "ts": GOOD["ts"], "x": ["a long text"]}), path, compression="zstd")
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(60) + whole[64:])
    with pytest.raises(FeatureError, match=r"view v: .*a\.parquet cannot be read"):
        join(ASKED, [view])
