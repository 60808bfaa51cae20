"""What a small Parquet file may unpack to: undeclared columns are not read, and declared ones within a budget."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from almanac.errors import DataError, SourceError
from almanac.partitioning import Buckets
from features import archive_files, parquet_budget, parquet_files, schemas
from features.asof import Files, View, latest
from features.parquet_pages import DATA, Damaged, Page, pages_of
from features.sources.baskets import read_lines
from pipelines.shop import shop
from tests.generations import bucket_pipeline

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ROWS = 20_000
MEBIBYTE = 1 << 20
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
    table = lines(500).drop_columns([item]).append_column(item, repeated("x" * 1_000_000, 500))
    pq.write_table(table, path)
    assert path.stat().st_size < 2_000_000  # and 500 MB of items
    with pytest.raises(SourceError, match=rf"{item} has a text of 1,000,000 bytes, more than 65,536: correct it"):
        read(path)


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few kilobytes with one text of 100 KB, to which 20,000 rows refer: 2 GB."""
    path = tmp_path_factory.mktemp("bomb") / "notes.parquet"
    at = pa.array([NOW] * ROWS, pa.timestamp("us", "UTC"))
    pq.write_table(
        pa.table({"k": range(ROWS), "at": at, "note": repeated("x" * 100_000, ROWS)}), path, compression="zstd"
    )
    return path


def joined(path: Path) -> object:
    view = View(name="v", source=Files(paths=(str(path),)), keys={"k": "k"}, timestamp="at", features={"note": "note"})
    return list(latest(view, NOW - timedelta(days=1), NOW))


READERS: dict[str, Callable[[Path], object]] = {
    "whole": parquet_files.read,
    "in parts": lambda path: list(parquet_files.tables(path, ["note"], 1_000)),
    "by DuckDB": lambda path: parquet_files.relation([path], ["note"]),
    "by DuckDB, in capitals": lambda path: parquet_files.relation([path], ["NOTE"]),
    "as a dataset": lambda path: parquet_files.dataset([str(path)], ["note"]),
    "all its bytes": lambda path: parquet_files.read(path.read_bytes()),
    "for a join": joined,
    "to say which row is wrong": lambda path: schemas._look_through(str(path), "note", "STRING", None),
    "from the archive": archive_files.read,
    "from another machine": lambda path: parquet_files.read(path, filesystem=LocalFileSystem()),
}


@pytest.mark.parametrize("how", READERS)
def test_a_text_that_repeats_for_each_row_is_refused_by_every_reader(bomb: Path, how: str) -> None:
    assert bomb.stat().st_size < 100_000
    before, pool = pa.total_allocated_bytes(), pa.default_memory_pool()
    said = r"row group 0 unpacks to 2,0[0-9,]+ bytes, 2,0[0-9,]+ of them column note, more than 1,073,741,824 "
    with pytest.raises(DataError, match=said):
        READERS[how](bomb)
    assert (pool.max_memory() or 0) - before < 700 * MEBIBYTE
    assert parquet_files.read(bomb, ["k", "at"]).num_rows == ROWS


def nested(texts: pa.Array) -> dict[str, pa.Array]:
    """Texts as they are, in lists, structures and maps."""
    offsets = pa.array(range(len(texts) + 1), pa.int32())
    keys = pa.array([str(number) for number in range(len(texts))])
    return {
        "text": texts,
        "list": pa.ListArray.from_arrays(offsets, texts),
        "structure": pa.StructArray.from_arrays([texts], ["inner"]),
        "map": pa.MapArray.from_arrays(offsets, keys, texts),
    }


@pytest.mark.parametrize("kind", ["text", "list", "structure", "map"])
def test_repeated_texts_are_weighed_wherever_they_lie_and_only_as_long_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "texts.parquet"
    monkeypatch.setattr(parquet_budget, "SMALL_BYTES_MAX", 4 * MEBIBYTE)
    monkeypatch.setattr(parquet_budget, "NEAR_BYTES", 0)
    monkeypatch.setattr(parquet_budget, "FILE_TIMES_MAX", 0)
    one_long = pa.array([0] * 10_000 + [1], pa.int32())
    good = nested(pa.DictionaryArray.from_arrays(one_long, pa.array(["short", "x" * 100_000])).dictionary_decode())
    pq.write_table(pa.table({"c": good[kind]}), path)
    assert parquet_files.read(path)["c"].combine_chunks().equals(good[kind])
    bad = nested(repeated("x" * 1_000, 10_000).dictionary_decode())
    pq.write_table(pa.table({"c": bad[kind]}), path)
    with pytest.raises(DataError, match=r"more than 4,194,304 for a file of this size: write smaller row groups"):
        parquet_files.read(path)


def test_texts_that_go_on_from_the_one_before_are_weighed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "texts.parquet"
    monkeypatch.setattr(parquet_budget, "SMALL_BYTES_MAX", 4 * MEBIBYTE)
    monkeypatch.setattr(parquet_budget, "NEAR_BYTES", 0)
    monkeypatch.setattr(parquet_budget, "MEASURED_BYTES", MEBIBYTE)

    def write(texts: list[str]) -> None:
        pq.write_table(pa.table({"c": texts}), path, use_dictionary=False, column_encoding={"c": "DELTA_BYTE_ARRAY"})

    write([f"customer-{number:06}" for number in range(20_000)])
    assert parquet_files.read(path).num_rows == 20_000
    write(["x" * 10_000] * 2_000)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="column c, more than 4,194,304 for a file of this size"):
        parquet_files.read(path)


def test_counts_in_place_of_equal_numbers_are_weighed_as_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"n": [7] * 1_000_000, "nothing": pa.nulls(1_000_000, pa.float64())}), path)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(parquet_budget, "SMALL_BYTES_MAX", 10_000_000)
    for name in ("n", "nothing"):
        with pytest.raises(DataError, match=rf"12,000,000 of them column {name}, more than 10,000,000"):
            parquet_files.read(path, [name])


def test_a_file_may_take_a_multiple_of_its_own_size_whole_and_a_row_group_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.parquet"
    pq.write_table(lines(), path, row_group_size=5_000)
    monkeypatch.setattr(parquet_budget, "FILE_BYTES_MAX", 1_000_000)
    with pytest.raises(SourceError, match=r"unpacks to [0-9,]+ bytes, .* more than 1,000,000 .*: cut it"):
        read(path)
    names = pq.read_schema(path).names
    assert sum(table.num_rows for table in parquet_files.tables(path, names, 1_000)) == ROWS  # it is in parts
    monkeypatch.setattr(parquet_budget, "GROUP_BYTES_MAX", 10_000)
    parquet_files._seen.clear()
    with pytest.raises(SourceError, match=r"row group 0 unpacks to .* more than 10,000 "):
        read(path)
    with pytest.raises(DataError, match=r"row group 0 unpacks to .* more than 10,000 "):
        next(parquet_files.tables(path, names, 1_000))


def test_pages_that_say_more_than_the_footer_are_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "numbers.parquet"
    table = pa.table({"n": range(10_000)}, schema=pa.schema([pa.field("n", pa.int64(), nullable=False)]))
    pq.write_table(table, path, use_dictionary=False, compression="zstd")
    data, told = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    honest, lie = varint(80_000), varint(1_000_000)
    assert data.count(honest) >= 1
    assert len(honest) == len(lie)
    path.write_bytes(data.replace(honest, lie, 1))
    monkeypatch.setattr(parquet_budget, "SMALL_BYTES_MAX", 500_000)
    monkeypatch.setattr(parquet_budget, "FILE_TIMES_MAX", 0)
    assert told < 100_000
    with pytest.raises(DataError, match=r"row group 0 unpacks to 1,000,000 bytes, .* more than 500,000"):
        parquet_files.read(path)


def varint(number: int) -> bytes:
    """A number as a page's header has it."""
    number, parts = number << 1, []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


SIZES = b"\x15\x00\x15\x14\x15\x14"  # a page of data, 10 bytes, 10 bytes
VALUES = b"\x2c\x15\x0a\x15\x00\x15\x06\x15\x06\x00"  # five of them, plain


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (SIZES + VALUES + b"\x00", None),
        (SIZES + VALUES[:-1] + b"\x1c\x18\x03abc\x00\x00\x00", None),  # statistics
        (SIZES[:2] + b"\x15\x80\x80\x80\x80\x10" + SIZES[4:] + VALUES + b"\x00", "for a size or number"),
        (
            SIZES[:2] + b"\x16\x14" + SIZES[4:] + VALUES + b"\x00",
            "None for a size",
        ),  # of 64 bits
        (SIZES[:2] + b"\x15\x13" + SIZES[4:] + VALUES + b"\x00", "-10 for a size"),
        (SIZES + b"\x05\x04\x14" + VALUES + b"\x00", "field 2 twice"),
        (SIZES + b"\x00", "does not say what it holds"),
        (SIZES + b"\x18\x7f", "no whole header"),
        (SIZES + b"\x2c" + b"\x1c" * 50, "nested more than 8 deep"),
        (SIZES + b"\x29" + b"\x19" * 50, "nested more than 8 deep"),
        (SIZES + b"\x15" + b"\xff" * 20, "more than 64 bits"),
        (SIZES + b"\x1e", "a value of type 14"),
        (SIZES[:4] + b"\x15\x80\x01" + VALUES + b"\x00", "its last page ends after byte"),
    ],
)
def test_a_page_is_read_by_its_own_header_and_strictly(header: bytes, why: str | None) -> None:
    data = b"PAR1" + header + b"\0" * 10
    file = pa.BufferReader(data)
    if why is None:
        assert list(pages_of(file, 4, len(data), 3)) == [Page(DATA, 10, 5, 0)]
        return
    with pytest.raises(Damaged, match=why):
        list(pages_of(file, 4, len(data), 3))


def test_a_file_whose_pages_hold_fewer_values_than_its_footer_says_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"n": range(64)}), path, use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x2c\x15\x80\x01", b"\x2c\x15\xfe\x00", 1))
    with pytest.raises(pa.ArrowInvalid, match="column n, row group 0: its pages hold 63 values, the footer says 64"):
        parquet_files.read(path)


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "brotli", "lz4", "none"])
@pytest.mark.parametrize("pages", ["1.0", "2.0"])
def test_what_writers_write_is_read_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, pages: str
) -> None:
    path = tmp_path / "good.parquet"
    query = (
        "SELECT i, 'key-' || (i % 97) AS k, [i % 7, NULL] AS l, ['a' || (i % 5), 'b'] AS ls, "
        "{'a': i, 'b': 't' || i} AS s, (i / 3.0)::DECIMAL(20, 3) AS d, MAP {'x': 'y' || i} AS m, "
        "CASE WHEN i % 3 > 0 THEN i END AS n FROM range(3000) r(i)"
    )
    monkeypatch.setattr(parquet_budget, "NEAR_BYTES", 0)
    monkeypatch.setattr(parquet_budget, "SMALL_BYTES_MAX", 3 * MEBIBYTE)
    with duckdb.connect() as connection:
        table = connection.sql(query).to_arrow_table()
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, PARQUET_VERSION V{pages[0]})")
    assert parquet_files.read(path).equals(pq.ParquetFile(path).read())
    for dictionary in (True, False):
        pq.write_table(
            table, path, compression=compression, data_page_version=pages, use_dictionary=dictionary, row_group_size=700
        )  # fmt: skip
        assert parquet_files.read(path).equals(pq.ParquetFile(path).read())


def test_a_footer_of_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.parquet"
    pq.write_table(lines(100), path)
    monkeypatch.setattr(parquet_files, "FOOTER_BYTES_MAX", 100)
    with pytest.raises(SourceError, match=r"its footer has [0-9,]+ bytes, more than 100"):
        read(path)
