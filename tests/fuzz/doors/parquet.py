"""The door of Parquet files that somebody delivers: pages, footers, schemas and rows that are mutated from valid ones.

What is read must be what pyarrow reads of the declared columns, put where each row says.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations
from features import parquet_files, parquet_footers, parquet_pages
from features.sources import parquet
from features.sources.parquet import read_parquet
from tests.fuzz import thrift
from tests.fuzz.reasons import Raises
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, OneByOne, Verdict

RAISES = Raises((parquet, parquet_files, parquet_footers, parquet_pages), ("SourceError", "error", "Damaged"))
RARE = {
    "parquet_pages.pages_of#4",  # a million pages
    "parquet_footers._byte#1",  # from here on: what Arrow's own reader of the footer refuses before
    "parquet_footers._value#1",
    "parquet_footers._value#2",
    "parquet_footers._varint#1",
}
"""Refusals that take more bytes than a fuzzer writes, or that only another Arrow would leave to us."""
GRID = Grid(rows=2, cols=3, tile=2)
OBSERVED = GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0))
NAMES = ("cell", "observed_at", "t2m")
HOURS = 4
UNREADABLE = "parquet.read_parquet#4"
"""Arrow's own refusals, which the source names; the first check is Arrow's reading of the footer."""
CODECS = ("none", "snappy", "gzip", "zstd", "lz4", "brotli")
TYPES = {
    "cell": (pa.int64(), pa.int32(), pa.uint8(), pa.int16(), pa.uint64(), pa.string(), pa.float64()),
    "observed_at": (
        *(pa.timestamp(unit, tz="UTC") for unit in ("s", "ms", "us", "ns")),
        pa.timestamp("ms", tz="Europe/Paris"),
        pa.timestamp("us"),
        pa.string(),
    ),
    "t2m": (pa.float32(), pa.float64(), pa.float16(), pa.int16(), pa.int64(), pa.decimal128(9, 3), pa.string()),
}


class Parquet(OneByOne):
    """The door."""

    reasons = RAISES.names - RARE
    memory_bytes_max = 256 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Parquet]:
        """A folder, and a reading or two, so that what Arrow takes once is not counted as growth."""
        self._folder, self._number = folder, 0
        for seed in range(20):
            self.send(Random(seed))
        yield self

    def send(self, random: Random) -> Verdict:
        """Another one each time."""
        data = _file(random)
        self._number += 1
        path = self._folder / f"{self._number}.parquet"  # that a file is sound is kept by its name, size and time
        path.write_bytes(data)
        with suppress(pa.ArrowException, OSError):
            _ask_statistics(parquet_files.footer(path))
        try:
            times, values = read_parquet(path, GRID, OBSERVED, "cell")
        except SourceError as error:
            if str(path) not in str(error):
                raise AssertionError(f"names no file: {error}") from error
            reason = _reason(error)
            return Verdict(reason, reason != UNREADABLE or _footer_reads(data))
        finally:
            path.unlink()
        _check(data, times, values)
        return Verdict(ACCEPTED, True)


def _reason(error: BaseException) -> str:
    """The first cause that is a place of the code's."""
    found, at = "", error
    while True:
        name = RAISES.of(at)
        found = name if name in RAISES.names - RARE else found
        if at.__context__ is None:
            return found or RAISES.of(error)
        at = at.__context__


def _footer_reads(data: bytes) -> bool:
    try:
        pq.read_metadata(pa.BufferReader(data))
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False
    return True


def _ask_statistics(metadata: Any) -> None:
    """What the reading of views asks of a footer: any of it would end the process where Arrow throws."""
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            known = metadata.row_group(group).column(place).statistics
            if known is not None and known.has_min_max:
                assert known.min_raw is not None


def _check(data: bytes, times: Any, values: Any) -> None:
    """Each value is that of the row of its cell and hour, as pyarrow reads it."""
    table = pq.ParquetFile(pa.BufferReader(data)).read(columns=list(NAMES))
    moments = table["observed_at"].cast(pa.timestamp("us")).to_numpy()
    numbers = table["t2m"].cast(pa.float32(), safe=False).to_numpy()
    hours = {moment: hour for hour, moment in enumerate(times)}
    if set(moments.tolist()) != set(times.tolist()):
        raise AssertionError("other hours than the file's")
    for cell, moment, number in zip(table["cell"].to_pylist(), moments, numbers, strict=True):
        read = values[hours[moment], cell // GRID.cols, cell % GRID.cols]
        if not np.array_equal(read, np.float32(number), equal_nan=True):
            raise AssertionError(f"cell {cell} at {moment} was read as {read}, and is {number}")


def _file(random: Random) -> bytes:
    data = _written(_table(random), random)
    match random.randrange(20):
        case 0:
            return data[: random.randrange(len(data))]
        case 1:
            at = random.randrange(len(data))
            return data[:at] + random.randbytes(random.choice((1, 1, 8))) + data[at + 1 :]
        case 2:
            at, to = random.randrange(len(data)), random.randrange(len(data))
            return data[:at] + data[to : to + random.choice((1, 9, 99))] + data[at:]
        case 3 | 4 | 5 | 6:
            return _another_footer(data, random)
        case 7 | 8 | 9 | 10 | 11:
            return _another_page(data, random)
        case 12:
            return data[:-8] + random.choice((0, 1, len(data) - 8, 1 << 31)).to_bytes(4, "little") + data[-4:]
    return data


def _table(random: Random) -> pa.Table:
    cells = np.tile(np.arange(GRID.cells), HOURS)
    hours = np.repeat(np.arange(HOURS), GRID.cells) * 3_600
    values = 280.0 + np.arange(len(cells)) % 9
    columns: dict[str, pa.Array] = {
        "cell": pa.array(cells),
        "observed_at": pa.array(hours, pa.timestamp("s", tz="UTC")),
        "t2m": pa.array(values),
    }
    table = pa.table(columns)
    for name, types in TYPES.items():
        if random.random() < 0.4:
            usual = types[: 1 + random.randrange(len(types))]
            table = _cast(table, name, random.choice(usual))
    match random.randrange(16):
        case 0:
            table = table.slice(0, random.randrange(len(table)))
        case 1:
            table = pa.concat_tables([table, table.slice(random.randrange(len(table)))])
        case 2:
            name = random.choice(NAMES)
            at = table.schema.get_field_index(name)
            holes = pa.array([random.random() < 0.9 for _ in range(len(table))])
            column = pa.chunked_array([pa.array(table[name].to_pylist(), table[name].type)])
            none = pa.scalar(None, column.type)
            table = table.set_column(at, name, pc.if_else(holes, column, none))
        case 3:
            table = table.drop_columns([random.choice(NAMES)])
        case 4:
            table = table.append_column(random.choice((*NAMES, "more")), table[random.choice(table.schema.names)])
        case 5 if pa.types.is_floating(table["t2m"].type):
            other = table.set_column(2, "t2m", pa.array(values + random.choice((0, 1)), pa.float64()))
            table = pa.concat_tables([_cast(table, "t2m", pa.float64()), other])
        case 6 if pa.types.is_integer(table["cell"].type):
            moved = cells.copy()
            moved[random.randrange(len(moved))] = random.randrange(GRID.cells + 2)
            table = table.set_column(0, "cell", pa.array(moved))
        case 7:
            table = table.take(pa.array(random.sample(range(len(table)), len(table))))
        case 8:
            nested = pa.array([[{"a": "x" * 9, "b": [1, None]}]] * len(table))
            table = table.append_column(random.choice(("nested", "t2m.x")), nested)
        case 9:
            name = random.choice(NAMES)
            column = table[name].combine_chunks().dictionary_encode()
            table = table.set_column(table.schema.get_field_index(name), name, column)
        case 10:
            table = table.slice(0, 0)
        case 12:  # a row stands in another one's place
            places = list(range(len(table)))
            places[random.randrange(len(places))] = random.randrange(len(places))
            table = table.take(pa.array(places))
        case 11:
            table = table.append_column("text", pa.array(["y" * 500] * len(table)))
    return table


def _cast(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, name, table[name].cast(kind))


def _written(table: pa.Table, random: Random) -> bytes:
    file = io.BytesIO()
    dictionaries = random.random() < 0.6
    options: dict[str, Any] = {
        "version": random.choice(("1.0", "2.4", "2.6")), "data_page_version": random.choice(("1.0", "2.0")),
        "compression": random.choice(CODECS), "use_dictionary": dictionaries,
        "write_statistics": random.random() < 0.7, "write_page_index": random.random() < 0.3,
        "write_page_checksum": random.random() < 0.2, "row_group_size": random.choice((None, 5, 12)),
        "data_page_size": random.choice((None, 10)), "store_schema": random.random() < 0.7,
        "use_byte_stream_split": not dictionaries and random.random() < 0.2 and _splits(table),
    }  # fmt: skip
    pq.write_table(table, file, **options)
    return file.getvalue()


def _splits(table: pa.Table) -> bool:
    return all(pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in table.schema.types)


def _another_footer(data: bytes, random: Random) -> bytes:
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    fields, _ = thrift.read(data, start)
    groups = next((value[1] for number, _, value in fields if number == 4), [])
    if random.random() < 0.05:
        next(field for field in fields if field[0] == 3)[2] = random.choice((1 << 40, -1, 1))
    if groups and random.random() < 0.05:
        chunks = next(field for field in groups[0] if field[0] == 1)[2][1]
        chunks[:] = chunks[: random.randrange(len(chunks))]
    target = random.choice(groups) if groups and random.random() < 0.7 else fields
    for _ in range(random.choice((1, 1, 2))):
        thrift.mutate(target, random)
    footer = thrift.write(fields)
    return data[:start] + footer + len(footer).to_bytes(4, "little") + data[-4:]


def _another_page(data: bytes, random: Random) -> bytes:
    """Another header of the first page of a column: of its old length, if it can be, so that what follows is found."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    if not metadata.num_row_groups:
        return data
    group = metadata.row_group(random.randrange(metadata.num_row_groups))
    chunk = group.column(random.randrange(min(3, metadata.num_columns)))
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset and random.random() < 0.5:
        start = chunk.dictionary_page_offset
    fields, end = thrift.read(data, start)
    match random.randrange(8):
        case 0:
            header = random.randbytes(end - start)
        case 1:  # it goes on to the end of the file
            header = b"\x18" + b"\xff\xff\xff\x7f"
        case 2:
            header = bytes((random.choice((0x1D, 0x1E, 0x1F, 0x18, 0x19, 0x1A, 0x1B)),)) + random.choice(
                (b"\xff" * 12, b"\x19" * 30, b"\xf9" * 30, b"\x01\x99\x99" * 9, b"\x16" * 4)
            )
        case 3:
            header = b"\x16" + b"\xff" * 12
        case _:
            thrift.mutate(fields, random)
            header = thrift.write(fields)
    return data[:start] + header + data[start + max(len(header), end - start) :]


DOOR = Parquet()
