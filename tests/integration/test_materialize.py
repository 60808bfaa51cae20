"""Materialization on real Postgres, Redis and files: only what is new, resumed after a kill, refused in one line."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

import features.materialize.run as module
from almanac.clock import HOUR
from almanac.errors import FeatureError, Unavailable
from features.materialize.plan import Asked, Watermark, bundled, cut
from features.materialize.run import Materialization
from features.materialize.source import Source
from features.materialize.watermarks import read, token_key
from features.materialize.writer import Batch, PackedWriter, keys_of
from features.packed.store import age_of, fetch
from jobs.materialize import materialize_shards, plan_features
from tests.histories import (
    NOON,
    USERS,
    VIEWS,
    Row,
    World,
    offline,
    online,
    pipeline,
    table_of,
    write_file,
    write_table,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Feast's own imports


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, redis_url: str, postgres_url: str) -> Iterator[World]:
    with World.opened(tmp_path_factory.mktemp("materialize"), redis_url, postgres_url) as found:
        yield found


@pytest.fixture
def world(opened: World) -> World:
    """Two rows of each user in each view's file, one before noon and one an hour after; nothing online."""
    opened.empty()
    for view in VIEWS:
        write_file(opened.folder, view, "first", both(view))
    return opened


def row(view: str, user: int, minute: int, number: int) -> Row:
    """A row whose cells tell its number."""
    cells = (float(number), f"n{number}")
    return Row(number, user, minute, cells if view == "user_kept" else (cells[0], 0.5, number, True, cells[1]))


def both(view: str) -> list[Row]:
    return [row(view, user, minute, user + 100 * (minute > 0)) for minute in (-10, 60) for user in range(USERS)]


def agree(world: World, at: datetime) -> None:
    for view, source in world.sources.items():
        assert online(source, world.client, at) == offline(source, world.files(view), at)


def marks(world: World) -> dict[str, dict[int, Watermark]]:
    return read(world.settings.need("postgres_url"), "histories", VIEWS, 3)


# --- what is read


def test_only_what_is_new_is_read(world: World) -> None:
    assert world.run.all(Asked(until=NOON)).rows == 2 * USERS
    kept = marks(world)["user_kept"]
    assert {number: mark.through for number, mark in kept.items()} == dict.fromkeys(range(3), NOON)
    assert world.run.all(Asked(until=NOON)).rows == 0
    assert world.run.all(Asked(until=NOON - HOUR)).rows == 0  # more than that is there
    agree(world, NOON)
    assert world.run.all(Asked(until=NOON + 2 * HOUR)).rows == 2 * USERS  # the later rows of the same files
    agree(world, NOON + 2 * HOUR)
    write_file(world.folder, "user_pushed", "second", [row("user_pushed", 1, -20, 900), row("user_pushed", 2, 70, 901)])
    report = world.run.all(Asked(until=NOON + 2 * HOUR))
    assert (report.rows, report.kept) == (2, 1)  # a row of the past is looked at, too
    agree(world, NOON + 2 * HOUR)
    assert world.run.all(Asked(until=NOON + 2 * HOUR, full=True)).rows == 2 * USERS
    assert world.run.all(Asked(until=NOON, since=NOON - 11 * timedelta(minutes=1))).rows == 2 * USERS
    agree(world, NOON + 2 * HOUR)


def test_what_redis_has_lost_is_written_again(world: World) -> None:
    world.run.all(Asked(until=NOON))
    world.client.flushdb()
    assert world.run.all(Asked(until=NOON)).rows == 2 * USERS
    agree(world, NOON)
    mine = [user for user in range(USERS) if pipeline().partitions.partition_of(user) == 1]
    world.client.hset(token_key("histories"), "user_kept:1", "of an older copy")
    assert world.run.all(Asked(until=NOON)).rows == len(mine) > 0


def test_corrected_rows_arrive(world: World) -> None:
    world.run.all(Asked(until=NOON))
    corrected = [
        replace(one, created=500 + one.created, values=row("user_pushed", 0, 0, 7).values)
        for one in both("user_pushed")
    ]
    write_file(world.folder, "user_pushed", "corrected", corrected)
    kept = [replace(one, values=(-1.0, None)) for one in both("user_kept")]
    write_file(world.folder, "user_kept", "first", kept)  # no creation time: the file was written again
    assert world.run.all(Asked(until=NOON)).kept == 0
    agree(world, NOON)


def test_tasks_bring_what_was_planned_and_can_be_repeated(world: World) -> None:
    tasks = plan_features(pipeline(), world.settings, since=None, until=NOON, full=False)
    assert [[shard["view"] for shard in task] for task in tasks] == [list(VIEWS)]
    assert materialize_shards(pipeline(), world.settings, tasks[0]) == {"rows": 2 * USERS, "kept": 0}
    agree(world, NOON)
    assert materialize_shards(pipeline(), world.settings, tasks[0])["kept"] == USERS  # of the view that events push
    shards = world.run.plan(Asked(until=NOON + HOUR))
    assert [len(task) for task in bundled(shards, most=1)] == [1, 1]


# --- killed, and raced


class Stuck(PackedWriter):
    """Says so through a pipe and stops when a partition's rows are written but its watermark has not moved."""

    def __init__(self, client: redis.Redis, pipe: int, after: int) -> None:
        super().__init__(client)
        self._pipe, self._left = pipe, after

    def put(self, batch: Batch) -> int:
        written = super().put(batch) + self.settle()
        self._left -= 1
        if not self._left:
            os.write(self._pipe, b"x")
            signal.pause()
        return written


def forked(work: Callable[[], object]) -> int:
    """A process that does this and ends; its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001 - said, and told by the exit code
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def test_a_killed_run_is_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cut", partial(cut, most=1))  # a shard for each partition
    ready, told = os.pipe()

    def work() -> None:
        client = redis.Redis.from_url(world.settings.need("redis_url"))
        with Materialization(pipeline(), world.settings, Stuck(client, told, after=2)) as run:
            run.all(Asked(until=NOON))

    process = forked(work)
    assert os.read(ready, 1) == b"x"
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    os.close(ready)
    os.close(told)
    moved = marks(world)["user_pushed"]
    assert 0 < len(moved) < 3  # the last shard was written and not noted
    done = sum(pipeline().partitions.partition_of(user) in moved for user in range(USERS))
    report = world.run.all(Asked(until=NOON))
    assert (report.rows, report.shards) == (2 * USERS - done, 6 - len(moved))
    agree(world, NOON)


MANY = 300
WRITERS = 2


def test_streams_and_materializations_at_once_leave_the_newest_row_of_every_entity(world: World) -> None:
    """Four processes write the same entities, from files and as events; no entity ever goes back."""
    luck = random.Random(5)
    numbers = iter(range(1, 10**6))
    filed = [row("user_pushed", user, luck.randrange(-300, 0), next(numbers)) for user in range(MANY) for _ in range(3)]
    pushed = [
        [row("user_pushed", luck.randrange(MANY), luck.randrange(-300, 1), next(numbers)) for _ in range(2 * MANY)]
        for _ in range(WRITERS)
    ]
    for part in range(3):
        write_file(world.folder, "user_pushed", f"{part}", filed[part::3])

    def materialize() -> None:
        with Materialization(pipeline(), world.settings) as run:
            for minute in range(-250, 1, 50):
                run.all(Asked(until=NOON + timedelta(minutes=minute), full=minute == -250))

    def stream(rows: list[Row]) -> None:
        client = redis.Redis.from_url(world.settings.need("redis_url"))
        writer = PackedWriter(client, ties_replace=True)
        for start in range(0, len(rows), 10):
            (batch,) = table_of("user_pushed", rows[start : start + 10]).to_batches()
            writer.put(writer.pack(world.sources["user_pushed"], batch))
        writer.settle()

    working = {forked(materialize) for _ in range(WRITERS)} | {forked(partial(stream, rows)) for rows in pushed}
    keys = keys_of(world.sources["user_pushed"]).of(list(range(MANY)))
    before: list[tuple[int, ...]] = [(0, 0)] * MANY
    while working:
        now = [(0, 0) if value is None else age_of(value) for value in fetch(world.client, keys)]
        assert all(new >= old for new, old in zip(now, before, strict=True))
        before = now
        process, status = os.waitpid(-1 if not working else next(iter(working)), os.WNOHANG)
        if process:
            assert status == 0
            working.remove(process)
    known = [*filed, *both("user_pushed"), *(one for rows in pushed for one in rows)]
    newest = {
        one.user: (one.minute, one.created)
        for one in sorted(known, key=lambda one: (one.minute, one.created))
        if one.minute <= 0
    }
    assert before == [
        tuple(
            int((NOON + shift).timestamp() * 1_000_000)
            for shift in (timedelta(minutes=minute), timedelta(days=1, seconds=created))
        )
        for minute, created in (newest[user] for user in range(MANY))
    ]


# --- refused


def harmed(view: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[World], None]:
    """Another file of a view, changed."""
    return lambda world: write_table(world.folder / view / "harmed.parquet", change(table_of(view, both(view))))


def truncated(world: World) -> None:
    path = world.folder / "user_kept" / "first.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def scrambled(column: int) -> Callable[[World], None]:
    """Pages of a column damaged, footer whole."""

    def harm(world: World) -> None:
        path = world.folder / "user_kept" / "first.parquet"
        chunk = pq.read_metadata(path).row_group(0).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data = bytearray(path.read_bytes())
        data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
        path.write_bytes(data)

    return harm


def naive(table: pa.Table) -> pa.Table:
    return table.set_column(1, "event_timestamp", table["event_timestamp"].cast(pa.timestamp("us")))


def nanoseconds(table: pa.Table) -> pa.Table:
    return table.set_column(1, "event_timestamp", table["event_timestamp"].cast(pa.timestamp("ns", tz="UTC")))


def texts(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("score"), "score", table["score"].cast(pa.string()))


def keyless(table: pa.Table) -> pa.Table:
    return table.set_column(0, "user", pa.array([None, *table["user"].to_pylist()[1:]], pa.int64()))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (harmed("user_kept", lambda table: table.drop_columns("score")), "has no column score, which view user_kept"),
        (harmed("user_kept", lambda table: table.drop_columns("name")), "has no column name, which view user_kept"),
        (harmed("user_pushed", lambda table: table.drop_columns("created_timestamp")), "has no column created_"),
        (harmed("user_kept", texts), "column score is string, view user_kept declares .*: write numbers"),
        (harmed("user_kept", keyless), "rows of view user_kept have no user"),
        (harmed("user_kept", lambda table: table), "has two rows of one user and event_timestamp"),
        (harmed("user_kept", naive), "times without a time zone"),
        (harmed("user_pushed", nanoseconds), "has nanoseconds"),
        (truncated, "is not a Parquet file"),
        (scrambled(0), "cannot be read"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line_before_anything_is_written(
    world: World, harm: Callable[[World], None], says: str
) -> None:
    harm(world)
    with pytest.raises(FeatureError, match=says) as caught:
        world.run.all(Asked(until=NOON))
    assert "\n" not in str(caught.value)
    assert world.client.dbsize() == 0
    assert not any(marks(world).values())


def test_damage_within_features_leaves_nothing_of_the_view_and_no_watermark(world: World) -> None:
    """It is found when they are read; the views before it are whole by then."""
    scrambled(column=2)(world)
    with pytest.raises(FeatureError, match="cannot be read"):
        world.run.all(Asked(until=NOON))
    assert fetch(world.client, keys_of(world.sources["user_kept"]).of(list(range(USERS)))) == [None] * USERS
    assert not marks(world)["user_kept"]


def test_a_view_without_files_says_so(world: World) -> None:
    (world.folder / "user_kept" / "first.parquet").unlink()
    with pytest.raises(FeatureError, match="where no file is: write it, or correct the path"):
        world.run.all(Asked(until=NOON))
    assert world.client.dbsize() == 0


@dataclass
class Meddler:
    """Writes rows, and meanwhile the view is applied with another TTL."""

    writer: PackedWriter
    world: World

    @property
    def client(self) -> redis.Redis:
        return self.writer.client  # type: ignore[no-any-return]

    def pack(self, source: Source, rows: pa.RecordBatch) -> Batch:
        return self.writer.pack(source, rows)

    def put(self, batch: Batch) -> int:
        self.world.redefine(hours=7)
        return self.writer.put(batch)

    def settle(self) -> int:
        return self.writer.settle()


def test_a_view_that_is_changed_meanwhile_leaves_no_watermark(world: World) -> None:
    planned = plan_features(pipeline(), world.settings, since=None, until=NOON, full=False)
    try:
        meddled = Materialization(pipeline(), world.settings, Meddler(PackedWriter(world.client), world))
        with pytest.raises(FeatureError, match=r"user_pushed was changed while it was materialized.*materialize again"):
            meddled.all(Asked(until=NOON))
        assert not marks(world)["user_pushed"]
        world.client.flushdb()
        with pytest.raises(FeatureError, match="user_pushed was changed"):
            materialize_shards(pipeline(), world.settings, planned[0])
        assert world.client.dbsize() == 0
        with Materialization(pipeline(), world.settings) as again:
            assert again.all(Asked(until=NOON)).rows == 2 * USERS
    finally:
        world.redefine(hours=6)
    report = world.run.all(Asked(until=NOON))
    assert (report.views, report.rows) == ({"user_pushed"}, USERS)  # the definition is another one again


def test_values_of_a_newer_version_stop_the_run(world: World) -> None:
    world.run.all(Asked(until=NOON))
    keys = keys_of(world.sources["user_kept"]).of([1])
    value = fetch(world.client, keys)[0]
    assert value is not None
    world.client.set(keys[0], bytes([value[0], value[1] + 1]) + value[2:])
    with pytest.raises(FeatureError, match="is packed by version 2, this process knows 1: upgrade it"):
        world.run.all(Asked(until=NOON, full=True))


@pytest.mark.parametrize("gone", ["redis_url", "postgres_url"])
def test_a_server_that_is_away_is_one_line(world: World, gone: str) -> None:
    away = {"redis_url": "redis://127.0.0.1:1", "postgres_url": "postgresql://nobody:secret@127.0.0.1:1/almanac"}[gone]
    settings = world.settings.model_copy(update={gone: away})
    with pytest.raises(Unavailable) as caught, Materialization(pipeline(), settings) as run:
        run.all(Asked(until=NOON))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
