"""What Kafka says of topics: which they are, how many partitions they have, whether these can be read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from almanac.errors import Unavailable
from almanac.settings import Settings
from streaming.connection import kafka_waits, open_admin

ANSWER_SECONDS_MAX = 3.0
SILENCE_SECONDS_MAX = 2 * ANSWER_SECONDS_MAX
"""Time that is waited for the client to say what a request came to."""
NAMED_MAX = 5
UNKNOWN = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class TopicChanged(Unavailable):
    """A topic is not there, or not the one that it was: consumers and producers are to be opened anew."""


@dataclass(frozen=True, kw_only=True)
class TopicState:
    """One topic as a broker described it.

    Args:
        topic_id: another one after the topic was deleted and made again.
        leaderless: partitions that can be neither read nor written now.
    """

    topic_id: str
    partitions: int
    leaderless: tuple[int, ...] = ()


class TopicStates:
    """Asks a broker, by one client that is opened when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AdminClient | None = None

    def close(self) -> None:
        """Let go of the client; the next question opens another."""
        self._admin = None

    def look(self, names: Collection[str]) -> dict[str, TopicState | None]:
        """The state of each topic; None of one that does not exist.

        Raises:
            Unavailable: no broker answered, or one refused to.
        """
        with kafka_waits("topics cannot be described", self._settings):
            answers = self._opened().describe_topics(TopicCollection(list(names)), request_timeout=ANSWER_SECONDS_MAX)
            found: dict[str, TopicState | None] = {}
            for name, answer in answers.items():
                try:
                    described = answer.result(SILENCE_SECONDS_MAX)
                except KafkaException as error:
                    if error.args[0].code() not in UNKNOWN:
                        raise
                    found[name] = None
                    continue
                found[name] = TopicState(
                    topic_id=str(described.topic_id),
                    partitions=len(described.partitions),
                    leaderless=tuple(
                        part.id for part in described.partitions if part.leader is None or part.leader.id < 0
                    ),
                )
        return found

    def starts(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Where each partition's records begin; those before it were deleted.

        Raises:
            Unavailable: no broker answered.
        """
        return self._offsets(topic, partitions, OffsetSpec.earliest())

    def ends(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Where each partition ends.

        Raises:
            Unavailable: no broker answered.
        """
        return self._offsets(topic, partitions, OffsetSpec.latest())

    def _offsets(self, topic: str, partitions: Collection[int], spec: OffsetSpec) -> dict[int, int]:
        if not partitions:
            return {}
        asked = {TopicPartition(topic, partition): spec for partition in partitions}
        with kafka_waits(f"offsets of topic {topic} cannot be asked", self._settings):
            answers = self._opened().list_offsets(asked, request_timeout=ANSWER_SECONDS_MAX)
            return {of.partition: answer.result(SILENCE_SECONDS_MAX).offset for of, answer in answers.items()}

    def _opened(self) -> AdminClient:
        if self._admin is None:
            self._admin = open_admin(self._settings)
        return self._admin


def why_anew(before: Mapping[str, TopicState], now: Mapping[str, TopicState | None]) -> str | None:
    """Why what reads or writes these topics is to be opened anew; None if they are those that they were.

    Args:
        before: as they were when it was opened.
    """
    for name, state in now.items():
        if state is None:
            return f"topic {name} does not exist: it was deleted, and the stream's worker makes it again as declared"
        if name in before and before[name].topic_id != state.topic_id:
            return f"topic {name} was deleted and made again: it is read from its beginning"
    return None


def lost(expected: Mapping[int, int], starts: Mapping[int, int]) -> dict[int, int]:
    """How many records of each partition were deleted before they were read.

    Args:
        expected: where reading goes on.
        starts: where the records begin.
    """
    return {
        partition: starts[partition] - offset
        for partition, offset in expected.items()
        if starts.get(partition, 0) > offset
    }


def listed(partitions: Collection[int]) -> str:
    """The first few, and how many more there are."""
    named = ", ".join(str(partition) for partition in sorted(partitions)[:NAMED_MAX])
    more = len(partitions) - NAMED_MAX
    return f"{named} and {more} more" if more > 0 else named
