"""The topics of a pipeline's stream: their names, limits, and how they come to be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from almanac.errors import AlmanacError, UsageError
from almanac.metrics import STREAM_TOPIC_DIFFERENCES
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from streaming.connection import kafka_errors, open_admin
from streaming.events import declared
from streaming.pause import Pause
from streaming.report import Report
from streaming.sizes import LETTER_BYTES_MAX, RECORD_BYTES_MAX

PARTITIONS = 4
REQUEST_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 2 * REQUEST_SECONDS_MAX
"""Time that is waited for the client to say what a request came to."""
CLIENT_SECONDS_MAX = 3.0
"""Time that one client is asked whether new topics have leaders."""
LEADER_SECONDS_MAX = 30.0
"""Time that a busy broker may take until a topic it has just created can be written to."""
COMPRESSION, UNCOMPRESSED = "compression.type", "uncompressed"
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
            config=self.config(),
        )

    def config(self) -> dict[str, str]:
        """Its settings."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(int(self.retention.total_seconds() * 1000)),
            "max.message.bytes": str(self.record_bytes_max),
            # The broker unpacks what comes compressed, so that the limit holds for what readers get: else a batch of
            # 255 KB becomes 250 MB for each of them.
            COMPRESSION: UNCOMPRESSED,
        }


def topics(pipeline: Pipeline) -> tuple[Topic, ...]:
    """The four topics of a pipeline with a stream.

    The events' topic takes records above `events.EVENT_BYTES_MAX`, so that one that is
    too large to be read becomes a dead letter instead of an error for nobody;
    the dead letters' takes those and the headers added to them.
    """
    stream = declared(pipeline)
    return (
        Topic(name=stream.topic, retention=timedelta(days=7), record_bytes_max=RECORD_BYTES_MAX),
        Topic(name=pipeline.predictions_topic, retention=timedelta(days=7), record_bytes_max=RECORD_BYTES_MAX),
        Topic(name=pipeline.features_topic, retention=timedelta(days=7), record_bytes_max=RECORD_BYTES_MAX),
        Topic(name=pipeline.dead_letter_topic, retention=timedelta(days=30), record_bytes_max=LETTER_BYTES_MAX),
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


def differing(pipeline: Pipeline, settings: Settings) -> dict[str, list[str]]:
    """How topics that somebody else made are worse than declared, by topic; those that are not are absent.

    Raises:
        Unavailable: no broker answered.
        UsageError: a topic is missing.
    """
    wanted = {topic.name: topic for topic in topics(pipeline)}
    with kafka_errors(f"topics of pipeline {pipeline.name} cannot be compared with their declaration", settings):
        admin = open_admin(settings)
        present = admin.list_topics(timeout=REQUEST_SECONDS_MAX).topics
        found = {}
        for name, config in _configs(admin, list(wanted)).items():
            partitions = len(present[name].partitions) if name in present else 0
            if said := worse(wanted[name], partitions, config):
                found[name] = said
        return found


def _configs(admin: AdminClient, names: list[str]) -> dict[str, dict[str, str | None]]:
    """Settings of topics, as a broker says them."""
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    answers = admin.describe_configs(asked, request_timeout=REQUEST_SECONDS_MAX)
    return {
        resource.name: {name: entry.value for name, entry in answer.result(SILENCE_SECONDS_MAX).items()}
        for resource, answer in answers.items()
    }


def unpack_batches(pipeline: Pipeline, settings: Settings) -> list[str]:
    """Have the broker unpack batches of topics for which nobody chose that it does not, such as older ones.

    Returns:
        The names of topics that were changed. Where it is not allowed, or somebody chose otherwise, none is.
    """
    names = [topic.name for topic in topics(pipeline)]
    with suppress(AlmanacError), kafka_errors(f"topics of pipeline {pipeline.name} cannot be changed", settings):
        admin = open_admin(settings)
        asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        answers = admin.describe_configs(asked, request_timeout=REQUEST_SECONDS_MAX)
        found = {of.name: answer.result(SILENCE_SECONDS_MAX).get(COMPRESSION) for of, answer in answers.items()}
        left = [name for name, entry in found.items() if entry and entry.is_default and entry.value != UNCOMPRESSED]
        change = ConfigEntry(COMPRESSION, UNCOMPRESSED, incremental_operation=AlterConfigOpType.SET)
        changes = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=[change]) for name in left]
        pending = admin.incremental_alter_configs(changes, request_timeout=REQUEST_SECONDS_MAX) if changes else {}
        for answer in pending.values():
            answer.result(SILENCE_SECONDS_MAX)
        return left
    return []


def letter_bytes_max(pipeline: Pipeline, settings: Settings) -> int:
    """Size of a dead letter that its topic takes, in bytes: less than declared where somebody else made the topic.

    A broker that does not say it counts as one that has it as declared.
    """
    topic = pipeline.dead_letter_topic
    with suppress(AlmanacError), kafka_errors(f"settings of topic {topic} cannot be read", settings):
        config = _configs(open_admin(settings), [topic])[topic]
        return min(LETTER_BYTES_MAX, int(config.get("max.message.bytes") or LETTER_BYTES_MAX))
    return LETTER_BYTES_MAX


def say_differing(pipeline: Pipeline, settings: Settings, report: Report, said: set[str]) -> None:
    """Say once how topics that somebody else made are worse than declared; nobody is hindered.

    Args:
        said: what is said already; more is added.
    """
    try:
        found = differing(pipeline, settings)
    except AlmanacError as error:  # such as a broker that lets nobody see settings
        found, lines = {}, [str(error)]
    else:
        lines = [f"topic {name} is not as declared: {'; '.join(ways)}" for name, ways in found.items()]
    for line in lines:
        if line not in said:
            report.warn(line)
        said.add(line)
    for topic in topics(pipeline):
        STREAM_TOPIC_DIFFERENCES.labels(pipeline.name, topic.name).set(len(found.get(topic.name, ())))


def worse(topic: Topic, partitions: int, config: Mapping[str, str | None]) -> list[str]:
    """What of a topic is less than declared.

    Args:
        partitions: how many it has.
        config: its settings, as a broker says them; one that it does not say counts as declared.
    """
    declared = topic.config()
    retention, most = (int(config.get(name) or declared[name]) for name in ("retention.ms", "max.message.bytes"))
    policy = str(config.get("cleanup.policy") or "delete")
    said = []
    if "compact" in policy:
        said.append(f"cleanup.policy is {policy}: of one key's records the broker drops all but the last")
    if 0 <= retention < int(declared["retention.ms"]) and "delete" in policy:
        said.append(f"retention.ms is {retention}, not {declared['retention.ms']}: records go sooner")
    if most < int(declared["max.message.bytes"]):
        said.append(f"max.message.bytes is {most}, not {declared['max.message.bytes']}: large records are refused")
    if (packed := config.get(COMPRESSION) or UNCOMPRESSED) != UNCOMPRESSED:
        said.append(
            f"{COMPRESSION} is {packed}, not {UNCOMPRESSED}: a compressed batch may unpack to a thousand times "
            "max.message.bytes in whoever reads it"
        )
    if partitions < topic.partitions:
        said.append(f"it has {partitions} partitions, not {topic.partitions}: fewer workers share it")
    return said


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
