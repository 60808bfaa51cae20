"""A footer whose columns' descriptions would end the process that asks pyarrow about them is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.errors import SourceError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations
from features import parquet_files
from features.sources.parquet import read_parquet
from tests.fuzz import thrift


def written(change: Callable[[Any], None]) -> bytes:
    """A file, the description of whose only column is another."""
    file = io.BytesIO()
    pq.write_table(pa.table({"cell": pa.array([1, 2, 3])}), file)
    data = file.getvalue()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    fields, _ = thrift.read(data, start)
    group = field(fields, 4)[2][1][0]
    change({"group": group, "chunk": field(group, 1)[2][1][0]})
    footer = thrift.write(fields)
    return data[:start] + footer + len(footer).to_bytes(4, "little") + data[-4:]


def field(fields: Any, number: int) -> Any:
    return next(one for one in fields if one[0] == number)


def described(found: Any) -> Any:
    return field(found["chunk"], 3)[2]


def histogram(found: Any) -> None:
    field(described(found), 16)[2][:] = [[3, thrift.LIST, [thrift.I64, [0, 1, 2]]]]


def text_size(found: Any) -> None:
    field(described(found), 16)[2][:] = [[1, thrift.I64, 9]]


def statistic(size: int) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        field(field(described(found), 12)[2], 6)[2] = b"x" * size

    return change


def another_type(found: Any) -> None:
    field(described(found), 1)[2] = 6


def no_column(found: Any) -> None:
    field(found["group"], 1)[2][1].clear()


def encrypted(found: Any) -> None:
    key = [2, thrift.STRUCT, [[1, thrift.LIST, [thrift.BINARY, [b"cell"]]]]]
    found["chunk"].append([8, thrift.STRUCT, [key]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(histogram, "it counts 3 levels, not 2", id="histogram"),
        pytest.param(text_size, "it says a size of texts, and is INT64", id="size"),
        pytest.param(statistic(0), "its least or greatest value has 0 bytes, not 8", id="empty"),
        pytest.param(statistic(3), "its least or greatest value has 3 bytes, not 8", id="short"),
        pytest.param(another_type, "its type is 6, and INT64 in the schema", id="type"),
        pytest.param(no_column, "row group 0 has 0 columns, the schema 1", id="columns"),
        pytest.param(encrypted, "it is encrypted", id="encrypted"),
    ],
)
def test_a_description_over_which_pyarrow_ends_the_process_is_refused(
    tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    path = tmp_path / "hostile.parquet"
    path.write_bytes(written(change))
    with pytest.raises(pa.ArrowInvalid, match=says):
        parquet_files.footer(path)


def test_what_is_not_changed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.parquet"
    path.write_bytes(written(lambda found: None))
    assert parquet_files.read(path)["cell"].to_pylist() == [1, 2, 3]


def test_a_column_that_is_twice_there_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    one = pa.array([1])
    columns = [one, one.cast(pa.timestamp("s", tz="UTC")), one.cast(pa.float32()), one]
    pq.write_table(pa.Table.from_arrays(columns, ["cell", "observed_at", "t2m", "cell"]), path)
    observed = GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0))
    with pytest.raises(SourceError, match="more than one column cell: give each once"):
        read_parquet(path, Grid(rows=1, cols=1, tile=1), observed, "cell")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.parquet"
    path.write_bytes(written(lambda found: None).replace(b"cell", b"ce\xff\xff"))
    with pytest.raises(pa.ArrowInvalid):
        parquet_files.footer(path)


def test_a_text_that_is_not_utf_8_is_refused_by_its_column(tmp_path: Path) -> None:
    """A page has no checksum unless its writer gave it one."""
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    texts = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xc3\x28"))
    pq.write_table(pa.table({"key": [1], "label": texts}), path := tmp_path / "a.parquet")
    with pytest.raises(pa.ArrowInvalid, match=r"column label: .*UTF8"):
        parquet_files.read(path)
    with pytest.raises(pa.ArrowInvalid, match=r"column label: .*UTF8"):
        list(parquet_files.tables(path, ["label"], 10))
    assert parquet_files.read(path, ["key"]).num_rows == 1


def test_a_time_zone_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    moments = pa.array([1], pa.timestamp("us", tz="Europe/Zurich"))
    pq.write_table(pa.table({"at": moments}), path := tmp_path / "a.parquet", store_schema=True)
    schema = base64.b64decode(pq.read_metadata(path).metadata[b"ARROW:schema"])
    assert schema.count(b"Europe/Zurich") == 1
    other = base64.b64encode(schema.replace(b"Europe/Zurich", b"Europe/\xffurich"))
    path.write_bytes(path.read_bytes().replace(base64.b64encode(schema), other))
    with pytest.raises(pa.ArrowInvalid, match="a name or time zone that is no UTF-8"):
        parquet_files.read(path)
