"""Files that somebody else keeps up: how far they reach, whom they know, and what is refused before a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from almanac.errors import FeatureError
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Output, Pipeline, days, hours
from features.tables import Table, check, check_keys, entities, watermark

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MACHINES = Pipeline(
    name="machines",
    entity="machine",
    partitions=Buckets(count=4, keys="integer"),
    outputs=(Output(name="wear"),),
    features="machines_v1",
    model="machines@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=days(2)),
)
NAMED = replace(MACHINES, partitions=Buckets(count=4))


def frame(rows: list[tuple[Any, int, float]]) -> pd.DataFrame:
    """Rows of (machine, hours before noon, vibration)."""
    return pd.DataFrame(
        {
            "machine": [key for key, _, _ in rows],
            "event_timestamp": pd.to_datetime([NOON - timedelta(hours=back) for _, back, _ in rows], utc=True),
            "vibration": [value for _, _, value in rows],
            "running": True,
        }
    )


def table(folder: Path, name: str, rows: pd.DataFrame, **changes: Any) -> Table:
    rows.to_parquet(folder / f"{name}.parquet", index=False, coerce_timestamps="us")
    fields: dict[str, Any] = {
        "view": name,
        "path": str(folder / f"{name}.parquet"),
        "key": "machine",
        "moment": "event_timestamp",
        "created": None,
        "features": ("vibration", "running"),
        "ttl": timedelta(hours=3),
    }
    return Table(**{**fields, **changes})


def known(tables: list[Table], pipeline: Pipeline = MACHINES, as_of: datetime = NOON) -> list[Any]:
    return [key for keys in entities(tables, pipeline, as_of) for key in keys]


def test_the_watermark_is_the_newest_row_at_or_before_the_cutoff(tmp_path: Path) -> None:
    sensors = table(tmp_path, "sensors", frame([(1, 5, 1.0), (1, 2, 1.0), (2, 0, 1.0)]))
    places = table(tmp_path, "places", frame([(1, 1, 1.0)]), ttl=None)
    assert watermark([sensors, places], MACHINES, NOON) == NOON
    # The later row is not seen, and a view without a ttl does not count beside one that has it.
    assert watermark([sensors, places], MACHINES, NOON - timedelta(minutes=1)) == NOON - timedelta(hours=2)
    assert watermark([places], MACHINES, NOON) == NOON - timedelta(hours=1)
    with pytest.raises(FeatureError, match="bring the files of pipeline machines up to date"):
        watermark([sensors], MACHINES, NOON - timedelta(hours=6))


def test_the_watermark_keeps_its_microseconds(tmp_path: Path) -> None:
    rows = frame([(1, 0, 1.0)])
    rows["event_timestamp"] -= pd.Timedelta(microseconds=1)
    assert watermark([table(tmp_path, "s", rows)], MACHINES, NOON) == NOON - timedelta(microseconds=1)


def test_entities_are_those_that_every_view_knows_and_has_not_forgotten(tmp_path: Path) -> None:
    sensors = table(tmp_path, "sensors", frame([(30, 0, 1.0), (4, 3, 1.0), (5, 4, 1.0), (6, 0, 1.0), (6, 1, 1.0)]))
    places = table(tmp_path, "places", frame([(30, 99, 1.0), (4, 99, 1.0), (5, 99, 1.0), (7, 99, 1.0)]), ttl=None)
    assert known([sensors]) == [4, 6, 30]  # 5 is older than the ttl; each once, ascending
    assert known([sensors, places]) == [4, 30]
    assert known([sensors], as_of=NOON - timedelta(hours=1)) == [4, 5, 6]


def test_keys_may_be_any_text(tmp_path: Path) -> None:
    rows = frame([("Łódź 'x' \"y\"", 0, 1.0), ("b", 0, 1.0)])
    assert known([table(tmp_path, "s", rows)], NAMED) == ["b", "Łódź 'x' \"y\""]
    with pytest.raises(FeatureError, match="is empty or longer than 256 bytes"):
        known([table(tmp_path, "s", frame([("", 0, 1.0)]))], NAMED)


def test_several_files_are_one_table(tmp_path: Path) -> None:
    table(tmp_path, "a", frame([(1, 0, 1.0)]))
    table(tmp_path, "b", frame([(2, 0, 1.0)]))
    both = replace(table(tmp_path, "a", frame([(1, 0, 1.0)])), path=str(tmp_path / "*.parquet"))
    check([both], MACHINES)
    assert known([both]) == [1, 2]


def without_zone(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(event_timestamp=rows["event_timestamp"].dt.tz_localize(None))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns="vibration"), r"s\.parquet has no column vibration, which view s reads"),
        (lambda rows: rows.drop(columns="machine"), "has no column machine"),
        (
            lambda rows: rows.assign(vibration="high"),
            r"column vibration is .*string.*, view s declares DOUBLE",
        ),
        (lambda rows: rows.assign(machine="m"), r"column machine is .*string.*, the declaration has whole numbers"),
        (lambda rows: rows.assign(machine=1.0), "column machine is double, the declaration has whole numbers"),
        (without_zone, r"column event_timestamp has times without a time zone: write UTC"),
        (lambda rows: rows.assign(event_timestamp="2026"), "column event_timestamp is .*string.*, expected a time"),
    ],
)
def test_a_file_of_another_schema_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(FeatureError, match=said) as caught:
        check([table(tmp_path, "s", change(frame([(1, 0, 1.0)])))], MACHINES)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "s.parquet") in str(caught.value)


def test_nanoseconds_absent_files_and_what_is_no_parquet_are_refused(tmp_path: Path) -> None:
    fine = table(tmp_path, "s", frame([(1, 0, 1.0)]))
    frame([(1, 0, 1.0)]).to_parquet(fine.path, index=False)
    with pytest.raises(FeatureError, match="column event_timestamp has nanoseconds"):
        check([fine], MACHINES)
    Path(fine.path).write_bytes(b"id,vibration\n1,2\n")
    with pytest.raises(FeatureError, match="is not a Parquet file"):
        check([fine], MACHINES)
    Path(fine.path).unlink()
    with pytest.raises(FeatureError, match="where no file is: write it"):
        check([fine], MACHINES)


def test_rows_without_a_key_or_twice_are_refused(tmp_path: Path) -> None:
    nameless = table(tmp_path, "s", frame([("a", 0, 1.0), (None, 0, 1.0), (None, 99, 1.0)]))
    with pytest.raises(FeatureError, match="1 rows of view s have no machine: drop them"):
        check_keys([nameless], NOON)
    twice = frame([(1, 0, 1.0), (1, 0, 2.0), (2, 0, 1.0), (3, 99, 1.0), (3, 99, 1.0)])
    with pytest.raises(FeatureError, match=r"has two rows of one machine and event_timestamp \(1\)"):
        check_keys([table(tmp_path, "t", twice)], NOON)
    twice["written"] = pd.to_datetime([NOON + timedelta(minutes=n) for n in range(5)], utc=True)
    check_keys([table(tmp_path, "t", twice, created="written")], NOON)
    check_keys([table(tmp_path, "u", frame([(1, 0, 1.0), (1, 1, 1.0)]))], NOON)


def test_labels_are_what_their_view_declares_or_refused_by_row(tmp_path: Path) -> None:
    rows = frame([(1, 0, 1.0), (2, 0, 15.9), (3, 1, 3.0)])
    found = table(tmp_path, "s", rows, kinds={"vibration": "INT64"})
    asked: dict[str, Any] = {"until": NOON + timedelta(hours=2), "rows_max": 9}
    with pytest.raises(FeatureError, match=r"s.*\.parquet, row 2: column vibration has 15\.9, declared is INT64"):
        found.rows(["vibration"], since=NOON - timedelta(hours=2), **asked)
    rows["vibration"] = [1.0, 2.0, 3.0]
    whole = table(tmp_path, "t", rows, kinds={"vibration": "INT64"})
    assert whole.rows(["vibration"], since=NOON - timedelta(hours=2), **asked)["vibration"].to_pylist() == [3, 1, 2]


def test_rows_of_a_time_that_are_whole(tmp_path: Path) -> None:
    rows = frame([(2, 1, 1.0), (1, 1, 2.0), (1, 0, float("nan")), (1, 9, 3.0), (1, -1, 4.0)])
    rows["vibration"] = rows["vibration"].astype(object).where(rows["vibration"].notna(), None).astype("Float64")
    found = table(tmp_path, "s", rows)
    since = NOON - timedelta(hours=2)
    got = found.rows(["vibration"], since=since, until=NOON, rows_max=2)
    assert got.to_pydict()["machine"] == [1, 2]
    assert got.to_pydict()["vibration"] == [2.0, 1.0]
    with pytest.raises(FeatureError, match="more than 1 rows since"):
        found.rows(["vibration"], since=since, until=NOON, rows_max=1)
