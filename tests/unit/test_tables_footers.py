"""What footers tell of a view's rows is what its rows say, and where they cannot tell, rows are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.clock import micros_of
from features.tables_footers import complete, newest

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOURS = [0, 1, 2, 3, 4, 5, 6, 7]


def written(path: Path, *, unit: str = "us", zone: str | None = "UTC", statistics: bool = True) -> str:
    """Row groups of two rows, an hour each from eight hours before noon on; the fourth has no key."""
    moments = [NOON - timedelta(hours=8 - hour) for hour in HOURS]
    naive = pa.array([moment.replace(tzinfo=None) for moment in moments], pa.timestamp(unit))
    stamps = naive if zone is None else naive.cast(pa.timestamp(unit, zone))
    keys = pa.array([1, 2, 3, None, 5, 6, 7, 8], pa.int64())
    table = pa.table({"k": keys, "ts": stamps, "x": [float(hour) for hour in HOURS]})
    pq.write_table(table, path, row_group_size=2, write_statistics=statistics)
    return str(path)


def at(hours: float) -> int:
    return micros_of(NOON - timedelta(hours=8) + timedelta(hours=hours))


@pytest.mark.parametrize(
    ("until", "told"), [(7, 7), (9, 7), (5.5, 5), (3, 3), (1, 1), (-1, None), (4.5, None), (0, None)]
)
def test_the_newest_row_is_told_unless_a_row_group_lies_on_both_sides(
    tmp_path: Path, until: float, told: int | None
) -> None:
    file = written(tmp_path / "a.parquet")
    found = newest([file], "v", "ts", NOON - timedelta(hours=8) + timedelta(hours=until))
    assert found == (None if told is None else at(told))


@pytest.mark.parametrize("changes", [{"zone": None}, {"unit": "ns"}, {"statistics": False}])
def test_what_is_not_exact_is_not_told(tmp_path: Path, changes: dict[str, object]) -> None:
    assert newest([written(tmp_path / "a.parquet", **changes)], "v", "ts", NOON) is None  # type: ignore[arg-type]


def test_of_several_files_one_that_does_not_tell_is_enough(tmp_path: Path) -> None:
    told, not_told = written(tmp_path / "a.parquet"), written(tmp_path / "b.parquet", statistics=False)
    assert newest([told], "v", "ts", NOON) == at(7)
    assert newest([told, not_told], "v", "ts", NOON) is None


def test_a_column_is_complete_only_if_every_row_group_says_so(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet")
    assert complete([file], "v", "x")
    assert not complete([file], "v", "k")
    assert not complete([file], "v", "absent")
    assert not complete([file, written(tmp_path / "b.parquet", statistics=False)], "v", "x")
