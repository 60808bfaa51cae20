"""How far a sink has come, asked from outside its group: marks of transactions, open ones, and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, TopicPartition

from almanac.settings import Settings, load_settings
from streaming.applied import Applied
from streaming.connection import open_consumer, open_transactional_producer
from streaming.topics import ensure_topics
from tests.generations import new_name
from tests.streams import eventually, tiny_pipeline

SECONDS_MAX = 30.0


@pytest.fixture
def settings(kafka_bootstrap: str, tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, kafka_bootstrap=kafka_bootstrap)


@pytest.fixture
def topic(settings: Settings) -> str:
    pipeline = tiny_pipeline(new_name())
    ensure_topics(pipeline, settings)
    return pipeline.features_topic


@pytest.fixture
def applied(settings: Settings, topic: str) -> Iterator[Applied]:
    found = Applied(topic, f"{topic}-sink", settings)

    def answered() -> bool:
        """A broker that has just started may not know yet where a group's offsets are."""
        try:
            return found.committed() == {}
        except KafkaException:
            return False

    eventually(answered)
    yield found
    found.close()


def commit(settings: Settings, topic: str, offsets: dict[int, int]) -> None:
    consumer = open_consumer(settings, f"{topic}-sink", "test")
    consumer.commit(offsets=[TopicPartition(topic, p, offset) for p, offset in offsets.items()], asynchronous=False)
    consumer.close()


def test_a_sink_is_past_what_is_committed_though_marks_of_transactions_lie_behind(
    settings: Settings, topic: str, applied: Applied
) -> None:
    assert applied.behind(applied.ends()) is None  # nothing was written
    producer = open_transactional_producer(settings, f"{topic}-writer")
    producer.init_transactions(SECONDS_MAX)
    producer.begin_transaction()
    for number in range(3):
        producer.produce(topic, value=b"%d" % number, partition=1)
    producer.commit_transaction(SECONDS_MAX)
    eventually(lambda: applied.ends()[1] == 4)  # three records, and the mark a moment after the commit's answer
    ends = applied.ends()
    eventually(lambda: "is at 0 of 4" in (applied.behind(ends) or ""), lambda: str(applied.behind(ends)))
    commit(settings, topic, {1: 2})
    assert "is at 2 of 4" in (applied.behind(ends) or "")
    commit(settings, topic, {1: 3})
    assert applied.behind(ends) is None
    assert applied.committed() == {1: 3}


def test_a_transaction_that_is_still_open_may_yet_be_committed_so_that_nothing_is_past_it(
    settings: Settings, topic: str, applied: Applied
) -> None:
    producer = open_transactional_producer(settings, f"{topic}-writer")
    producer.init_transactions(SECONDS_MAX)
    producer.begin_transaction()
    producer.produce(topic, value=b"open", partition=0)
    producer.flush(SECONDS_MAX)
    ends = applied.ends()
    assert ends[0] == 1
    assert "still open" in (applied.behind(ends) or "")
    producer.abort_transaction(SECONDS_MAX)
    eventually(lambda: applied.behind(ends) is None, lambda: str(applied.behind(ends)))
