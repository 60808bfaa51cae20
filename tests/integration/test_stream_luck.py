"""Bad luck of the stream: servers that go away in the middle and return, events too large, nothing but rubbish."""

from __future__ import annotations

import json
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka.admin import NewTopic

from almanac.clock import EPOCH, utc_now
from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from almanac.settings import settings as of_this_process
from almanac.stack import kafka, postgres
from almanac.stack import redis as redis_server
from almanac.stack.server import Server, free_port
from almanac.stack.servers import running
from features.archive import Archive, archived_files
from features.ingest import refresh
from features.materialize.run import materialize
from features.online import OnlineFeatures, observation_row
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from streaming import worker as worker_module
from streaming.archiving import Archiving
from streaming.connection import open_admin, open_producer
from streaming.events import Event
from streaming.handle import ObservationRow
from streaming.process import Crew
from streaming.publish import Outgoing, publish
from streaming.records import HEADER_CUT, KEPT_VALUE_BYTES_MAX, Consumed, feature_record, read_dead_letter
from streaming.report import PAUSED, RUNNING, Report
from streaming.sink import Features, Hold, Overlays, Sink, Target
from streaming.topics import ensure_topics
from streaming.worker import Surroundings, Worker
from tests.generations import new_name
from tests.streams import (
    SMALL,
    WAIT_SECONDS_MAX,
    FeaturesInMemory,
    caught_up,
    event,
    eventually,
    read_topic,
    register_model,
    tiny_pipeline,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),  # of Feast's own imports
]


class Hooked(Worker):
    """A worker that calls `before` when it enters a step."""

    before: Callable[[str], None] = staticmethod(lambda step: None)

    def _step(self, name: str) -> AbstractContextManager[Any]:
        self.before(name)
        return super()._step(name)


@dataclass
class Stream:
    """A stream as threads of this process."""

    pipeline: Pipeline
    settings: Settings
    worker: Hooked
    crew: Crew = field(default_factory=Crew)
    reports: dict[str, Report] = field(default_factory=dict)

    def sink(self, name: str, topic: str, make: Callable[[Report], Target], hold: Hold = Hold()) -> None:
        report = self.reports[name] = Report(f"{self.pipeline.name} {name}")
        target, work = make(report), Sink(topic, f"{self.pipeline.name}-{name}", self.settings, report, hold=hold)
        self.crew.start(name, lambda: work.run(target, self.crew.stop))

    def send(self, *events: Outgoing) -> None:
        publish(events, self.pipeline, self.settings)

    def places(self, topic: str) -> list[tuple[int, int]]:
        """Where the events stood that a topic's records were made from."""
        bodies = [json.loads(record.value or b"") for record in read_topic(self.settings, topic)]
        return sorted((body["source"]["partition"], body["source"]["offset"]) for body in bodies)

    def archived(self) -> list[tuple[int, int]]:
        tables = [pq.ParquetFile(path).read() for path in archived_files(self.settings.state_dir, None, utc_now())]
        return sorted((row["kafka_partition"], row["kafka_offset"]) for table in tables for row in table.to_pylist())

    def sent(self) -> list[tuple[int, int]]:
        records = read_topic(self.settings, f"{self.pipeline.name}.observations")
        return sorted((record.partition, record.offset) for record in records)


@contextmanager
def stream(
    settings: Settings, pipeline: Pipeline, online: Any = FeaturesInMemory, row: ObservationRow = observation_row
) -> Iterator[Stream]:
    """A worker and its sinks for overlays and archive, until the block ends."""
    ensure_topics(pipeline, settings)
    migrate(settings.need("postgres_url"), [pipeline])
    register_model(settings, pipeline, 0.0)
    made = Stream(pipeline, settings, Hooked(pipeline, settings, Surroundings(online=online, observation_row=row)))
    files = Archive(settings.state_dir / "archive", {"cell_id": pa.int64(), "t2m": pa.float32()})
    with PostgresStore(settings.need("postgres_url")) as record, RedisStore(settings.need("redis_url")) as copy:
        made.crew.start("worker", lambda: made.worker.run(made.crew.stop))
        made.sink("overlays", pipeline.predictions_topic, lambda report: Overlays(pipeline, record, copy, report))
        made.sink(
            "archive",
            pipeline.features_topic,
            lambda report: Archiving(pipeline, lambda: files, observation_row, report),
            SMALL,
        )
        try:
            yield made
        finally:
            made.crew.stop.set()
            assert made.crew.join()
    assert made.crew.failures == []


class Outage:
    """A real server that can be stopped and started again, with its data, at its address."""

    def __init__(self, server: Server, log: Path) -> None:
        self._server, self._log = server, log
        self._up = ExitStack()
        self.start()

    def start(self) -> None:
        self._up.enter_context(running(self._server, self._log))

    def stop(self) -> None:
        self._up.close()


@pytest.fixture
def tiny() -> Pipeline:
    return tiny_pipeline(new_name())


def of(tmp_path: Path, postgres_url: str, redis_url: str, bootstrap: str) -> Settings:
    return load_settings(state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url, kafka_bootstrap=bootstrap)


def test_kafka_goes_away_in_the_middle_of_a_batch_and_of_its_commit_and_every_event_counts_once(
    tiny: Pipeline, postgres_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("START_SECONDS_MAX", "WRITE_SECONDS_MAX", "COMMIT_SECONDS_MAX"):
        monkeypatch.setattr(worker_module, limit, 3.0)  # what a step waits for a broker that is gone
    broker = Outage(kafka.prepare(tmp_path, port := free_port(), of_this_process().cache_dir), tmp_path / "kafka.log")
    settings = of(tmp_path, postgres_url, redis_url, f"127.0.0.1:{port}")
    try:
        with stream(settings, tiny) as running_stream:
            worker = running_stream.worker
            running_stream.send(event(0, 270.0, utc_now()))
            for cell, step in enumerate(("read_features", "commit"), start=1):
                sent, gone = threading.Event(), threading.Event()

                def leave(
                    entered: str, step: str = step, sent: threading.Event = sent, gone: threading.Event = gone
                ) -> None:
                    if entered == step and not gone.is_set():
                        sent.wait(WAIT_SECONDS_MAX)  # the event's own delivery is to be confirmed before
                        broker.stop()
                        gone.set()

                worker.before = leave  # type: ignore[method-assign]
                running_stream.send(event(cell, 270.0 + cell, utc_now()))
                sent.set()
                eventually(gone.is_set)
                eventually(lambda: worker.report.state == PAUSED)
                assert f"127.0.0.1:{port}" in worker.report.detail
                broker.start()
                eventually(lambda cell=cell: len(running_stream.places(tiny.predictions_topic)) > cell)  # type: ignore[misc]
                eventually(lambda: worker.report.state == RUNNING)
            eventually(lambda: len(running_stream.archived()) == 3)
            with PostgresStore(postgres_url) as store:
                eventually(lambda: len(store.overlays(tiny.name, f"{tiny.name}-v1", EPOCH)) == 3)
            assert running_stream.places(tiny.predictions_topic) == running_stream.archived() == running_stream.sent()
            assert read_topic(settings, tiny.dead_letter_topic) == []
    finally:
        broker.stop()


def test_redis_and_postgres_go_away_and_return_and_nothing_is_lost_or_doubled(
    tiny: Pipeline, kafka_bootstrap: str, tmp_path: Path
) -> None:
    record = Outage(postgres.prepare(tmp_path, free_port(), durable=True), tmp_path / "postgres.log")
    postgres.ensure_databases(tmp_path, record._server.port)
    copy = Outage(redis_server.prepare(tmp_path, free_port()), tmp_path / "redis.log")
    settings = of(tmp_path, record._server.address, copy._server.address, kafka_bootstrap)
    without_registry = settings.model_copy(update={"postgres_url": None})
    seeded = replace(tiny, name="weather")  # whose files the Feast definitions name
    materialize(seeded, without_registry, refresh(seeded, settings, utc_now(), window=timedelta(hours=1)).as_of)
    online = partial(OnlineFeatures, dated=True)
    try:
        with stream(settings, tiny, lambda pipeline, _: online(pipeline, without_registry)) as on:
            on.sink(
                "features",
                tiny.features_topic,
                lambda report: Features(tiny, lambda: OnlineFeatures(tiny, without_registry), observation_row, report),
            )
            with PostgresStore(settings.need("postgres_url")) as store, RedisStore(settings.need("redis_url")) as cache:
                model = f"{tiny.name}-v1"

                def stored(cell: int) -> bool:
                    found = {overlay.entity: overlay for overlay in store.overlays(tiny.name, model, EPOCH)}
                    mine = found.get(str(cell))
                    return mine is not None and cache.overlays(tiny.name, str(cell)).get(model) == mine

                on.send(event(1, 271.0, utc_now()))
                eventually(lambda: stored(1))
                eventually(lambda: on.reports["features"].counts["pushed"] == 1)

                copy.stop()
                on.send(event(2, 272.0, utc_now()))
                eventually(lambda: on.worker.report.state == PAUSED)
                assert "Redis did not answer" in on.worker.report.detail
                copy.start()
                eventually(lambda: stored(2))

                record.stop()
                on.send(event(3, 273.0, utc_now()))
                eventually(lambda: on.reports["overlays"].state == PAUSED)
                assert "Postgres" in on.reports["overlays"].detail
                eventually(lambda: len(on.archived()) == 3)  # nobody waits for the overlays' store
                record.start()
                eventually(lambda: stored(3))
                eventually(lambda: on.reports["features"].counts["pushed"] == 3)
                read = OnlineFeatures(tiny, without_registry).read([1, 2, 3])
                assert read["t2m"].to_pylist() == [271.0, 272.0, 273.0]
                assert on.places(tiny.predictions_topic) == on.archived() == on.sent()
                assert read_topic(settings, tiny.dead_letter_topic) == []
    finally:
        record.stop()
        copy.stop()


def test_an_archive_sink_that_joins_and_one_that_leaves_lose_and_double_nothing(
    tiny: Pipeline, kafka_bootstrap: str, tmp_path: Path
) -> None:
    settings = load_settings(state_dir=tmp_path, kafka_bootstrap=kafka_bootstrap)
    ensure_topics(tiny, settings)
    producer, crews = open_producer(settings), [Crew(), Crew()]
    counts = [Report("first"), Report("second")]

    def begin(number: int) -> None:
        files = Archive(tmp_path / "archive", {"cell_id": pa.int64(), "t2m": pa.float32()})
        sink = Sink(tiny.features_topic, f"{tiny.name}-archive", settings, counts[number], str(number), SMALL)
        archiving = Archiving(tiny, lambda: files, observation_row, counts[number])
        crews[number].start("archive", lambda: sink.run(archiving, crews[number].stop))

    def send(first: int, last: int) -> None:
        for offset in range(first, last):
            origin = Consumed(topic=f"{tiny.name}.observations", partition=0, offset=offset, key=None, value=None)
            row = feature_record(tiny, origin, Event(entity=offset % 20, observed_at=moment, value=280.0))
            producer.produce(row.topic, key=row.key, value=row.value)
        assert producer.flush(30) == 0

    def places() -> list[int]:
        tables = [pq.ParquetFile(path).read() for path in archived_files(tmp_path, None, moment)]
        return sorted(offset for table in tables for offset in table["kafka_offset"].to_pylist())

    moment = utc_now()
    send(0, 500)
    begin(0)
    eventually(lambda: len(places()) == 500)
    begin(1)  # takes over some of the partitions, while events go on
    sent = 500
    while counts[1].counts["archived"] == 0:
        assert sent < 20_000, "the second sink got no partition"
        send(sent, sent + 50)
        sent += 50
        crews[0].stop.wait(0.1)
    crews[0].stop.set()
    send(sent, sent + 500)
    assert crews[0].join()
    eventually(lambda: len(places()) >= sent + 500)
    crews[1].stop.set()
    assert crews[1].join()
    assert places() == list(range(sent + 500))
    assert crews[0].failures == crews[1].failures == []


def test_ten_thousand_malformed_events_are_dead_letters_and_the_worker_goes_on(
    tiny: Pipeline, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    settings = of(tmp_path, postgres_url, redis_url, kafka_bootstrap)
    with stream(settings, tiny) as on:
        on.send(event(1, 271.0, utc_now()))
        eventually(lambda: on.worker.report.counts["predictions"] == 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        on.send(*(Outgoing(value=b'{"cell_id": %d, "t2m": }' % number, key=None) for number in range(10_000)))
        on.send(event(2, 272.0, utc_now()))
        eventually(lambda: on.worker.report.counts["predictions"] == 2)
        eventually(lambda: caught_up(settings, on.worker.group, f"{tiny.name}.observations"))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kilobytes
    letters = [read_dead_letter(record) for record in read_topic(settings, tiny.dead_letter_topic)]
    assert {letter.reason for letter in letters} == {"not-json"}
    assert len({(letter.partition, letter.offset) for letter in letters}) == len(letters) == 10_000


def test_an_event_of_ten_megabytes_is_refused_or_kept_in_part(
    tiny: Pipeline, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    settings = of(tmp_path, postgres_url, redis_url, kafka_bootstrap)
    topic, huge = f"{tiny.name}.observations", b"x" * 10_000_000
    limit = {"max.message.bytes": "12000000"}  # somebody raised it
    admin = open_admin(settings)
    for future in admin.create_topics([NewTopic(topic, 4, -1, config=limit)]).values():
        future.result(30)
    with stream(settings, tiny) as on:
        with pytest.raises(UsageError, match=r"^0 events were delivered to .*10,000,000 bytes"):
            on.send(Outgoing(value=huge, key=None))
        producer = open_producer(settings, **{"message.max.bytes": 12_000_000})
        producer.produce(topic, value=huge, key=b"1")
        assert producer.flush(60) == 0
        on.send(event(2, 272.0, utc_now()))
        eventually(lambda: on.worker.report.counts["predictions"] == 1)
        (record,) = eventually(lambda: read_topic(settings, tiny.dead_letter_topic))
    letter = read_dead_letter(record)
    assert (letter.reason, letter.raw, letter.whole) == ("too-large", huge[:KEPT_VALUE_BYTES_MAX], False)
    assert dict(record.headers)[HEADER_CUT] == b"10000000/1/0"


def test_a_model_file_swapped_under_the_worker_is_not_used_and_a_new_version_is(
    tiny: Pipeline, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings = of(tmp_path, postgres_url, redis_url, kafka_bootstrap)
    with stream(settings, tiny) as on:
        on.send(event(1, 271.0, utc_now()))
        eventually(lambda: on.worker.report.counts["predictions"] == 1)
        folder = settings.models_dir / tiny.name
        other = register_model(settings, replace(tiny, model=f"{tiny.name}other@champion"), 50.0)
        shutil.copy(settings.models_dir / f"{tiny.name}other" / "v0001" / "model.onnx", folder / "v0001" / "new")
        (folder / "v0001" / "new").replace(folder / "v0001" / "model.onnx")
        said = f"keeps model {tiny.name}-v1: model {tiny.name}-v1: model.onnx was changed after it was registered"
        eventually(lambda: said in caplog.text)
        on.send(event(2, 272.0, utc_now()))
        eventually(lambda: on.worker.report.counts["predictions"] == 2)
        newer = register_model(settings, tiny, 0.0)
        eventually(lambda: f"scores with model {newer}" in caplog.text)
        on.send(event(3, 273.0, utc_now()))
        eventually(lambda: on.worker.report.counts["predictions"] == 3)
    bodies = [json.loads(record.value or b"") for record in read_topic(settings, tiny.predictions_topic)]
    found = sorted((body["entity"], body["model"], body["values"]["t2m_1h"]) for body in bodies)
    assert found == [(1, f"{tiny.name}-v1", 272.0), (2, f"{tiny.name}-v1", 273.0), (3, newer, 274.0)]
    assert other != newer
