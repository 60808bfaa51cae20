"""Dead letters, read back for a person."""

from __future__ import annotations

import heapq
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
BYTES_MAX = 256 * 1024 * 1024
"""Of letters that are held at once; older ones are let go, and said."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A dead letter and when it was written."""

    at: datetime
    letter: DeadLetter


class Newest:
    """The newest letters that were added, within a number and a size.

    Args:
        count: of letters.
        size: in bytes, of their values and headers.
    """

    def __init__(self, count: int, size: int = BYTES_MAX) -> None:
        self._count, self._size = count, size
        self._letters: list[tuple[datetime, int, int, Listed]] = []  # a heap, the oldest first
        self._bytes = 0
        self._added = 0
        self.let_go_for_size = 0
        """Letters that were older than those that fit."""

    def add(self, letter: Listed, size: int) -> None:
        """Take a letter, and let the oldest go for it where need be."""
        self._added += 1
        self._bytes += size
        heapq.heappush(self._letters, (letter.at, self._added, size, letter))
        while len(self._letters) > self._count or (self._bytes > self._size and len(self._letters) > 1):
            self.let_go_for_size += len(self._letters) <= self._count
            self._bytes -= heapq.heappop(self._letters)[2]

    def listed(self) -> list[Listed]:
        """Oldest first; of one time in the order in which they came."""
        return [letter for *_, letter in sorted(self._letters, key=lambda one: one[:2])]


def dead_letters(pipeline: Pipeline, settings: Settings, limit: int) -> list[Listed]:
    """As `newest_letters`, their list alone."""
    return newest_letters(pipeline, settings, limit).listed()


def newest_letters(pipeline: Pipeline, settings: Settings, limit: int) -> Newest:
    """The newest dead letters of a pipeline, at most `limit` and `BYTES_MAX`.

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
            return _read(reader, topic, list(found.partitions), Newest(limit))
        finally:
            reader.close()


def _read(reader: Consumer, topic: str, partitions: list[int], newest: Newest) -> Newest:
    starts = []
    for partition in partitions:
        low, high = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_SECONDS_MAX)
        starts.append(TopicPartition(topic, partition, max(low, high - PARTITION_RECORDS_MAX)))
    reader.assign(starts)
    unread = set(partitions)
    give_up_at = time.monotonic() + READ_SECONDS_MAX
    while unread and time.monotonic() < give_up_at:
        for message in reader.consume(500, CONSUME_SECONDS_MAX):
            if message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
                continue
            at = datetime.fromtimestamp(max(message.timestamp()[1], 0) / 1000, UTC)
            for record in consumed([message]):
                newest.add(Listed(at=at, letter=read_dead_letter(record)), record.bytes)
    if unread:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return newest
