"""The topics of a pipeline's stream: their names, limits, and how they come to be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from streaming.connection import kafka_errors, open_admin
from streaming.events import EVENT_BYTES_MAX, declared
from streaming.pause import Pause

PARTITIONS = 4
REQUEST_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 2 * REQUEST_SECONDS_MAX
"""Time that is waited for the client to say what a request came to."""
CLIENT_SECONDS_MAX = 3.0
"""Time that one client is asked whether new topics have leaders."""
LEADER_SECONDS_MAX = 30.0
"""Time that a busy broker may take until a topic it has just created can be written to."""
RECORD_BYTES_MAX = 4 * EVENT_BYTES_MAX
"""Size of a record that a topic takes, in bytes; the dead letters' takes twice as much."""
BROKER_DEFAULT = -1
"""Replication factor: the broker's own default, which fits one node and many."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic and its limits.

    Args:
        retention: how long records are kept.
        record_bytes_max: size of one record, in bytes.
    """

    name: str
    retention: timedelta
    record_bytes_max: int
    partitions: int = PARTITIONS

    def new(self) -> NewTopic:
        """The request that creates it."""
        return NewTopic(
            self.name,
            num_partitions=self.partitions,
            replication_factor=BROKER_DEFAULT,
            config={
                "cleanup.policy": "delete",
                "retention.ms": str(int(self.retention.total_seconds() * 1000)),
                "max.message.bytes": str(self.record_bytes_max),
            },
        )


def topics(pipeline: Pipeline) -> tuple[Topic, ...]:
    """The four topics of a pipeline with a stream.

    The events' topic takes records above `EVENT_BYTES_MAX`, so that one that is
    too large to be read becomes a dead letter instead of an error for nobody;
    the dead letters' takes those and the headers added to them.
    """
    stream = declared(pipeline)
    return (
        Topic(name=stream.topic, retention=timedelta(days=7), record_bytes_max=RECORD_BYTES_MAX),
        Topic(name=pipeline.predictions_topic, retention=timedelta(days=7), record_bytes_max=RECORD_BYTES_MAX),
        Topic(name=pipeline.features_topic, retention=timedelta(days=7), record_bytes_max=RECORD_BYTES_MAX),
        Topic(name=pipeline.dead_letter_topic, retention=timedelta(days=30), record_bytes_max=2 * RECORD_BYTES_MAX),
    )


def ensure_topics(pipeline: Pipeline, settings: Settings) -> list[str]:
    """Create the topics that are missing; existing ones stay as they are. Returns the names of the new ones.

    Raises:
        Unavailable: no broker answered.
        UsageError: the broker refuses to create one; says why.
    """
    wanted = topics(pipeline)
    with kafka_errors(f"topics of pipeline {pipeline.name} cannot be looked up", settings):
        admin = open_admin(settings)
        present = admin.list_topics(timeout=REQUEST_SECONDS_MAX).topics
        missing = [topic for topic in wanted if topic.name not in present]
        created = []
        new = [topic.new() for topic in missing]
        pending = admin.create_topics(new, request_timeout=REQUEST_SECONDS_MAX) if new else {}
        for name, future in pending.items():
            try:
                future.result(SILENCE_SECONDS_MAX)
                created.append(name)
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() == KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was faster
                    continue
                if cause.retriable() or cause.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
                    raise
                raise UsageError(f"topic {name} cannot be created ({cause.str()}): create it by hand") from None
        if created:
            _wait_for_leaders(admin, settings, [topic for topic in missing if topic.name in created])
        return created


def _wait_for_leaders(admin: AdminClient, settings: Settings, created: list[Topic]) -> None:
    """Return once every partition answers: a topic that was just created is refused for a moment.

    Another client asks after `CLIENT_SECONDS_MAX`: one that once heard of a partition without a leader has been seen
    to hold on to that for half a minute and more, while the broker had elected it within a third of a second.
    """
    asked = {
        TopicPartition(topic.name, partition): OffsetSpec.latest()
        for topic in created
        for partition in range(topic.partitions)
    }
    opened = time.monotonic()
    for attempt in Pause.attempts((KafkaException, TimeoutError), LEADER_SECONDS_MAX):
        with attempt:
            if time.monotonic() - opened > CLIENT_SECONDS_MAX:
                admin, opened = open_admin(settings), time.monotonic()
            for future in admin.list_offsets(asked, request_timeout=REQUEST_SECONDS_MAX).values():
                future.result(SILENCE_SECONDS_MAX)
