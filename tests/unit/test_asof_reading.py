"""Which rows of a source the point-in-time engine reads: those in question, the newest first, and by an index again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.errors import FilesChanged
from features.asof import Files, join, latest
from features.asof import chunks as asof_chunks
from features.asof import index as asof_index
from features.asof import search as asof_search
from tests.joins import STAMP, at, entities_of, one_view


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each row group has that is read from now on."""
    read: list[int] = []
    inner = asof_chunks._decoded

    def counting(*arguments: Any) -> Iterator[pa.Table]:
        for part in inner(*arguments):
            read.append(len(part))
            yield part

    monkeypatch.setattr(asof_chunks, "_decoded", counting)
    return read


def test_row_groups_that_no_entity_can_see_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = 40
    stamps = [at(hour * 3600) for hour in range(hours) for _ in range(10)]
    table = pa.table({"k": list(range(10)) * hours, "ts": pa.array(stamps, STAMP), "x": list(range(400))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    read = counted(monkeypatch)
    view = one_view(table, source=Files(paths=(str(tmp_path / "*.parquet"),)), ttl=timedelta(hours=2))
    found = join(entities_of([4], pa.array([at(20.5 * 3600)], STAMP)), [view])
    assert found["x"].to_pylist() == [204]
    assert read == [20, 20]  # hours 19 and 20: keys and times, then the feature
    read.clear()
    assert join(entities_of([10], pa.array([at(20.5 * 3600)], STAMP)), [view])["x"].to_pylist() == [None]
    assert read == []


def test_the_newest_rows_of_some_keys_are_found_without_reading_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [*range(40), None] * 2
    stamps = pa.array([at(hour * 3600) for hour in (1, 0) for _ in range(41)], STAMP)
    table = pa.table({"k": pa.array(keys, pa.int64()), "ts": stamps, "x": range(82)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    view = one_view(table, source=Files(paths=(str(tmp_path / "a.parquet"),)))
    every = pa.Table.from_batches(latest(view, at(0), at(9999)))
    assert (len(every), every["k"].null_count) == (41, 1)
    read = counted(monkeypatch)
    found = pa.Table.from_batches(latest(view, at(0), at(9999), {"k": (0, 12)}))
    assert sum(read) == 60  # of 82 rows keys and times of two row groups in each half, then the features of two
    assert found.select(["k", "x"]).to_pydict() == {"k": list(range(13)), "x": list(range(13))}
    assert list(latest(view, at(0), at(9999), {"k": (90, 99)})) == []


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    view = one_view(pa.table({}), source=Files(paths=(str(tmp_path),)))
    asked = entities_of([1], pa.array([at(9)], STAMP))
    for value in (1, 2):
        table = pa.table({"k": [1] * value, "ts": pa.array([at(0)] * value, STAMP), "x": [value] * value})
        pq.write_table(table, tmp_path / "a.parquet")
        for _ in range(3):
            assert join(asked, [view])["x"].to_pylist() == [value]


def test_files_are_indexed_when_they_are_searched_again_and_indexes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: OrderedDict[Any, Any] = OrderedDict()
    monkeypatch.setattr(asof_index, "_kept", kept)
    monkeypatch.setattr(asof_index, "ROWS_MAX", 5)
    asked = entities_of([2, 1], pa.array([at(9), at(9)], STAMP))
    sizes = []
    for name, rows in (("a", 3), ("a", 3), ("b", 2), ("b", 2), ("c", 1), ("c", 1), ("d", 6), ("d", 6)):
        table = pa.table({"k": [1] * rows, "ts": pa.array([at(0)] * rows, STAMP), "x": list(range(rows))})
        path = tmp_path / f"{name}.parquet"
        if not path.exists():
            pq.write_table(table, path)
        found = join(asked, [one_view(table, source=Files(paths=(str(path),)))])
        assert found["x"].to_pylist() == [None, rows - 1]
        sizes.append([len(index.rows) for index in kept.values()])
    assert sizes == [[], [3], [3], [3, 2], [3, 2], [2, 1], [2, 1], [2, 1]]


def test_a_file_that_is_written_anew_while_it_is_read_is_not_mistaken_for_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"k": [1, 1], "ts": pa.array([at(0), at(1)], STAMP), "x": [1, 2]})
    pq.write_table(table, path)
    inner = asof_chunks._decoded

    def replaced(footer: Any, filesystem: Any, span: Any, columns: list[str]) -> Iterator[pa.Table]:
        if columns == ["x"]:
            pq.write_table(pa.concat_tables([table.slice(1), table]), path)
        yield from inner(footer, filesystem, span, columns)

    monkeypatch.setattr(asof_chunks, "_decoded", replaced)
    with pytest.raises(FilesChanged, match=r"a\.parquet was written anew while it was read: ask again"):
        join(entities_of([1], pa.array([at(9)], STAMP)), [one_view(table, source=Files(paths=(str(path),)))])


def test_of_one_moment_older_row_groups_are_read_for_those_alone_who_are_not_in_newer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = [at(hour * 3600) for hour in range(4) for _ in range(3)]
    table = pa.table({"k": [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 9], "ts": pa.array(stamps, STAMP), "x": list(range(12))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    monkeypatch.setattr(asof_chunks, "BATCH_ROWS_MAX", 3)
    looked: list[int] = []
    inner = asof_search.Best.offer

    def counting(self: asof_search.Best, offer: asof_search.Offer) -> None:
        looked.append(offer.first)
        inner(self, offer)

    monkeypatch.setattr(asof_search.Best, "offer", counting)
    view = one_view(table, source=Files(paths=(str(tmp_path / "*.parquet"),)))

    def found(*keys: int) -> object:
        return join(entities_of(keys, pa.array([at(4 * 3600)] * len(keys), STAMP)), [view])["x"].to_pylist()

    assert found(1, 2) == [9, 10]
    assert looked == [9]
    looked.clear()
    monkeypatch.setattr(asof_index, "ROWS_MAX", 0)
    assert found(3, 1) == [8, 9]
    assert looked == [9, 6]
