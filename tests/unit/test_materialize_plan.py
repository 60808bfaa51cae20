"""What a materialization reads, decided from watermarks, files and what is asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.clock import HOUR
from almanac.errors import UsageError
from almanac.partitioning import Buckets, Grid
from almanac.settings import load_settings
from features.materialize.plan import BEGINNING, Asked, File, Shard, Watermark, cut, due, readings
from features.materialize.source import keys_between
from features.materialize.watermarks import new_token, sent_at
from jobs.materialize import asked_times, materialize_by_hand
from pipelines.weather import weather

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
SIX_HOURS = timedelta(hours=6)
EARLIER = File("old.parquet", NOON - HOUR)
LATER = File("new.parquet", NOON + timedelta(minutes=1))
MARK = Watermark(definition="d", through=NOON, files_at=NOON, token="t")


def shards(asked: Asked, held: dict[int, Watermark], tokens: dict[int, str], partitions: int = 4) -> list[Shard]:
    return due(asked, "view", "d", partitions, held, tokens)


def everywhere(mark: Watermark) -> dict[int, Watermark]:
    return dict.fromkeys(range(4), mark)


TOKENS = dict.fromkeys(range(4), "t")


def test_without_watermarks_all_that_has_not_expired_is_read() -> None:
    (shard,) = shards(Asked(until=NOON), {}, {})
    assert (shard.partitions, shard.since) == (range(4), None)
    (reading,) = readings(shard, [EARLIER, LATER], SIX_HOURS)
    assert (reading.files, reading.start, reading.end) == (("old.parquet", "new.parquet"), NOON - SIX_HOURS, NOON)
    assert readings(shard, [EARLIER], None)[0].start == BEGINNING
    assert readings(shard, [], None) == []


def test_behind_a_watermark_new_rows_and_changed_files_are_read() -> None:
    (shard,) = shards(Asked(until=NOON + HOUR), everywhere(MARK), TOKENS)
    known, changed = readings(shard, [EARLIER, LATER], SIX_HOURS)
    assert (changed.files, changed.start) == (("new.parquet",), NOON + HOUR - SIX_HOURS)
    assert (known.files, known.start, known.end) == (("old.parquet",), NOON, NOON + HOUR)


def test_files_after_a_changed_one_are_read_with_it_so_that_the_last_of_two_equal_rows_counts() -> None:
    (shard,) = shards(Asked(until=NOON + HOUR), everywhere(MARK), TOKENS)
    last = File("zoo.parquet", NOON - HOUR)
    known, changed = readings(shard, [EARLIER, LATER, last], SIX_HOURS)
    assert (known.files, changed.files) == (("old.parquet",), ("new.parquet", "zoo.parquet"))
    assert changed.start == NOON + HOUR - SIX_HOURS
    (whole,) = readings(shard, [LATER, EARLIER], SIX_HOURS)
    assert whole.files == ("new.parquet", "old.parquet")


def test_a_repeated_run_reads_nothing() -> None:
    (shard,) = shards(Asked(until=NOON), everywhere(MARK), TOKENS)
    assert readings(shard, [EARLIER], SIX_HOURS) == []
    assert [reading.files for reading in readings(shard, [EARLIER, LATER], SIX_HOURS)] == [("new.parquet",)]
    assert shards(Asked(until=NOON - HOUR), everywhere(MARK), TOKENS) == []  # more than is asked is there


@pytest.mark.parametrize(
    ("asked", "tokens", "definition"),
    [
        (Asked(until=NOON + HOUR, full=True), TOKENS, "d"),
        (Asked(until=NOON + HOUR), {}, "d"),
        (Asked(until=NOON + HOUR), dict.fromkeys(range(4), "of an older copy"), "d"),
        (Asked(until=NOON + HOUR), TOKENS, "changed"),
    ],
)
def test_everything_is_read_when_asked_or_when_the_values_are_gone_or_others(
    asked: Asked, tokens: dict[int, str], definition: str
) -> None:
    (shard,) = due(asked, "view", definition, 4, everywhere(MARK), tokens)
    assert (shard.since, shard.definition) == (None, definition)


def test_where_redis_forgets_rows_unchanged_ones_are_sent_again_in_time() -> None:
    """A partition without new rows is never read again by its watermark alone, and its keys would go."""
    asked, before = Asked(until=NOON + HOUR), NOON - SIX_HOURS

    def since(sent_at: datetime | None, sent_before: datetime | None) -> list[datetime | None]:
        mark = msgspec.structs.replace(MARK, sent_at=sent_at)
        return [shard.since for shard in due(asked, "view", "d", 4, everywhere(mark), TOKENS, sent_before)]

    assert since(before - HOUR, None) == [NOON], "nothing is forgotten"
    assert since(before, before) == [NOON], "sent lately"
    assert since(before - HOUR, before) == [None], "all is read and sent"
    assert since(None, before) == [None], "nobody knows when it was sent"


def test_a_token_says_when_all_rows_were_sent() -> None:
    assert sent_at(new_token(NOON)) == NOON
    assert sent_at(new_token(None)) is sent_at("0123456789abcdef") is None
    assert new_token(NOON) != new_token(NOON)


def test_a_killed_run_leaves_what_was_done() -> None:
    further = Watermark(definition="d", through=NOON + HOUR, files_at=LATER.changed_at, token="t")
    found = shards(Asked(until=NOON + HOUR), {0: further, 1: further, 2: MARK}, TOKENS)
    assert [(shard.partitions, shard.since) for shard in found] == [
        (range(2), NOON + HOUR),
        (range(2, 3), NOON),
        (range(3, 4), None),
    ]
    assert readings(found[0], [EARLIER, LATER], SIX_HOURS) == []


def test_a_time_given_by_hand_bypasses_watermarks() -> None:
    (shard,) = shards(Asked(until=NOON, since=NOON - 3 * HOUR), everywhere(MARK), TOKENS)
    (reading,) = readings(shard, [EARLIER, LATER], SIX_HOURS)
    assert (reading.start, reading.end, len(reading.files)) == (NOON - 3 * HOUR, NOON, 2)


@given(st.integers(0, 500), st.integers(1, 400), st.integers(0, 10**7), st.integers(1, 10**6), st.integers(1, 300))
def test_cut_shards_cover_each_partition_once(
    first: int, count: int, entities: int, most: int, shards_max: int
) -> None:
    whole = Shard(view="v", definition="d", first=first, last=first + count - 1, until=NOON)
    pieces = list(cut(whole, entities, most=most, shards_max=shards_max))
    assert [part for piece in pieces for part in piece.partitions] == list(whole.partitions)
    assert len(pieces) <= shards_max
    assert sum(piece.entities for piece in pieces) >= entities
    if len(pieces) < min(count, shards_max):
        assert entities <= most * len(pieces)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.data())
def test_keys_of_neighbouring_tiles_lie_where_they_are_looked_for(
    rows: int, cols: int, tile: int, data: st.DataObject
) -> None:
    grid = Grid(rows=rows, cols=cols, tile=tile)
    first = data.draw(st.integers(0, grid.count - 1))
    last = data.draw(st.integers(first, grid.count - 1))
    found = keys_between(grid, first, last)
    assert found is not None
    cells = [cell for partition in range(first, last + 1) for cell in grid.entities(partition)]
    assert found[0] <= min(cells) <= max(cells) <= found[1] < grid.cells
    assert found[1] - found[0] < len(cells) + 2 * tile * cols  # but for the ends of the first and the last row of tiles
    assert keys_between(Buckets(count=9), 0, 8) is None


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        ("yesterday", "", "--from 'yesterday' is no time"),
        ("", "2026-03-10T11:00", "--to '2026-03-10T11:00' is no time"),
        ("", "2026-03-10T12:01Z", "lies in the future"),
        ("2026-03-10T11:00Z", "2026-03-10T10:00Z", "lies after --to"),
    ],
)
def test_times_by_hand_are_refused_in_one_line(since: str, until: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        asked_times(since, until, NOON)


def test_times_by_hand() -> None:
    assert asked_times("", "", NOON) == (None, NOON)
    assert asked_times("2026-03-10T06:00Z", "2026-03-10T13:00+02:00", NOON) == (NOON - SIX_HOURS, NOON - HOUR)


def test_what_contradicts_itself_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="redis_url"):
        materialize_by_hand(weather, load_settings(state_dir=tmp_path), since="", until="", full=True)
    given = load_settings(state_dir=tmp_path, redis_url="redis://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"--full reads all .*give one of them"):
        materialize_by_hand(weather, given, since="2026-03-10T06:00Z", until="", full=True)
    assert list(tmp_path.iterdir()) == []
