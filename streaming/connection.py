"""Connections to Kafka: how consumers and producers are configured, and what their errors mean."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from almanac.errors import AlmanacError, Unavailable, UsageError
from almanac.settings import Settings
from streaming.records import Consumed
from streaming.values import shown

SESSION_MS_MAX = 10_000
"""Silence, in milliseconds, after which the broker gives a worker's partitions to another."""
POLL_INTERVAL_MS_MAX = 300_000
"""Time between two polls after which a worker counts as stuck; well above any pause."""
TRANSACTION_MS_MAX = 30_000
"""Age at which the broker aborts a dead worker's transaction, if no successor did before."""
PRODUCED_BYTES_MAX = 1_048_576
"""Size of a record that a producer takes: above that of any topic, so that the topic decides."""
BATCH_BYTES_MAX = 131_072
"""Size of a batch that a producer makes of several records: a topic's limit holds for a batch as for a record."""
SOCKET_MS_MAX = 10_000
METADATA_MS_MAX = 10_000
"""Time, in milliseconds, until partitions that were added to a topic are read and written."""
FETCH_WAIT_MS_MAX = 100
QUEUED_KBYTES_MAX = 16_384
"""Records fetched ahead, in kilobytes per consumer."""

_headers = methodcaller("headers")

log = logging.getLogger("streaming.kafka")


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.need("kafka_bootstrap"),
        "client.id": "almanac",
        # The library writes a line for each refused connection; what matters reaches us as an exception.
        "log_level": 0,
        "error_cb": lambda error: log.debug("%s", error),
        "socket.timeout.ms": SOCKET_MS_MAX,
        "reconnect.backoff.max.ms": 2_000,
        "topic.metadata.refresh.interval.ms": METADATA_MS_MAX,
    }


def open_consumer(settings: Settings, group: str, instance: str) -> Consumer:
    """A consumer that reads committed records and never commits by itself.

    Args:
        group: consumer group.
        instance: names the member, so that a successor of a killed process takes its
            partitions over at once instead of after `SESSION_MS_MAX`.
    """
    return Consumer(
        {
            **_common(settings),
            "group.id": group,
            "group.instance.id": f"{group}-{instance}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "allow.auto.create.topics": False,
            "enable.partition.eof": True,  # tells `streaming.lag` where a topic's transactions end
            # The newer protocol (KIP-848) works with transactions as well, but its session timeout belongs to the
            # broker (45 s by default) and holds back a killed member's successor for that long.
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": SESSION_MS_MAX,
            "max.poll.interval.ms": POLL_INTERVAL_MS_MAX,
            "fetch.wait.max.ms": FETCH_WAIT_MS_MAX,
            "queued.max.messages.kbytes": QUEUED_KBYTES_MAX,
        }
    )


def open_reader(settings: Settings) -> Consumer:
    """A consumer outside of any group's bookkeeping, to look at a topic: assign, read, close."""
    return open_follower(settings, "almanac-reader")


def open_follower(settings: Settings, group: str) -> Consumer:
    """A consumer that sees what a group has committed and is no member of it: never subscribe, never commit."""
    return Consumer(
        {
            **_common(settings),
            "group.id": group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "allow.auto.create.topics": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": FETCH_WAIT_MS_MAX,
        }
    )


def open_producer(settings: Settings, **more: Any) -> Producer:
    """A producer that waits for all replicas, writes each record once, and places keys as Java's clients do."""
    return Producer(
        {
            **_common(settings),
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.max.bytes": PRODUCED_BYTES_MAX,
            "batch.size": BATCH_BYTES_MAX,
            "linger.ms": 5,
            **more,
        }
    )


def open_transactional_producer(settings: Settings, name: str) -> Producer:
    """A producer for exactly-once writing; opening another of the same name ends this one's transaction."""
    return open_producer(settings, **{"transactional.id": name, "transaction.timeout.ms": TRANSACTION_MS_MAX})


def open_admin(settings: Settings) -> AdminClient:
    """A client for topics."""
    return AdminClient(_common(settings))


def consumed(messages: Iterable[Message], incarnation: int = 0) -> list[Consumed]:
    """Messages as records; one that only says that a partition's end is reached is none.

    Args:
        incarnation: of their topic; 0 where it does not matter.

    Raises:
        KafkaException: one of them is an error; none of them may be handled then.
    """
    found = []
    for message in messages:
        if message.error() is not None:
            if message.error().code() == KafkaError._PARTITION_EOF:
                continue
            raise KafkaException(message.error())
        found.append(_record(message, incarnation))
    return found


def _record(message: Message, incarnation: int) -> Consumed:
    """A message as a record, whatever its headers are: a name need not be UTF-8, and the client fails of such.

    Headers are asked for once. Asked again after a failure, the client gives tuples that have no name at all, and to
    touch one ends the process. Nor are they asked for by `message.headers()`: where Python has made such a call often,
    it takes the result without looking whether the client failed.
    """
    headers: tuple[tuple[str, bytes | None], ...] = ()
    unreadable = ""
    try:
        headers = tuple(_headers(message) or ())
    except Exception as error:  # noqa: BLE001 - SystemError, around what the client made of a name
        cause = error.__cause__ or error
        name = f" {shown(cause.object)}" if isinstance(cause, UnicodeDecodeError) else ""
        unreadable = f"a header's name{name} is not UTF-8, so no header can be read: send names in UTF-8"
    return Consumed(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        key=message.key(),
        value=message.value(),
        headers=headers,
        standing=incarnation,
        unreadable=unreadable,
    )


def next_offsets(records: Sequence[Consumed], mark: str = "") -> list[TopicPartition]:
    """Where to go on after these records, per partition.

    Args:
        mark: what is committed beside each offset.
    """
    after: dict[tuple[str, int], int] = {}
    for record in records:
        at = (record.topic, record.partition)
        after[at] = max(after.get(at, 0), record.offset + 1)
    return [TopicPartition(topic, partition, offset, mark) for (topic, partition), offset in after.items()]


@contextmanager
def kafka_errors(doing: str, settings: Settings) -> Iterator[None]:
    """Turn Kafka's errors into Almanac's, at the edge.

    Raises:
        Unavailable: a broker did not answer or had to refuse for now.
        UsageError: a topic is missing or a setting is wrong: nothing that waiting would mend.
    """
    try:
        yield
    except KafkaException as error:
        raise almanac_error(error, doing, settings) from error
    except TimeoutError:
        raise Unavailable(
            f"{doing}: no answer in time (Kafka at {settings.kafka_bootstrap}): look at `almanac status`"
        ) from None


@contextmanager
def kafka_waits(doing: str, settings: Settings) -> Iterator[None]:
    """As `kafka_errors`, for a worker or sink, which waits for a topic that is missing: it is made again.

    Raises:
        Unavailable: a broker did not answer or had to refuse, or a topic is missing.
    """
    try:
        with kafka_errors(doing, settings):
            yield
    except UsageError as error:
        raise Unavailable(str(error)) from error


def almanac_error(error: KafkaException, doing: str, settings: Settings) -> AlmanacError:
    """What a Kafka error means for the one who reads it."""
    cause = error.args[0]
    text = f"{doing}: {cause.str() or cause.name()}"
    if cause.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
        return UsageError(f"{text}: start the stream worker, which creates the topics (`almanac up`)")
    if cause.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError._INVALID_ARG):
        return UsageError(f"{text}: correct the record or the setting")
    return Unavailable(f"{text} (Kafka at {settings.kafka_bootstrap}): look at `almanac status`")
