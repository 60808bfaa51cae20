"""The comparison with a file's own library notices what differs, and a package gives named files alone."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import parquet_files
from tests.compatibility.tables import Taken
from tests.public_files import doors
from tests.public_files.packages import Package, content
from tests.unit.test_grib import GRID, write_grib


def test_a_field_that_was_read_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_grib(path := tmp_path / "hours.grib", count=2)
    assert doors.grib(path, "t2m") == Taken(f"2 hours of {GRID.rows} × {GRID.cols} points")
    real = doors.read_grib

    def turned(*arguments: Any) -> Any:
        times, values = real(*arguments)
        return times, values[:, ::-1]

    monkeypatch.setattr(doors, "read_grib", turned)
    with pytest.raises(doors.Differs, match="instead of"):
        doors.grib(path, "t2m")
    monkeypatch.setattr(doors, "read_grib", lambda *arguments: tuple(each[:1] for each in real(*arguments)))
    with pytest.raises(doors.Differs, match="hours"):
        doors.grib(path, "t2m")


def test_a_column_that_was_read_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": [1.5, None], "b": ["x", "y"], "c": pa.array(np.array([1, 2], "datetime64[ns]"))})
    pq.write_table(table, path := tmp_path / "rows.parquet")
    said = "2 rows, columns: 1 as DOUBLE, 1 as STRING, 1 as UNIX_TIMESTAMP"
    assert doors.parquet(path, "") == Taken(said)
    monkeypatch.setattr(parquet_files, "read", lambda path: table.set_column(0, "a", pa.array([1.5, 0.0])))
    with pytest.raises(doors.Differs, match="column a"):
        doors.parquet(path, "")


def test_of_a_package_only_a_named_file_is_read(tmp_path: Path) -> None:
    package = Package("some", "1.0", "0" * 64)
    with tarfile.open(tmp_path / "some-1.0.tar.gz", "w:gz") as archive:
        for name, kind in (("some-1.0/data/a.grib", tarfile.REGTYPE), ("some-1.0/data/link", tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, 3 if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            archive.addfile(entry, io.BytesIO(b"abc"))
    assert content(package, "data/a.grib", tmp_path) == b"abc"
    for name in ("data/link", "data/b.grib", "../some-1.0/data/a.grib"):
        with pytest.raises(FileNotFoundError, match=r"some 1\.0 has no file"):
            content(package, name, tmp_path)
