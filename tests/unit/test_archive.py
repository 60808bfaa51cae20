"""The archive's files: every event once, whole or not at all, merged without a reader noticing."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.errors import FeatureError, Unavailable
from features import archive as archive_module
from features.archive import CLOSED_AFTER, KEPT, SMALL_FILES_MAX, SUPERSEDED_KEPT, Archive, Archived, archived_files
from features.archive_files import topic_in_names
from features.layout import view_dir

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
HOUR = datetime(2026, 11, 21, 13, tzinfo=UTC)
COLUMNS = {"cell_id": pa.int64(), "t2m": pa.float32()}


def archive(folder: Path) -> Archive:
    return Archive(folder / "archive", COLUMNS)


def event(offset: int, partition: int = 0, minute: int = 20, value: float = 280.0, topic: str = "t.events") -> Archived:
    moment = HOUR + timedelta(minutes=minute)
    return Archived(
        row={"cell_id": offset % 20, "event_timestamp": moment, "t2m": value},
        topic=topic,
        partition=partition,
        offset=offset,
        trace=f"trace-{offset}",
    )


def rows(folder: Path) -> list[tuple[str, int, int]]:
    """Where every archived row's event stood, as often as it is there."""
    tables = [pq.ParquetFile(path).read() for path in archived_files(folder, None, NOW + timedelta(days=9))]
    columns = ("kafka_topic", "kafka_partition", "kafka_offset")
    return sorted(tuple(row[name] for name in columns) for table in tables for row in table.to_pylist())


def files(folder: Path) -> list[str]:
    return [path.name for path in sorted((folder / "archive").glob("*/*.parquet"))]


def age(folder: Path, by: timedelta) -> None:
    for path in (folder / "archive").glob("*/*"):
        stamp = NOW.timestamp() - by.total_seconds()
        os.utime(path, (stamp, stamp))


def test_events_lie_in_their_hour_in_files_named_by_partition_and_offsets(tmp_path: Path) -> None:
    assert archive(tmp_path).write([event(7), event(9, minute=70), event(8), event(3, partition=1)], NOW) == 4
    found = {str(path.relative_to(tmp_path / "archive")) for path in (tmp_path / "archive").glob("*/*")}
    assert found == {
        "2026-11-21T13/t.events.p0.00000000000000000007-00000000000000000008.parquet",
        "2026-11-21T13/t.events.p1.00000000000000000003-00000000000000000003.parquet",
        "2026-11-21T14/t.events.p0.00000000000000000009-00000000000000000009.parquet",
    }
    (row,) = (
        pq.ParquetFile(archived_files(tmp_path, HOUR + timedelta(hours=1), NOW + timedelta(hours=1))[0])
        .read()
        .to_pylist()
    )
    assert row == {
        "cell_id": 9,
        "event_timestamp": HOUR + timedelta(minutes=70),
        "created_timestamp": NOW + timedelta(microseconds=1),
        "t2m": 280.0,
        "kafka_topic": "t.events",
        "kafka_partition": 0,
        "kafka_offset": 9,
        "trace": "trace-9",
    }


def test_an_event_is_archived_once_however_the_batches_are_cut_the_second_time(tmp_path: Path) -> None:
    events = [event(offset, minute=50 + offset % 20) for offset in range(40)]
    assert archive(tmp_path).write(events[:25], NOW) == 25
    assert archive(tmp_path).write(events[10:30], NOW) == 5
    assert archive(tmp_path).write([*events, event(5, topic="other")], NOW) == 11
    assert rows(tmp_path) == sorted([("t.events", 0, offset) for offset in range(40)] + [("other", 0, 5)])


def test_an_offset_within_the_range_of_a_file_that_lacks_it_is_news(tmp_path: Path) -> None:
    archive(tmp_path).write([event(1), event(9)], NOW)
    assert archive(tmp_path).write([event(5), event(9)], NOW) == 1
    assert rows(tmp_path) == [("t.events", 0, offset) for offset in (1, 5, 9)]


def test_a_kill_before_the_rename_leaves_nothing_and_the_batch_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            archive(tmp_path).write([event(1), event(2)], NOW)
    assert rows(tmp_path) == []
    assert archive(tmp_path).write([event(1), event(2)], NOW) == 2


def test_a_full_disk_is_something_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(pq, "write_table", full)
        with pytest.raises(Unavailable, match="No space left on device"):
            archive(tmp_path).write([event(1)], NOW)
    assert archive(tmp_path).write([event(1)], NOW) == 1


def test_a_damaged_file_is_put_aside_and_its_events_may_come_again(tmp_path: Path) -> None:
    archive(tmp_path).write([event(1)], NOW)
    path = Path(archived_files(tmp_path, None, NOW)[0])
    path.write_bytes(b"PAR1 broken")
    assert archive(tmp_path).write([event(1)], NOW) == 1
    assert path.with_suffix(".damaged").exists()
    assert rows(tmp_path) == [("t.events", 0, 1)]


def test_a_closed_hours_files_become_one_and_the_old_ones_stay_a_while_for_readers(tmp_path: Path) -> None:
    store = archive(tmp_path)
    for offset in range(5):
        store.write([event(offset), event(offset, partition=1)], NOW)
    age(tmp_path, CLOSED_AFTER - timedelta(seconds=1))
    assert store.tidy(NOW)["archive_files_merged"] == 0
    age(tmp_path, CLOSED_AFTER)
    assert store.tidy(NOW)["archive_files_merged"] == 10
    assert len(files(tmp_path)) == 12
    assert store.tidy(NOW)["archive_files_merged"] == 0  # nothing is merged twice
    age(tmp_path, SUPERSEDED_KEPT)
    store.tidy(NOW)
    assert files(tmp_path) == [f"t.events.p{p}.{0:020d}-{4:020d}.parquet" for p in (0, 1)]
    assert rows(tmp_path) == [("t.events", p, offset) for p in (0, 1) for offset in range(5)]
    assert store.write([event(3)], NOW) == 0


def test_many_small_files_of_a_busy_hour_are_merged_at_once(tmp_path: Path) -> None:
    store = archive(tmp_path)
    for offset in range(SMALL_FILES_MAX + 1):
        store.write([event(offset)], NOW)
    age(tmp_path, timedelta(0))
    assert store.tidy(NOW)["archive_files_merged"] == SMALL_FILES_MAX + 1


def test_old_hours_go(tmp_path: Path) -> None:
    store = archive(tmp_path)
    store.write([event(1), event(2, minute=90)], NOW)
    assert store.tidy(HOUR + KEPT + timedelta(hours=1))["archive_hours_dropped"] == 1
    assert rows(tmp_path) == [("t.events", 0, 2)]


class Killed(BaseException):
    """Stands for a kill -9 between two steps on disk."""


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(0, 25), st.integers(1, 8)), min_size=1, max_size=8),
    kill_after=st.integers(0, 6),
    merge_at=st.integers(0, 8),
)
def test_kills_anywhere_lose_and_double_nothing(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int]], kill_after: int, merge_at: int
) -> None:
    """Every batch is given until it was written whole, as the sink does; merging dies in between, too."""
    folder = tmp_path_factory.mktemp("archive")
    left = [kill_after]

    def counted(step: object) -> object:
        def acting(*given: object, **named: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return step(*given, **named)  # type: ignore[operator]

        return acting

    expected = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(archive_module, "CLOSED_AFTER", timedelta(0))
        patch.setattr(archive_module, "SUPERSEDED_KEPT", timedelta(0))
        for number, (first, size) in enumerate(batches):
            events = [event(offset, minute=offset * 7) for offset in range(first, first + size)]
            expected |= {("t.events", 0, offset) for offset in range(first, first + size)}
            for attempt in range(2):
                try:
                    archive(folder).write(events, NOW)
                    break
                except Killed:
                    assert attempt == 0
            if number >= merge_at:
                with suppress(Killed):
                    archive(folder).tidy(datetime.now(UTC) + timedelta(seconds=1))
        left[0] = 0  # no more kills
        archive(folder).tidy(datetime.now(UTC) + timedelta(seconds=2))
        archive(folder).tidy(datetime.now(UTC) + timedelta(seconds=3))
    assert rows(folder) == sorted(expected)


def test_an_event_at_the_place_of_one_of_a_deleted_topic_is_another_event(tmp_path: Path) -> None:
    first = [event(offset) for offset in range(10)]
    second = [event(offset, value=281.5) for offset in range(10)]  # the topic was made again: offsets begin anew
    assert archive(tmp_path).write(first, NOW) == 10
    assert archive(tmp_path).write(second[:6], NOW) == 6
    assert archive(tmp_path).write(second, NOW) == 4, "one file would have the name of another: nothing goes"
    assert archive(tmp_path).write(first + second, NOW) == 0
    expected = sorted([("t.events", 0, offset) for offset in range(10)] * 2)
    assert rows(tmp_path) == expected
    age(tmp_path, CLOSED_AFTER)
    archive(tmp_path).tidy(NOW)
    age(tmp_path, SUPERSEDED_KEPT)
    archive(tmp_path).tidy(NOW)
    assert rows(tmp_path) == expected
    assert len(files(tmp_path)) == 1
    assert archive(tmp_path).write([*second, *first], NOW) == 0


LONG_TOPICS = [
    "a" * 200,
    "a" * 249,
    "a" * 199 + "b",
    "../../outside",
    "/etc/x",
    "a\x00b",
    "ż" * 200,
    "\ud800",
    "..",
    "",
]


def test_a_topic_of_any_name_is_archived_in_its_folder_and_found_again(tmp_path: Path) -> None:
    """One of 200 characters, as an event may claim it, made a file's name too long, and that passed for a full disk."""
    events = [event(offset, topic=topic) for offset, topic in enumerate(LONG_TOPICS) if topic != "\ud800"]
    assert archive(tmp_path / "state").write(events, NOW) == len(events)
    assert archive(tmp_path / "state").write(events, NOW) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"state"}
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"archive"}
    assert sorted(rows(tmp_path / "state")) == sorted((each.topic, 0, each.offset) for each in events)
    names = {topic_in_names(topic) for topic in LONG_TOPICS}
    assert len(names) == len(LONG_TOPICS)
    assert all(topic_in_names(name) == name and len(name) <= 100 for name in names)


def test_files_of_a_long_topic_from_before_names_were_shortened_are_known_and_merged(tmp_path: Path) -> None:
    topic = "a" * 150
    archive(tmp_path).write([event(7, topic=topic)], NOW)
    (written,) = (tmp_path / "archive").glob("*/*.parquet")
    written.rename(written.with_name(written.name.replace(topic_in_names(topic), topic)))
    assert archive(tmp_path).write([event(7, topic=topic), event(8, topic=topic)], NOW) == 1
    age(tmp_path, CLOSED_AFTER)
    assert archive(tmp_path).tidy(NOW)["archive_files_merged"] == 2
    age(tmp_path, SUPERSEDED_KEPT)
    archive(tmp_path).tidy(NOW)
    assert rows(tmp_path) == [(topic, 0, 7), (topic, 0, 8)]
    assert len(files(tmp_path)) == 1


def test_only_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, said in ((errno.ENOSPC, "give its disk some space"), (errno.ENAMETOOLONG, "make .*longest writable")):
        failed = OSError(number, os.strerror(number), "longest")
        monkeypatch.setattr(Archive, "_write_file", lambda *_, failed=failed: (_ for _ in ()).throw(failed))
        with pytest.raises(Unavailable, match=said):
            archive(tmp_path).write([event(7)], NOW)


@pytest.mark.parametrize("view", ["../../outside", "/etc", "..", "", "a/b", "*", "a\x00b", "a" * 101, "\ud800", "a\n"])
def test_a_view_whose_name_is_no_folders_is_refused(view: str, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="cannot be the name of a folder"):
        view_dir(tmp_path, "weather", view)
    assert view_dir(tmp_path, "weather", "grid_history-1.a") == tmp_path / "weather" / "grid_history-1.a"
