"""Lag: how many records a consumer group has not committed yet, from what the consumer knows anyway."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from almanac.metrics import STREAM_LAG
from almanac.metrics_server import forget

NOTED_SECONDS = 1.0
"""Time between two looks at the consumer."""

Place = tuple[str, int]


class Lag:
    """The lag of one consumer, partition by partition, as a metric.

    A topic that is written in transactions ends with their marks, which nobody
    receives; so where the consumer says that it has reached the end, that counts.

    Args:
        pipeline, group: labels of the metric.
    """

    def __init__(self, pipeline: str, group: str) -> None:
        self._labels = (pipeline, group)
        self._committed: dict[Place, int] = {}
        self._reached: dict[Place, int] = {}
        self._received: dict[Place, int] = {}
        self._shown: set[int] = set()
        self._noted_at: float | None = None

    def sift(self, messages: Iterable[Message]) -> list[Message]:
        """Take out the messages which only say that a partition's end is reached."""
        found = []
        for message in messages:
            if message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF:
                self._reached[message.topic(), message.partition()] = message.offset()
            else:
                found.append(message)
                if message.error() is None:
                    self._received[message.topic(), message.partition()] = message.offset() + 1
        return found

    def committed(self, offsets: Iterable[TopicPartition]) -> None:
        """Take note of what was committed."""
        self._committed.update({(found.topic, found.partition): found.offset for found in offsets})

    def expected(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Where reading goes on, of those of a topic's partitions of which that is known."""
        known = (self._committed, self._received, self._reached)
        places = {(topic, partition) for partition in partitions} & set().union(*known)
        return {place[1]: max(offsets.get(place, 0) for offsets in known) for place in places}

    def passed(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Take note of where partitions begin: what stood before is not there any more."""
        for partition, offset in offsets.items():
            place = (topic, partition)
            if offset > self._committed.get(place, -1):
                self._committed[place] = offset

    def behind_marks(self, topic: str) -> dict[int, int]:
        """Ends of partitions of which all that was received is committed, and that have marks of transactions after."""
        return {
            partition: reached
            for (name, partition), reached in self._reached.items()
            if name == topic
            and (committed := self._committed.get((name, partition))) is not None
            and self._received.get((name, partition), 0) <= committed < reached
        }

    def opened(self) -> None:
        """A new consumer begins: what the last one knew may be old."""
        self._committed, self._reached, self._received = {}, {}, {}

    def note(self, consumer: Consumer, now_seconds: float) -> None:
        """Show the lag of the partitions that the consumer has; asks no broker.

        Args:
            now_seconds: monotonic time.
        """
        if self._noted_at is not None and now_seconds - self._noted_at < NOTED_SECONDS:
            return
        self._noted_at = now_seconds
        assigned = consumer.assignment()
        for found in assigned:
            lag = self._of(consumer, found)
            if lag is not None:
                STREAM_LAG.labels(*self._labels, found.partition).set(lag)
                self._shown.add(found.partition)
        for partition in self._shown - {found.partition for found in assigned}:
            forget(STREAM_LAG, *self._labels, partition)
            self._shown.discard(partition)

    def _of(self, consumer: Consumer, of: TopicPartition) -> int | None:
        place = (of.topic, of.partition)
        known = consumer.get_watermark_offsets(of, cached=True)
        if known is None or known[1] < 0:
            return None
        end, reached = known[1], self._reached.get(place, -1)
        committed, received = self._committed.get(place), self._received.get(place, 0)
        if reached >= end and (committed or 0) >= received:
            return 0
        return None if committed is None else int(max(0, end - committed))  # None: nothing was committed yet
