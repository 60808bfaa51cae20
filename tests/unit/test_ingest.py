"""Ingest: files hold the right hours, a refresh writes only what is absent, and two at once take turns."""

from __future__ import annotations

import fcntl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.code.following import code_of
from almanac.errors import FeatureError, SourceError, Unavailable
from almanac.partitioning import Grid
from almanac.settings import Settings, load_settings
from features import files, grid_files
from features.grid import HISTORY_HOURS, VIEWS
from features.ingest import refresh
from features.sources import open_source
from pipelines.weather import weather

TINY = replace(weather, partitions=Grid(rows=6, cols=7, tile=4))
CELLS = 42
NOW = datetime(2026, 3, 10, 2, 40, tzinfo=UTC)
AS_OF = datetime(2026, 3, 10, 2, tzinfo=UTC)
HOURLY = ("cell_observation", "cell_history", "cell_neighbours")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, source_data="", source_seed=3)


def view(settings: Settings, name: str) -> pa.Table:
    folder = settings.features_dir / "weather" / name
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def stamps(settings: Settings) -> dict[str, int]:
    """The files as they lie, by inode: one that is replaced has another."""
    return {
        f"{path.parent.name}/{path.name}": path.stat().st_ino
        for path in (settings.features_dir / "weather").glob("*/*.parquet")
    }


def test_each_hour_of_the_window_has_a_row_for_each_cell(settings: Settings) -> None:
    done = refresh(TINY, settings, NOW, window=timedelta(hours=5))
    assert (done.as_of, done.clock_shift) == (AS_OF, timedelta(0))
    assert done.hours_written == 5  # 22 and 23 o'clock of the day before, then 0, 1 and 2
    assert done.rows == 5 * CELLS * len(HOURLY) + CELLS
    assert {name.split("/")[1] for name in stamps(settings)} == {
        "2026-03-09.parquet",
        "2026-03-10.parquet",
        "static.parquet",
    }
    for name in HOURLY:
        found = view(settings, name)
        assert found.column_names == ["cell_id", "event_timestamp", "created_timestamp", *VIEWS[name]]
        assert found.schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
        assert found["cell_id"].to_pylist() == list(range(CELLS)) * 5
        assert max(found["event_timestamp"].to_pylist()) == AS_OF
        assert len(set(found["event_timestamp"].to_pylist())) == 5
    assert view(settings, "cell_position").num_rows == CELLS


def test_the_files_hold_what_was_observed(settings: Settings) -> None:
    refresh(TINY, settings, NOW, window=timedelta(hours=3))
    source = open_source(TINY, settings)
    observed = source.window(AS_OF - timedelta(hours=2), AS_OF).values.reshape(-1)
    np.testing.assert_array_equal(view(settings, "cell_observation")["t2m"].to_numpy(), observed)
    day_before = source.window(AS_OF - timedelta(hours=26), AS_OF - timedelta(hours=24)).values.reshape(-1)
    np.testing.assert_array_equal(view(settings, "cell_history")["lag_24h"].to_numpy(), day_before)


def test_a_second_refresh_writes_nothing(settings: Settings) -> None:
    first = refresh(TINY, settings, NOW, window=timedelta(days=2))
    before = stamps(settings)
    again = refresh(TINY, settings, NOW, window=timedelta(days=2))
    assert (again.hours_written, again.rows, again.as_of) == (0, 0, first.as_of)
    assert stamps(settings) == before


def test_the_next_hour_rewrites_only_its_day(settings: Settings) -> None:
    refresh(TINY, settings, NOW, window=timedelta(days=2))
    before = stamps(settings)
    done = refresh(TINY, settings, NOW + timedelta(hours=1), window=timedelta(days=2))
    assert done.hours_written == 4
    changed = {name for name, inode in stamps(settings).items() if before.get(name) != inode}
    assert changed == {f"{name}/2026-03-10.parquet" for name in HOURLY}


def test_a_refresh_of_the_past_keeps_what_is_later(settings: Settings) -> None:
    refresh(TINY, settings, NOW, window=timedelta(hours=4))
    past = refresh(TINY, settings, NOW - timedelta(days=3), window=timedelta(hours=4))
    assert past.as_of == AS_OF - timedelta(days=3)
    moments = set(view(settings, "cell_observation")["event_timestamp"].to_pylist())
    assert {AS_OF, AS_OF - timedelta(days=3)} <= moments


def test_another_source_replaces_all_files(settings: Settings) -> None:
    refresh(TINY, settings, NOW, window=timedelta(days=2))
    other = load_settings(state_dir=settings.state_dir, source_data="", source_seed=4)
    refresh(TINY, other, NOW, window=timedelta(hours=2))
    found = view(other, "cell_observation")
    expected = open_source(TINY, other).window(AS_OF - timedelta(hours=1), AS_OF).values.reshape(-1)
    np.testing.assert_array_equal(found["t2m"].to_numpy(), expected)


def test_a_damaged_file_is_made_again(settings: Settings) -> None:
    refresh(TINY, settings, NOW, window=timedelta(hours=2))
    path = settings.features_dir / "weather" / "cell_history" / "2026-03-10.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert refresh(TINY, settings, NOW, window=timedelta(hours=2)).hours_written == 2
    assert view(settings, "cell_history").num_rows == 2 * CELLS


def test_files_of_another_grid_or_of_other_code_are_made_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(TINY, settings, NOW, window=timedelta(hours=2))
    assert refresh(TINY, settings, NOW, window=timedelta(hours=2)).rows == 0
    moved = replace(TINY, partitions=replace(TINY.partitions, north=57.0))
    assert refresh(moved, settings, NOW, window=timedelta(hours=2)).hours_written == 2
    assert max(view(settings, "cell_position")["latitude"].to_pylist()) == 57.0

    code = code_of((grid_files.__name__,))
    assert {"features.grid", "features.sources.grib", "features.grid_files"} <= set(code.modules)
    repaired = replace(code, modules={**code.modules, "features.sources.grib": "repaired"})
    monkeypatch.setattr(grid_files, "code_of", lambda roots: repaired)
    assert refresh(moved, settings, NOW, window=timedelta(hours=2)).hours_written == 2


def test_a_death_while_writing_leaves_the_old_files(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh(TINY, settings, NOW, window=timedelta(hours=2))
    before = stamps(settings)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grid_files.GridFiles, "_table", dies)
    with pytest.raises(KeyboardInterrupt):
        refresh(TINY, settings, NOW + timedelta(hours=1), window=timedelta(hours=2))
    assert stamps(settings) == before
    assert not list(settings.features_dir.rglob(".*"))


def test_refreshes_at_once_take_turns(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: refresh(TINY, settings, NOW, window=timedelta(hours=6)), range(4)))
    assert sorted(found.hours_written for found in done) == [0, 0, 0, 6]
    assert view(settings, "cell_neighbours").num_rows == 6 * CELLS


def test_a_lock_that_is_never_freed_is_named(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="locked by another process"), files.locked(tmp_path / "lock", 0.2):
            pass


def test_small_steps_give_the_same_rows(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refresh(TINY, settings, NOW, window=timedelta(hours=20))
    monkeypatch.setattr(grid_files, "CELL_HOURS_AT_ONCE_MAX", CELLS * 3)
    other = load_settings(state_dir=tmp_path / "other", source_data="", source_seed=3)
    refresh(TINY, other, NOW, window=timedelta(hours=20))
    for name in HOURLY:
        assert view(other, name).drop_columns("created_timestamp") == view(settings, name).drop_columns(
            "created_timestamp"
        )


def test_a_pipeline_without_source_needs_files_that_others_wrote(settings: Settings) -> None:
    with pytest.raises(FeatureError, match="no file is: write it"):
        refresh(replace(TINY, source=None, stream=None), settings, NOW, window=timedelta(hours=2))
    assert not list(settings.features_dir.rglob("*.parquet"))


def replay(tmp_path: Path, count: int) -> Settings:
    first = np.datetime64("2026-01-01T00:00", "us")
    moments = np.repeat(first + np.arange(count) * np.timedelta64(3600, "s"), CELLS)
    path = tmp_path / "short.parquet"
    pq.write_table(
        pa.table(
            {
                "cell_id": np.tile(np.arange(CELLS), count),
                "observed_at": pa.array(moments).cast(pa.timestamp("us", tz="UTC")),
                "t2m": np.full(count * CELLS, 280.0, np.float32),
            }
        ),
        path,
    )
    return load_settings(state_dir=tmp_path, source_data=f"weather={path}")


def test_too_little_history_is_named(tmp_path: Path) -> None:
    settings, end = replay(tmp_path, HISTORY_HOURS), datetime(2026, 1, 3, tzinfo=UTC)
    open_source(TINY, settings, now=end)  # the first use settles the clock: no shift
    with pytest.raises(SourceError, match=f"need {HISTORY_HOURS} hours of history"):
        refresh(TINY, settings, end, window=timedelta(hours=2))


def test_rows_begin_where_history_is_full(tmp_path: Path) -> None:
    end = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=HISTORY_HOURS + 2)
    settings = replay(tmp_path, HISTORY_HOURS + 3)
    shift = open_source(TINY, settings, now=end).clock_shift
    assert shift == timedelta(0)
    done = refresh(TINY, settings, end + timedelta(hours=9), window=timedelta(days=30))
    assert (done.as_of, done.hours_written) == (end, 3)  # an old watermark stays old
