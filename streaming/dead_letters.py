"""Dead letters, read back for a person."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from streaming.connection import consumed, kafka_errors, open_reader
from streaming.records import DeadLetter, read_dead_letter

READ_SECONDS_MAX = 15.0
CONSUME_SECONDS_MAX = 0.1
REQUEST_SECONDS_MAX = 10.0
PARTITION_RECORDS_MAX = 10_000
"""Records looked at, per partition, from the newest back."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A dead letter and when it was written."""

    at: datetime
    letter: DeadLetter


def dead_letters(pipeline: Pipeline, settings: Settings, limit: int) -> list[Listed]:
    """The newest dead letters of a pipeline, oldest first, at most `limit`.

    Raises:
        Unavailable: no broker answered.
        UsageError: the topic does not exist yet.
    """
    topic = pipeline.dead_letter_topic
    with kafka_errors(f"dead letters of pipeline {pipeline.name} cannot be read", settings):
        reader = open_reader(settings)
        try:
            found = reader.list_topics(topic, timeout=REQUEST_SECONDS_MAX).topics[topic]
            if found.error is not None or not found.partitions:
                raise UsageError(f"topic {topic} does not exist yet: start the stream worker (`almanac up`)")
            return _read(reader, topic, list(found.partitions))[-limit:]
        finally:
            reader.close()


def _read(reader: Consumer, topic: str, partitions: list[int]) -> list[Listed]:
    starts = []
    for partition in partitions:
        low, high = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_SECONDS_MAX)
        starts.append(TopicPartition(topic, partition, max(low, high - PARTITION_RECORDS_MAX)))
    reader.assign(starts)
    unread, found = set(partitions), list[Listed]()
    give_up_at = time.monotonic() + READ_SECONDS_MAX
    while unread and time.monotonic() < give_up_at:
        for message in reader.consume(500, CONSUME_SECONDS_MAX):
            if message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
                continue
            at = datetime.fromtimestamp(max(message.timestamp()[1], 0) / 1000, UTC)
            found.extend(Listed(at=at, letter=read_dead_letter(record)) for record in consumed([message]))
    if unread:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return sorted(found, key=lambda listed: listed.at)
