"""Topics that change under the stream: deleted, made again otherwise, emptied. All on the real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from almanac.clock import utc_now
from almanac.decisions import newest
from almanac.errors import Unavailable
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from features.online import observation_row
from serving_cache.records import OverlayRecord
from streaming.connection import open_admin, open_producer
from streaming.placement import Mark
from streaming.process import Crew
from streaming.publish import Outgoing
from streaming.records import Consumed, read_prediction
from streaming.report import RECORDS_LOST, TOPIC_LOST, Report
from streaming.sink import Sink
from streaming.topic_state import TopicStates
from streaming.topics import ensure_topics, topics
from streaming.worker import Surroundings, Worker
from tests.generations import new_name
from tests.streams import FeaturesInMemory, event, eventually, read_topic, register_model, tiny_pipeline

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(kafka_bootstrap: str, tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, kafka_bootstrap=kafka_bootstrap)


@pytest.fixture
def pipeline(settings: Settings) -> Pipeline:
    found = tiny_pipeline(new_name())
    register_model(settings, found, 0.0)
    ensure_topics(found, settings)
    return found


@dataclass
class Collected:
    """A sink's target that remembers what was applied."""

    records: list[Consumed] = field(default_factory=list)

    def apply(self, records: Sequence[Consumed]) -> Mapping[str, int]:
        self.records += records
        return {}

    def warm(self) -> None: ...

    def idle(self) -> None: ...

    def observed(self) -> list[float]:
        """The value of each event of which a feature row was applied, in order of values."""
        return sorted(json.loads(record.value or b"")["value"] for record in self.records)


@dataclass
class Running:
    """A worker and a sink of its feature rows."""

    crew: Crew
    worker: Report
    sink: Report
    target: Collected


@contextmanager
def running(pipeline: Pipeline, settings: Settings) -> Iterator[Running]:
    crew = Crew()
    work = Worker(pipeline, settings, Surroundings(online=FeaturesInMemory, observation_row=observation_row))
    report, target = Report(f"{pipeline.name} features", pipeline=pipeline.name, part="features"), Collected()
    sink = Sink(pipeline.features_topic, f"almanac-{pipeline.name}-sink-features", settings, report)
    crew.reports += [work.report, report]
    crew.start("worker", lambda: work.run(crew.stop))
    crew.start("features", lambda: sink.run(target, crew.stop))
    try:
        yield Running(crew, work.report, report, target)
    finally:
        crew.stop.set()
        assert crew.join()
        assert crew.failures == []


def send(settings: Settings, pipeline: Pipeline, values: Sequence[float]) -> None:
    """Produce events as any producer would; `almanac publish` would make a missing topic."""
    assert pipeline.stream is not None
    producer, failed = open_producer(settings), list[Any]()
    for number, value in enumerate(values):
        one: Outgoing = event(number % 20, value)
        producer.produce(
            pipeline.stream.topic,
            key=one.key,
            value=one.value,
            on_delivery=lambda error, _: error and failed.append(error),
        )
    assert producer.flush(30) == 0
    assert failed == []


def delete(admin: AdminClient, name: str) -> None:
    admin.delete_topics([name])[name].result(10)


def exists(settings: Settings, name: str) -> bool:
    return TopicStates(settings).look([name])[name] is not None


def values(first: int, count: int) -> list[float]:
    return [200.0 + number / 10 for number in range(first, first + count)]


@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 4)], ids=["events", "predictions, features, dead letters"])
def test_a_deleted_topic_is_noticed_said_and_made_again_as_declared_and_the_stream_goes_on(
    pipeline: Pipeline, settings: Settings, which: slice
) -> None:
    declared, admin = topics(pipeline)[which], open_admin(settings)
    with running(pipeline, settings) as stream:
        send(settings, pipeline, values(0, 30))
        eventually(lambda: stream.target.observed() == values(0, 30), lambda: str(stream.target.observed()))
        eventually(lambda: stream.crew.why_not_ready() is None)
        for topic in declared:
            delete(admin, topic.name)
        why = eventually(stream.crew.why_not_ready)
        assert any(topic.name in why for topic in declared)
        assert "does not exist" in why or "was deleted" in why
        eventually(lambda: all(exists(settings, topic.name) for topic in declared))
        eventually(lambda: stream.crew.why_not_ready() is None, lambda: str(stream.crew.why_not_ready()))
        assert any(topic.name in stream.worker.incidents[TOPIC_LOST].reason for topic in declared)
        send(settings, pipeline, values(30, 40))
        eventually(lambda: set(values(30, 40)) <= set(stream.target.observed()), lambda: str(stream.target.observed()))
    for topic in declared:
        state = TopicStates(settings).look([topic.name])[topic.name]
        assert state is not None
        assert state.partitions == topic.partitions
        resource = ConfigResource(ResourceType.TOPIC, topic.name)
        made = admin.describe_configs([resource])[resource].result(10)
        assert int(made["retention.ms"].value) == topic.retention.total_seconds() * 1000


def test_a_topic_made_again_is_read_from_its_beginning_whatever_offsets_are_committed(
    pipeline: Pipeline, settings: Settings
) -> None:
    assert pipeline.stream is not None
    name, admin = pipeline.stream.topic, open_admin(settings)
    with running(pipeline, settings) as stream:
        send(settings, pipeline, values(0, 30))
        eventually(lambda: stream.target.observed() == values(0, 30))
    before = TopicStates(settings).look([name])[name]
    assert before is not None
    delete(admin, name)
    eventually(lambda: not exists(settings, name))
    admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=-1)])[name].result(10)
    eventually(lambda: exists(settings, name))
    send(settings, pipeline, values(30, 60))
    stale = TopicPartition(name, 0, 50, Mark(topic_id=before.topic_id).text())  # of a worker that was still writing
    group = ConsumerGroupTopicPartitions(f"almanac-{pipeline.name}-stream", [stale])
    admin.alter_consumer_group_offsets([group])[group.group_id].result(10)
    with running(pipeline, settings) as stream:
        eventually(lambda: stream.target.observed() == values(30, 60), lambda: str(stream.target.observed()))


def test_of_a_topic_made_again_by_somebody_while_the_stream_was_down_it_is_said_and_its_overlays_win(
    pipeline: Pipeline, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    assert pipeline.stream is not None
    name, admin, moment = pipeline.stream.topic, open_admin(settings), utc_now() - timedelta(minutes=1)

    def correct(*values: float) -> None:
        """Events of one cell and moment: each corrects the one before."""
        producer = open_producer(settings)
        for value in values:
            one = event(3, value, moment)
            producer.produce(name, key=one.key, value=one.value)
        assert producer.flush(30) == 0

    def overlays() -> list[OverlayRecord]:
        return [read_prediction(pipeline, record) for record in read_topic(settings, pipeline.predictions_topic)]

    def counted(stream: Running, count: int) -> None:
        eventually(lambda: stream.worker.counts["predictions"] == count, lambda: str(stream.worker.counts))

    with running(pipeline, settings) as stream:
        correct(*values(0, 30))
        counted(stream, 30)
    (last,) = newest(overlays())
    delete(admin, name)
    eventually(lambda: not exists(settings, name))
    kept = {"cleanup.policy": "compact", "retention.ms": "3600000"}
    admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=-1, config=kept)])[name].result(10)
    eventually(lambda: exists(settings, name))
    with running(pipeline, settings) as stream:
        correct(310.0, 311.0)
        counted(stream, 2)
        (differs,) = [record.message for record in caplog.records if f"{name} is not as declared" in record.message]
        assert "cleanup.policy is compact: " in differs
        assert "it has 2 partitions, not 4" in differs
        assert name in stream.worker.incidents[TOPIC_LOST].reason
        assert stream.sink.incidents == {}
    (again,) = newest(overlays())
    assert (again.as_of, again.kafka_offset, again.values["t2m_1h"]) == (last.as_of, 1, 312.0)
    assert last.kafka_offset > again.kafka_offset
    with running(pipeline, settings) as stream:
        correct(312.0)
        counted(stream, 1)
        assert stream.worker.incidents == {}


def test_records_deleted_before_they_were_read_are_counted_and_said(pipeline: Pipeline, settings: Settings) -> None:
    assert pipeline.stream is not None
    name, admin = pipeline.stream.topic, open_admin(settings)
    with running(pipeline, settings) as stream:
        send(settings, pipeline, values(0, 30))
        eventually(lambda: stream.target.observed() == values(0, 30))
        eventually(lambda: stream.crew.why_not_ready() is None)
        assert stream.worker.incidents == stream.sink.incidents == {}
    send(settings, pipeline, values(30, 40))
    ends = eventually(lambda: TopicStates(settings).ends(name, range(4)))  # a new client may not know the leaders yet
    gone = [TopicPartition(name, partition, end - 1) for partition, end in ends.items() if end]
    for future in admin.delete_records(gone).values():
        future.result(10)
    with running(pipeline, settings) as stream:
        eventually(lambda: len(stream.target.observed()) == len(gone))
        assert f"up to {40 - len(gone)} records" in stream.worker.incidents[RECORDS_LOST].reason
        assert stream.sink.incidents == {}


def test_what_a_transaction_ends_with_counts_as_no_lost_record(pipeline: Pipeline, settings: Settings) -> None:
    name, admin = pipeline.features_topic, open_admin(settings)

    def committed() -> dict[int, int]:
        group = ConsumerGroupTopicPartitions(f"almanac-{pipeline.name}-sink-features")
        found = admin.list_consumer_group_offsets([group])[group.group_id].result(10).topic_partitions
        return {of.partition: of.offset for of in found}

    with running(pipeline, settings) as stream:
        send(settings, pipeline, values(0, 10))
        eventually(lambda: stream.target.observed() == values(0, 10))
        ends = {partition: end for partition, end in TopicStates(settings).ends(name, range(4)).items() if end}
        eventually(lambda: committed() == ends, lambda: f"{committed()} is not {ends}")
    for future in admin.delete_records([TopicPartition(name, p, end) for p, end in ends.items()]).values():
        future.result(10)
    with running(pipeline, settings) as stream:
        send(settings, pipeline, values(10, 5))
        eventually(lambda: stream.target.observed() == values(10, 5))
        assert stream.sink.incidents == {}


def test_a_missing_topic_has_no_state_and_no_offsets(settings: Settings) -> None:
    states = TopicStates(settings)
    assert states.look(["nobody.made.this"]) == {"nobody.made.this": None}
    with pytest.raises(Unavailable, match=r"nobody\.made\.this"):
        states.ends("nobody.made.this", [0])
