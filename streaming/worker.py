"""The worker: events in, one Kafka transaction a batch out.

The steps of a batch, numbered here as in docs/architecture.md:

    1 consume        up to BATCH_RECORDS_MAX records of the events' topic
    2 parse          believable events, dead letters, duplicates          (handle.sort)
    3 read features  the online features of the batch's entities          (features.online)
    4 score          predictions, feature rows, dead letters              (handle.score)
    5 write          all of it and the offsets, in one transaction
    6 commit         the transaction; only then are the events remembered as handled

What happens when a step fails:
- 3 or 4, a store or the model is not there: pause, with growing waits, and the
  same events again; nothing was written, nothing is lost.
- 1, 5 or 6, anything that Kafka says: consumer and producer are thrown away and
  new ones opened. Opening the producer ends whatever its predecessor left, one
  way or the other; opening the consumer starts from what is committed. So it
  does not matter whether a commit whose answer was lost took place.
- the process is killed: the same, in its successor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from almanac import metrics
from almanac.errors import AlmanacError, FeatureError, Unavailable, UsageError
from almanac.partitioning import EntityKey, Grid
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from streaming import handle
from streaming.batch_counts import count_batch
from streaming.connection import almanac_error, consumed, next_offsets, open_consumer, open_transactional_producer
from streaming.duplicates import Duplicates
from streaming.events import declared
from streaming.folding import Folding
from streaming.guarding import failed, guarded, is_of_the_machine, parts
from streaming.lacking import Lacks, probed_cells
from streaming.lag import Lag
from streaming.models import CurrentModels
from streaming.pause import Pause, Stopped
from streaming.proofs import Proofs
from streaming.records import Consumed, Produced
from streaming.report import PAUSED, STOPPED, TOPIC_LOST, Report
from streaming.sizes import LETTER_BYTES_MAX
from streaming.subscription import Subscription
from streaming.surroundings import Online
from streaming.surroundings import Surroundings as Surroundings
from streaming.topics import ensure_topics, letter_bytes_max, say_differing, topics, unpack_batches

BATCH_RECORDS_MAX = 500
CONSUME_SECONDS_MAX = 0.2
"""Time to wait for a batch to fill: what an event may wait at most while others trickle in."""
START_SECONDS_MAX = 15.0
WRITE_SECONDS_MAX = 10.0
COMMIT_SECONDS_MAX = 10.0


class Worker:
    """Handles the events of one pipeline.

    Args:
        instance: names this worker among those of the pipeline; two of the same name fence each other off.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, around: Surroundings, instance: str = "0") -> None:
        self._stream = declared(pipeline)
        self._pipeline = pipeline
        self._settings = settings
        self._around = around
        self._instance = instance
        self.group = f"almanac-{pipeline.name}-stream"
        self.report = Report(f"{pipeline.name} worker", pipeline=pipeline.name, part="worker")
        self._lag = Lag(pipeline.name, self.group)
        made = {topic.name: topic for topic in topics(pipeline)}
        homes = made[self._stream.topic].partitions if pipeline.lines is not None else 0
        self._subscription = Subscription(
            self._stream.topic, settings, self.report, self._lag, beside=made, declared=homes
        )
        self._models = CurrentModels(pipeline, settings, self.report, around.answering)
        self._scored_with: set[str] = set()
        self._compared: set[str] = set()
        self._proofs = Proofs.of(pipeline, settings, self.report)
        self._seen = Duplicates()
        self._lacks = Lacks()
        self._online: Online | None = None
        self._letter_bytes_max = LETTER_BYTES_MAX
        self._folding: Folding | None = None
        if pipeline.lines is not None and around.histories is not None:
            self._folding = Folding(pipeline, settings, around.histories, predicted=around.predicted)

    def run(self, stop: threading.Event) -> None:
        """Handle events until `stop` is set; a batch that has begun is finished or abandoned whole."""
        pause = Pause(stop)
        self._warm()
        while not stop.is_set():
            try:
                self._session(stop, pause)
            except Stopped:
                break
            except (KafkaException, Unavailable, FeatureError) as error:
                if isinstance(error, KafkaException):
                    error = almanac_error(error, "the transaction was given up", self._settings)
                self.report.add(sessions_given_up=1)
                self.report.say(PAUSED, str(error), level=logging.WARNING)
                pause.wait()
        self.report.say(STOPPED)

    def _warm(self) -> None:
        """Load the model and open the online store before the first event, which would wait seconds for it."""
        for step in (self._warm_model, self._warm_online):
            try:
                step()
            except AlmanacError as error:
                self.report.say(PAUSED, str(error), level=logging.WARNING)

    def _warm_model(self) -> None:
        self._models.warm(time.monotonic())

    def _warm_online(self) -> None:
        if self._folding is not None:
            self._folding.warm()
            return
        self._read([(self._around.now(), [0] if self._pipeline.partitions.key_type is int else ["0"])])

    def _session(self, stop: threading.Event, pause: Pause) -> None:
        """One consumer and one producer, from opening until `stop` or the first error."""
        self._make_topics()
        producer = open_transactional_producer(self._settings, f"{self.group}-{self._instance}")
        try:
            producer.init_transactions(START_SECONDS_MAX)
            consumer = open_consumer(self._settings, self.group, self._instance)
            try:
                self._forget()
                self._lag.opened()
                consumer.subscribe([self._stream.topic], on_assign=self._assigned, on_revoke=self._reassigned)
                pause.opened(self.report)
                while not stop.is_set():
                    pause.worked(self.report, handled=self._batch(consumer, producer, stop))
                    self._subscription.check(consumer, time.monotonic())
                    self.report.summarise(time.monotonic())
            finally:
                consumer.close()
        finally:
            throw_away(producer)
            if self._folding is not None:
                self._folding.close()

    def _make_topics(self) -> None:
        """Make topics that are missing as declared, and look which those are that there are.

        Raises:
            Unavailable: no broker answered, or it refuses to make one.
        """
        try:
            self.say_made(ensure_topics(self._pipeline, self._settings))
        except UsageError as error:
            raise Unavailable(str(error)) from error
        self._subscription.opened()
        for name in unpack_batches(self._pipeline, self._settings):
            self.report.warn(f"the broker unpacks compressed batches of topic {name} from now on, as it is declared")
        say_differing(self._pipeline, self._settings, self.report, self._compared)
        self._letter_bytes_max = letter_bytes_max(self._pipeline, self._settings)

    def say_made(self, names: Sequence[str], *, started: bool = False) -> None:
        """Say which topics were missing and have just been made: where others are there, these were deleted.

        Args:
            started: whether that was before the worker began, so that it has not seen what became of them.
        """
        self._subscription.made(names)
        for name in names:
            self.report.warn(f"made topic {name}, which did not exist, as it is declared")
        written = {topic.name for topic in topics(self._pipeline)} - {self._stream.topic}
        if names and not written <= set(names):
            self.report.raise_alert(
                TOPIC_LOST,
                f"topic {', '.join(names)} was deleted, and is made again as declared: what was in it and not yet "
                "applied is lost",
            )
            for name in names if started else ():
                metrics.STREAM_TOPICS_LOST.labels(self._pipeline.name, name).inc()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget()
        self._subscription.assigned(consumer, partitions)

    def _reassigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget()  # another worker may handle these entities in between

    def _forget(self) -> None:
        self._seen = Duplicates()
        if self._folding is not None:
            self._folding.reassigned()

    def _batch(self, consumer: Consumer, producer: Producer, stop: threading.Event) -> bool:
        """Steps 1 to 6; whether there was anything to handle."""
        records = self._consume(consumer)  # 1
        self._lag.note(consumer, time.monotonic())
        if not records:
            with suppress(Unavailable):  # follow pointer and alias, so that the next event need not wait for a model
                self._models.get(time.monotonic())
            return False
        for part in parts(records):
            with metrics.STREAM_BATCH_SECONDS.labels(self._pipeline.name).time():
                guarded(
                    part,
                    lambda some: self._write(some, self._handle(some, consumer, stop), consumer, producer),  # 2 to 6
                    lambda record, error: self._give_up_record(record, error, consumer, producer),
                )
        return True

    def _write(
        self, records: Sequence[Consumed], made: tuple[handle.Sorted, handle.Handled],
        consumer: Consumer, producer: Producer,
    ) -> None:  # fmt: skip
        """Steps 5 and 6."""
        batch, written = made
        try:
            with self._step("write"):
                producer.begin_transaction()
                for record in self._proofs.signed((*written.records, *batch.forwards)):  # 5
                    producer.produce(
                        record.topic, key=record.key, value=record.value, headers=list(record.headers),
                        **self._told(record),
                    )  # fmt: skip
                offsets = next_offsets(records, self._subscription.mark)
                producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), WRITE_SECONDS_MAX)
            with self._step("commit"):
                producer.commit_transaction(COMMIT_SECONDS_MAX)  # 6
        except Exception as error:
            if not isinstance(error, KafkaException):  # else the session is begun anew
                producer.abort_transaction(COMMIT_SECONDS_MAX)
            raise
        if self._folding is not None:
            self._folding.committed()
        self._seen.merge(batch.seen)
        self._lag.committed(next_offsets(records))
        count_batch(self.report, self._pipeline.name, len(records), batch, written)
        self._models.failed(written.failed)

    def _give_up_record(self, record: Consumed, error: Exception, consumer: Consumer, producer: Producer) -> None:
        """Make a dead letter of a record with which the code fails."""
        self.report.warn(f"{record.topic}/{record.partition} offset {record.offset} is a dead letter: {error!r:.500}")
        batch = handle.Sorted(
            events=(), refused=((record, failed(error)),), duplicates=0, seen=Duplicates(),
            letter_bytes_max=self._letter_bytes_max,
        )  # fmt: skip
        if self._folding is not None:
            written = self._folding.handle(batch, (), self._around.now())
        else:
            written = handle.without_events(batch, self._pipeline)
        self._write([record], (batch, written), consumer, producer)

    def _told(self, record: Produced) -> dict[str, Any]:
        """Which partition a record goes to, if to a certain one; who is told where it stands: folding, of its rows."""
        if record.partition is not None:
            return {"partition": record.partition}
        if self._folding is None or record.topic != self._pipeline.features_topic:
            return {}
        return {"on_delivery": self._folding.delivered}

    def _step(self, name: str) -> AbstractContextManager[Any]:
        """Measure a step's time."""
        return metrics.STREAM_STEP_SECONDS.labels(self._pipeline.name, name).time()

    def _consume(self, consumer: Consumer) -> list[Consumed]:
        """Step 1; a partition that was taken away while records were collected is left to its new owner."""
        messages = self._subscription.consume(consumer, BATCH_RECORDS_MAX, CONSUME_SECONDS_MAX)
        records = self._proofs.checked(consumed(messages, self._subscription.incarnation))
        if not records:
            return []
        ours = {(found.topic, found.partition) for found in consumer.assignment()}
        return [record for record in records if (record.topic, record.partition) in ours]

    def _handle(
        self, records: Sequence[Consumed], consumer: Consumer, stop: threading.Event
    ) -> tuple[handle.Sorted, handle.Handled]:
        """Steps 2 to 4, again and again while a store or the model is not there."""
        for attempt in Pause.attempts((Unavailable, FeatureError)):
            with attempt:
                if stop.is_set():
                    raise Stopped
                try:
                    return self._tried(records)
                except (Unavailable, FeatureError) as error:
                    self.report.say(PAUSED, str(error), level=logging.WARNING)
                    self._lag.note(consumer, time.monotonic())
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _tried(self, records: Sequence[Consumed]) -> tuple[handle.Sorted, handle.Handled]:
        """Steps 2 to 4; what the machine refuses is waited for as a server is.

        Raises:
            Unavailable, FeatureError: they may pass; the same events are to be tried again.
        """
        try:
            return self._try(records)
        except OSError as error:
            if not is_of_the_machine(error):
                raise
            raise Unavailable(
                f"events of {self._pipeline.name} cannot be handled ({error}): see to this machine's disk, memory and "
                "open files"
            ) from error

    def _try(self, records: Sequence[Consumed]) -> tuple[handle.Sorted, handle.Handled]:
        models = self._models.get(time.monotonic())
        used = {model.id for model in models}
        if not used <= self._scored_with:  # an event sent again is to be scored again by the new model
            self._seen = Duplicates()
        self._scored_with = used
        now = self._around.now()
        with self._step("parse"):
            found = handle.sort(records, self._pipeline, self._seen, now, self._subscription.home())  # 2
            batch = replace(found, letter_bytes_max=self._letter_bytes_max)
        if self._folding is not None:
            with self._step("score"):
                return batch, self._folding.handle(batch, models, now)  # 3, 4
        with self._step("read_features"):
            online = self._read(batch.asked(now))  # 3
        scoring = handle.Scoring(
            models=models,
            observation_row=self._around.observation_row,
            given_up=lambda lacking: self._give_up(lacking, batch.asked(now)[-1][0]),
        )
        with self._step("score"):
            return batch, handle.score(batch, online, self._pipeline, scoring, now)  # 4

    def _read(self, asked: Sequence[tuple[datetime, list[EntityKey]]]) -> pa.Table | None:
        """Step 3: features of entities, none older than its view's TTL at the moment beside them.

        Raises:
            Unavailable: the online store did not answer.
            FeatureError: it has no features for anyone: emptied, or not filled yet.
        """
        if not asked:
            return None
        if self._online is None:
            self._online = self._around.online(self._pipeline, self._settings)
        online = pa.concat_tables([self._online.read(entities, at=at) for at, entities in asked])
        at, entities = asked[-1]
        carried = dict.fromkeys(self._pipeline.event_values, 0.0)
        nothing = carried if self._pipeline.source is None else 0.0
        own = self._around.observation_row(self._pipeline, entities[0], at, nothing)
        if handle.nothing_known(online, own):
            probed = self._probe(at)
            if probed is not None and handle.nothing_known(probed, own):
                said = ", ".join(self._online.lacking(entities[:1], at=at).get(entities[0], ()))
                what = f"usable features ({said})" if handle.HAS_EXPIRED in said else "features"
                raise FeatureError(
                    f"the online store has no {what} of pipeline {self._pipeline.name}: run its DAG, or wait for it"
                )
        return online

    def _probe(self, at: datetime) -> pa.Table | None:
        """Features of some cells all over the grid; None if entities cannot be listed."""
        if self._online is None or not isinstance(self._pipeline.partitions, Grid):
            return None
        return self._online.read(probed_cells(self._pipeline.partitions.cells), at=at)

    def _give_up(self, lacking: Mapping[EntityKey, Sequence[str]], at: datetime) -> Mapping[EntityKey, Sequence[str]]:
        """Return, with what is the matter with their views, if the lack of features is the entities' own.

        Raises:
            FeatureError: it may pass; the same events are to be tried again.
        """
        if not lacking or self._online is None:
            self._lacks.none()
            return {}
        why = self._online.lacking(list(lacking), at=at)
        if not self._lacks.are_final(lacking, self._probe(at), time.monotonic()):
            entity, names = next(iter(lacking.items()))
            views = ", ".join(why.get(entity, ()))
            raise FeatureError(
                f"{self._pipeline.entity} {entity} has no usable feature {handle.named(names)} yet"
                f"{f' ({views})' if views else ''}: the online store is being filled, or its batch is late"
            )
        return why


def throw_away(producer: Producer) -> None:
    """Let go of a producer without waiting for what it still holds; its transaction is its successor's to end."""
    with suppress(KafkaException, RuntimeError):
        producer.purge()
