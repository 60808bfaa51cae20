"""One suite over what Postgres and Redis share: epochs grow, overlays are put if newer, blocks come back as written."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almanac.blocks import block_hash, decode
from almanac.decisions import newest
from almanac.errors import PredictionError, Unavailable, UsageError
from almanac.list_blocks import decode_lists
from almanac.pipeline import Pipeline
from almanac.ranked import RankedList
from almanac.ranking_declared import ANY_ITEM
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.postgres_client import Client
from serving_cache.records import FRESH_TOPIC, ManifestEntry, OverlayRecord, Pointer, incarnate
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.generations import (
    NOON,
    bucket_pipeline,
    grid_pipeline,
    list_of,
    list_pipeline,
    migrated,
    new_name,
    overlay_of,
    published_generation,
    staged_parts,
    start_of,
)
from tests.simulator.subjects import ENTITIES, MODELS, MemoryCacheSubject, MemoryRecordSubject, shown

REAL_SERVER = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
OVERLAYS = st.builds(
    lambda entity, model, minute, topic, partition, offset: overlay_of(
        entity,
        NOON + timedelta(minutes=minute),
        offset,
        model=model,
        topic=topic,
        kafka_partition=partition,
        # Equal sequences carry equal values: they are the same event.
        values={"t2m_1h": hash_like(minute, topic, partition, offset)},
    ),
    st.sampled_from(ENTITIES),
    st.sampled_from(MODELS),
    st.integers(0, 2),
    st.sampled_from(  # their order differs between locales and bytes
        [
            "a",
            "B",
            "_x",
            "a.b",
            "a-b",
            "ab",
            "é",
            FRESH_TOPIC,
            incarnate("a", 9),
            incarnate("B", 10),
            incarnate("a", 10),
        ]
    ),
    st.integers(0, 1),
    st.integers(0, 2**53 - 1) | st.integers(0, 3),
)


def hash_like(minute: int, topic: str, partition: int, offset: int) -> float:
    """A number of its own for each event."""
    return float(minute * 1000 + zlib.crc32(topic.encode()) % 1000 + partition) + (offset % 997) / 997


class Subject(Protocol):
    """A store as the suite sees it."""

    def put_overlays(self, pipeline: str, records: list[OverlayRecord]) -> int: ...

    @property
    def record(self) -> PostgresStore: ...

    def prepared(self, pipeline: Pipeline) -> None: ...

    def overlays_of(self, pipeline: str) -> set[tuple[object, ...]]: ...

    def pointer(self, pipeline: str) -> Pointer | None: ...

    def manifest(self, pipeline: str, generation: int) -> dict[int, ManifestEntry]: ...

    def follow(self, pipeline: Pipeline) -> None: ...

    def blocks_of(self, pipeline: Pipeline, generation: int, entries: list[ManifestEntry]) -> dict[str, bytes]: ...


class PostgresSubject(PostgresStore):
    """Postgres: the record."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._url = url

    @property
    def record(self) -> PostgresStore:
        return self

    def prepared(self, pipeline: Pipeline) -> None:
        migrated(self._url, pipeline)

    def overlays_of(self, pipeline: str) -> set[tuple[object, ...]]:
        return {shown(o) for model in MODELS for o in self.overlays(pipeline, model, NOON - timedelta(days=1))}

    def follow(self, pipeline: Pipeline) -> None:
        """Postgres is where it is published."""

    def blocks_of(self, pipeline: Pipeline, generation: int, entries: list[ManifestEntry]) -> dict[str, bytes]:
        return self.blocks(pipeline, generation, [entry.partition for entry in entries])


class RedisSubject(RedisStore):
    """Redis: the cache, which follows."""

    def __init__(self, url: str, postgres_url: str) -> None:
        super().__init__(url)
        self._postgres_url = postgres_url
        self._record = PostgresStore(postgres_url)

    @property
    def record(self) -> PostgresStore:
        return self._record

    def prepared(self, pipeline: Pipeline) -> None:
        migrated(self._postgres_url, pipeline)

    def overlays_of(self, pipeline: str) -> set[tuple[object, ...]]:
        return {shown(o) for entity in ENTITIES for o in self.overlays(pipeline, entity).values()}

    def follow(self, pipeline: Pipeline) -> None:
        sync_redis(pipeline, self.record, self)

    def blocks_of(self, pipeline: Pipeline, generation: int, entries: list[ManifestEntry]) -> dict[str, bytes]:
        return self.blocks(pipeline.name, [entry.block_hash for entry in entries])


@pytest.fixture(params=["postgres", "redis", "memory record", "memory cache"])
def subject(request: pytest.FixtureRequest, postgres_url: str, redis_url: str) -> Iterator[Subject]:
    if request.param.startswith("memory"):
        yield MemoryRecordSubject() if request.param == "memory record" else MemoryCacheSubject()
        return
    migrate(postgres_url, [])
    if request.param == "postgres":
        with PostgresSubject(postgres_url) as postgres:
            yield postgres
    else:
        with RedisSubject(redis_url, postgres_url) as cache, cache.record:
            yield cache


@REAL_SERVER
@given(writes=st.lists(st.lists(OVERLAYS, max_size=6), max_size=5), order=st.randoms())
def test_the_newest_overlay_wins_whatever_the_order(
    subject: Subject, writes: list[list[OverlayRecord]], order: object
) -> None:
    expected = {shown(o) for o in newest([o for batch in writes for o in batch])}
    first, second = new_name(), new_name()
    written = sum(subject.put_overlays(first, batch) for batch in writes)
    assert subject.overlays_of(first) == expected
    assert written >= len(expected)
    shuffled = [*writes, *writes]  # a replay of everything, in another order
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for batch in shuffled:
        order.shuffle(batch)  # type: ignore[attr-defined]
        subject.put_overlays(second, batch)
    assert subject.overlays_of(second) == expected


def test_a_replay_changes_nothing_and_counts_nothing(subject: Subject) -> None:
    name = new_name()
    batch = [overlay_of("1", NOON, 5), overlay_of("2", NOON, 6), overlay_of("1", NOON, 7)]
    assert subject.put_overlays(name, batch) == 2
    assert subject.put_overlays(name, batch) == 0
    assert subject.put_overlays(name, [overlay_of("1", NOON, 6)]) == 0
    assert {row[2][3] for row in subject.overlays_of(name)} == {6, 7}  # type: ignore[index]
    assert subject.put_overlays(name, []) == 0


def test_an_overlay_of_a_topic_made_again_replaces_one_of_the_deleted_topic_of_the_same_as_of(subject: Subject) -> None:
    name, lists = new_name(), "shop.purchases"
    deleted = overlay_of("1", NOON, 100, topic=incarnate(lists, 5), kafka_partition=3)
    again = [overlay_of("1", NOON, offset, topic=incarnate(lists, 6)) for offset in (0, 1)]
    assert subject.put_overlays(name, [overlay_of("1", NOON, 200, topic=lists)]) == 1  # stored by an older version
    for overlay in (deleted, *again):
        assert subject.put_overlays(name, [overlay]) == 1
    for late in (deleted, overlay_of("1", NOON, 300, topic=lists), *again):  # zombies and replays
        assert subject.put_overlays(name, [late]) == 0
    assert {row[2][1:] for row in subject.overlays_of(name)} == {(incarnate(lists, 6), 0, 1)}  # type: ignore[index]


def test_each_model_has_an_overlay_of_its_own(subject: Subject) -> None:
    name = new_name()
    subject.put_overlays(name, [overlay_of("1", NOON, 5), overlay_of("1", NOON, 1, model="weather-v2")])
    assert {(row[1], row[2][3]) for row in subject.overlays_of(name)} == {  # type: ignore[index]
        ("weather-v1", 5),
        ("weather-v2", 1),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_overlay_that_is_no_number_cannot_be_made(value: float) -> None:
    with pytest.raises(PredictionError, match="t2m_1h"):
        overlay_of("1", NOON, 1, values={"t2m_1h": value})


@pytest.mark.parametrize("make", [grid_pipeline, bucket_pipeline])
def test_blocks_come_back_as_written(subject: Subject, make: type[Pipeline]) -> None:
    pipeline = make()  # type: ignore[call-arg]
    subject.prepared(pipeline)
    published_generation(subject.record, pipeline, 281.3)
    subject.follow(pipeline)
    manifest = subject.manifest(pipeline.name, 1)
    found = subject.blocks_of(pipeline, 1, list(manifest.values()))
    for part in staged_parts(pipeline, 281.3):
        data = part.block.encoded
        entry = manifest[part.partition]
        assert entry.block_hash == block_hash(data)
        assert found[entry.block_hash] == data
        assert entry.rows == decode(data).rows
        assert (entry.as_of, entry.origin, entry.model, entry.reason) == (NOON, 1, "weather-v1", "")


DEFAULT = RankedList(("item 0é", "item 1é"), (2.0, 1.0), {"price": (0.0, 0.25)})


def test_lists_come_back_as_written(subject: Subject) -> None:
    pipeline = list_pipeline(default=ANY_ITEM)
    subject.prepared(pipeline)
    record = subject.record
    start = start_of(pipeline, "run", default_list=DEFAULT)
    attempt = record.begin_generation(pipeline, start, now=NOON)
    parts = staged_parts(pipeline, 3.5)
    record.stage(attempt, parts)
    assert record.publish(attempt, pipeline, now=NOON).rows == 40
    subject.follow(pipeline)
    pointer = subject.pointer(pipeline.name)
    assert pointer is not None
    assert pointer.generation.outputs == ("items", "scores", "price")
    assert pointer.generation.default_list == DEFAULT
    manifest = subject.manifest(pipeline.name, 1)
    found = subject.blocks_of(pipeline, 1, list(manifest.values()))
    for part in parts:
        data = found[manifest[part.partition].block_hash]
        assert data == part.block.encoded
        back = decode_lists(data)
        for key in back.keys.tolist():
            assert back.row(key.decode()) == list_of(key.decode(), 3.5)


def test_an_overlay_may_be_a_list(subject: Subject) -> None:
    name = new_name()
    values = {"score": list_of("user-3", 1.0 / 3)}
    assert subject.put_overlays(name, [overlay_of("1", NOON, 5, values=values), overlay_of("2", NOON, 6)]) == 2
    assert {row[3] for row in subject.overlays_of(name)} == {  # type: ignore[index]
        msgspec.json.encode(values),
        msgspec.json.encode(overlay_of("2", NOON, 6).values),
    }


@settings(REAL_SERVER, max_examples=6)
@given(moves=st.lists(st.sampled_from(["later", "same", "earlier", "rollback"]), min_size=1, max_size=6))
def test_the_epoch_grows_with_each_move_and_names_one_generation(subject: Subject, moves: list[str]) -> None:
    pipeline = grid_pipeline()
    subject.prepared(pipeline)
    hour = 0
    readings: list[tuple[int, int]] = []
    postgres = subject.record
    for value, move in enumerate(moves):
        if move == "rollback":
            with contextlib.suppress(UsageError):  # there is nothing to go back to
                postgres.rollback(pipeline.name, now=NOON)
        else:
            postgres.clear_rollback(pipeline.name)
            hour += {"later": 1, "same": 0, "earlier": -1}[move]
            published_generation(postgres, pipeline, float(value), NOON + timedelta(hours=hour))
        subject.follow(pipeline)
        pointer = subject.pointer(pipeline.name)
        assert pointer == postgres.pointer(pipeline.name)
        if pointer is not None:
            readings.append((pointer.epoch, pointer.generation.generation))
            assert pointer.generation.epoch == pointer.epoch
            assert pointer.previous is None or pointer.previous.generation != pointer.generation.generation
            assert subject.manifest(pipeline.name, pointer.generation.generation)
    assert readings == sorted(readings, key=lambda reading: reading[0])
    assert len({epoch for epoch, _ in readings}) == len(set(readings))


def test_an_unknown_pipeline_has_no_pointer(subject: Subject) -> None:
    assert subject.pointer(new_name()) is None
    assert subject.manifest(new_name(), 1) == {}


@pytest.mark.parametrize(
    ("store", "url"),
    [
        (PostgresStore, "postgresql://someone:secret-word@127.0.0.1:1/almanac"),
        (RedisStore, "redis://:secret-word@127.0.0.1:1/0"),
    ],
)
def test_a_server_that_is_not_there_is_one_line_without_the_password(
    store: type[PostgresStore] | type[RedisStore], url: str
) -> None:
    with store(url) as opened, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1") as caught:
        opened.pointer("weather")
    assert "secret-word" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("store", "url"), [(PostgresStore, "nonsense"), (RedisStore, "nonsense")])
def test_a_url_that_cannot_be_read_is_refused(store: type[PostgresStore] | type[RedisStore], url: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        store(url)


def test_a_connection_that_postgres_ended_while_idle_is_replaced_without_a_word(postgres_url: str) -> None:
    with Client(postgres_url) as client, Client(postgres_url) as admin:
        ((first,),) = client.query("SELECT pg_backend_pid()")
        admin.query("SELECT pg_terminate_backend(%s, 5000)", (first,))
        ((second,),) = client.query("SELECT pg_backend_pid()")
        assert second != first
