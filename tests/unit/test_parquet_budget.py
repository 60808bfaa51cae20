"""What a small Parquet file may unpack to: undeclared columns are not read, and declared ones within a budget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.errors import SourceError
from almanac.partitioning import Buckets
from features import parquet_budget
from features.parquet_budget import over_budget
from features.sources.baskets import read_lines
from pipelines.shop import shop
from tests.generations import bucket_pipeline

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ROWS = 20_000
MANY = 200_000
BUCKETS = bucket_pipeline("budget").partitions


def lines(count: int = ROWS, **more: pa.Array) -> pa.Table:
    names = shop.source.columns  # type: ignore[union-attr]
    at = [NOW - timedelta(days=9, seconds=number) for number in range(count)]
    return pa.table(
        {
            names.entity: pa.array([f"c{number % 50}" for number in range(count)]),
            names.item: pa.array([f"i{number % 30}" for number in range(count)]),
            names.quantity: pa.array([1.0] * count), names.price: pa.array([2.5] * count),
            names.time: pa.array(at, pa.timestamp("us", "UTC")), **more,
        }
    )  # fmt: skip


def read(path: Path) -> int:
    assert isinstance(BUCKETS, Buckets)
    return read_lines(path, shop.source, BUCKETS, NOW).believed.lines.num_rows  # type: ignore[arg-type]


def repeated(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))


def test_what_nobody_declared_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "lines.parquet"
    pq.write_table(lines(note=repeated("x" * 100_000, ROWS)), path, compression="zstd")
    assert path.stat().st_size < 1_000_000  # and 2 GB of notes
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    assert read(path) > 0
    assert (pool.max_memory() or 0) - before < 500_000_000


def test_a_key_that_repeats_a_huge_text_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    path, item = tmp_path / "lines.parquet", shop.source.columns.item  # type: ignore[union-attr]
    table = lines().drop_columns([item]).append_column(item, repeated("x" * 1_000_000, ROWS))
    pq.write_table(table, path)
    assert path.stat().st_size < 2_000_000  # and 20 GB of items
    with pytest.raises(SourceError, match=rf"{item} has a text of 1,000,000 bytes, more than 65,536: correct it"):
        read(path)


def test_declared_columns_that_unpack_to_too_much_are_refused_by_the_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.parquet"
    pq.write_table(lines(), path, row_group_size=5_000)
    monkeypatch.setattr(parquet_budget, "FILE_BYTES_MAX", 100_000)
    with pytest.raises(SourceError, match=r"unpack to [0-9,]+ bytes, more than 100,000: cut the file"):
        read(path)
    monkeypatch.setattr(parquet_budget, "GROUP_BYTES_MAX", 10_000)
    with pytest.raises(SourceError, match=r"row group 0 of .* more than 10,000: write smaller row groups"):
        read(path)


def test_row_groups_count_one_by_one_where_a_file_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.parquet"
    pq.write_table(pa.table({"k": list(range(MANY)), "x.y": [1.0] * MANY}), path, row_group_size=10_000)
    metadata = pq.read_metadata(path)
    monkeypatch.setattr(parquet_budget, "FILE_BYTES_MAX", 100_000)
    assert over_budget(metadata, ["k"], whole=False) is None
    assert over_budget(metadata, ["k"], whole=True) is not None
    assert over_budget(metadata, ["absent"], whole=True) is None
    monkeypatch.setattr(parquet_budget, "GROUP_BYTES_MAX", 10_000)
    assert "row group 0 of k" in str(over_budget(metadata, ["k"], whole=False))
