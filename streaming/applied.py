"""Applied: how far a sink has brought a topic to its store, asked of Kafka without joining the sink's group.

A sink commits what it has applied. But the end of a topic that is written in
transactions is made of marks that nobody receives, so that offsets alone do not
say whether anything is left. That is found out by reading on from what the sink
committed: if the end is reached and nothing came, it is past all there was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from almanac.settings import Settings
from streaming.connection import open_admin, open_follower

ANSWER_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 2 * ANSWER_SECONDS_MAX
"""Time that is waited for the client to say what a request came to."""
READ_SECONDS_MAX = 3.0
"""Time that reading on to the end may take; it reads one record of a partition at most."""


class Progress(Protocol):
    """How far a sink has come: `Applied` is one."""

    def ends(self) -> dict[int, int]:
        """Where the partitions of its topic end."""
        ...

    def behind(self, ends: Mapping[int, int]) -> str | None:
        """Why the sink is not past these ends; None once it is."""
        ...

    def committed(self) -> dict[int, int]:
        """The offset that the sink goes on with in each partition."""
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


class Applied:
    """What one consumer group has committed of one topic.

    Args:
        topic: what the sink reads.
        group: the sink's consumer group.
    """

    def __init__(self, topic: str, group: str, settings: Settings) -> None:
        self._topic = topic
        self._group = group
        self._settings = settings
        self._follower: Consumer | None = None
        self._admin: AdminClient | None = None

    def close(self) -> None:
        """Give the connections back; the next question opens new ones."""
        if self._follower is not None:
            self._follower.close()
        self._follower = self._admin = None

    def committed(self) -> dict[int, int]:
        """Of each partition the offset that the sink goes on with; none where it has not committed.

        Raises:
            KafkaException: a broker did not answer.
        """
        found = self._opened().committed(self._partitions(), timeout=ANSWER_SECONDS_MAX)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return {each.partition: each.offset for each in found if each.offset >= 0}

    def ends(self) -> dict[int, int]:
        """Where each partition ends now, with what open transactions have written.

        Raises:
            KafkaException: a broker did not answer.
        """
        if self._admin is None:
            self._admin = open_admin(self._settings)
        asked = {partition: OffsetSpec.latest() for partition in self._partitions()}
        answers = self._admin.list_offsets(asked, request_timeout=ANSWER_SECONDS_MAX)
        return {of.partition: answer.result(SILENCE_SECONDS_MAX).offset for of, answer in answers.items()}

    def behind(self, ends: Mapping[int, int]) -> str | None:
        """Why the sink is not known to be past these ends; None once it is.

        Args:
            ends: as `ends` gave them.

        Raises:
            KafkaException: a broker did not answer.
        """
        committed = self.committed()
        asked = {partition: end for partition, end in ends.items() if committed.get(partition, 0) < end}
        if not asked:
            return None
        follower = self._opened()
        follower.assign(
            [TopicPartition(self._topic, p, committed.get(p, OFFSET_BEGINNING)) for p in asked],
        )
        try:
            return self._read_on(follower, asked, committed)
        finally:
            follower.unassign()

    def _read_on(self, follower: Consumer, asked: dict[int, int], committed: Mapping[int, int]) -> str | None:
        left, give_up_at = set(asked), time.monotonic() + READ_SECONDS_MAX
        while left and time.monotonic() < give_up_at:
            for message in follower.consume(len(asked), 0.1):
                partition, error = message.partition(), message.error()
                if error is None:
                    return (
                        f"the sink {self._group} has not applied what is committed of {self._topic}: partition "
                        f"{partition} is at {committed.get(partition, 0)} of {asked[partition]}"
                    )
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                if message.offset() < asked[partition]:
                    return f"{self._topic} has a transaction that is still open, at {message.offset()}"
                left.discard(partition)
        return f"{self._topic} could not be read to its end within {READ_SECONDS_MAX:g} s" if left else None

    def _partitions(self) -> list[TopicPartition]:
        found = self._opened().list_topics(self._topic, timeout=ANSWER_SECONDS_MAX).topics[self._topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return [TopicPartition(self._topic, partition) for partition in found.partitions]

    def _opened(self) -> Consumer:
        if self._follower is None:
            self._follower = open_follower(self._settings, self._group)
        return self._follower
