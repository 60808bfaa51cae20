"""A subscription: whether the topics that a consumer and its producer work with are still those that they were.

Kafka's clients say nothing when a topic is deleted, and go on at their old offset where it is made again. So every
`CHECK_SECONDS` a broker is asked which topics these are, and beside each offset is committed of which topic it is
(`streaming.placement.Mark`). What is then done:

    a topic is gone, or another one     an alert is raised, consumers and producers are opened anew; the worker makes
                                        what is missing
    an offset is another topic's        its partition is read from the beginning
    an offset is beyond the end         the same: the broker lost records
    an offset is before the beginning   reading goes on at the beginning; what was deleted unread is counted and said
    a partition has no leader           it is said until it has one; the other partitions go on
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from almanac.clock import utc_now
from almanac.errors import Unavailable
from almanac.metrics import STREAM_RECORDS_LOST, STREAM_TOPICS_LOST
from almanac.partitioning import EntityKey
from almanac.settings import Settings
from streaming.lag import Lag
from streaming.placement import Mark, homes_of, incarnation_of, partition_of
from streaming.report import RECORDS_LOST, TOPIC_LOST, Report
from streaming.topic_state import ANSWER_SECONDS_MAX, TopicChanged, TopicState, TopicStates, listed, lost, why_anew

CHECK_SECONDS = 3.0
"""Time between two looks at the topics, and so how long a deleted one may stay unnoticed."""
NOTED_SECONDS = 3600.0
"""Time between two notes of which topic is read: brokers forget such after days."""
SILENT_SECONDS_MAX = 15.0
"""Time that a broker may leave such looks without an answer before the session is given up."""


class Subscription:
    """What one consumer reads.

    Args:
        topic: what it reads.
        beside: other topics to be watched, such as those that are written.
        declared: number of partitions that `topic` is made with, if its partitions are homes of histories; else 0.
    """

    def __init__(
        self, topic: str, settings: Settings, report: Report, lag: Lag, *, beside: Collection[str] = (),
        declared: int = 0,
    ) -> None:  # fmt: skip
        self.topic = topic
        self._names = tuple(dict.fromkeys((topic, *beside)))
        self._beside = self._names[1:]
        self._declared = declared
        self._report = report
        self._lag = lag
        self._states = TopicStates(settings)
        self._known: dict[str, TopicState] = {}
        self._said: set[str] = set()
        self._settled = ""
        self._homes = self.incarnation = 0
        self._checked_at = self._answered_at = self._noted_at = 0.0
        self._failed: Exception | None = None
        if report.pipeline:
            STREAM_RECORDS_LOST.labels(report.pipeline, report.part).inc(0)
            for name in self._names if beside else ():
                STREAM_TOPICS_LOST.labels(report.pipeline, name).inc(0)

    @property
    def mark(self) -> str:
        """What is to be committed beside each offset."""
        state = self._known.get(self.topic)
        if state is None:
            return ""
        return Mark(topic_id=state.topic_id, homes=self._homes, incarnation=self.incarnation).text()

    def home(self) -> Callable[[EntityKey], int] | None:
        """The home partition of an entity; None where there are no histories."""
        homes = self._homes
        return (lambda entity: partition_of(entity, homes)) if homes else None

    def opened(self) -> None:
        """A session begins: which topics are these?

        Raises:
            Unavailable: one is missing, or no broker answered.
        """
        found = self._states.look(self._names)
        self._note(found)
        missing = [name for name, state in found.items() if state is None]
        if missing:
            raise TopicChanged(
                f"topic {', '.join(missing)} does not exist: the stream's worker makes it as declared (`almanac up`)"
            )
        self._known = {name: state for name, state in found.items() if state is not None}
        self._noted_at = time.monotonic()
        self._failed = None
        self._checked_at = self._answered_at = time.monotonic()

    def check(self, consumer: Consumer, now_seconds: float) -> None:
        """Look at the topics again, once in `CHECK_SECONDS`.

        Args:
            now_seconds: monotonic time.

        Raises:
            Unavailable: a topic is gone or another one, or the broker has been silent for too long.
        """
        if now_seconds - self._checked_at < CHECK_SECONDS:
            return
        try:
            found = self._states.look(self._names)
            expected = self._lag.expected(self.topic, [of.partition for of in consumer.assignment()])
            starts = self._states.starts(self.topic, expected) if found[self.topic] is not None else {}
        except Unavailable:
            self._states.close()
            self._checked_at = time.monotonic()
            if self._checked_at - self._answered_at > SILENT_SECONDS_MAX:
                raise
            return
        self._checked_at = self._answered_at = time.monotonic()
        why = why_anew(self._known, found)
        self._note(found)
        if why is not None:
            raise TopicChanged(why)
        self._say_lost(lost(expected, starts))
        self._lag.passed(self.topic, starts)
        self._commit_marks(consumer)
        if self._checked_at - self._noted_at > NOTED_SECONDS and consumer.assignment() and self._memory():
            consumer.commit(offsets=self._memory(), asynchronous=False)
            self._noted_at = self._checked_at

    def consume(self, consumer: Consumer, records_max: int, seconds_max: float) -> list[Message]:
        """Messages of the consumer, as it consumes them; none that it received after an assignment that failed.

        Raises:
            Unavailable: where an assignment's partitions are to be begun could not be found out.
            KafkaException: alike.
        """
        messages = consumer.consume(records_max, seconds_max)
        if self._failed is not None:
            raise self._failed
        return self._lag.sift(messages)

    def assigned(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """Partitions were assigned: begin each where it is to be begun. A failure is left to `consume`."""
        try:
            self._assigned(consumer, partitions)
        except (KafkaException, Unavailable) as error:  # the client cannot pass an exception on
            self._failed = error

    def _assigned(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        state = self._states.look([self.topic])[self.topic]
        if state is None or state.topic_id != self._known[self.topic].topic_id:
            raise TopicChanged(f"topic {self.topic} was deleted: it is read anew")
        self._known[self.topic] = state
        everywhere = [TopicPartition(self.topic, partition) for partition in range(state.partitions)]
        memory = [TopicPartition(of.topic, of.partition) for of in self._memory()]
        answers = consumer.committed([*everywhere, *memory], timeout=ANSWER_SECONDS_MAX)
        for of in answers:
            if of.error is not None:
                raise KafkaException(of.error)
        committed = {of.partition: of for of in answers if of.topic == self.topic}
        remembered = {of.metadata for of in answers if of.topic != self.topic}
        starts, ends = self._states.starts(self.topic, committed), self._states.ends(self.topic, committed)
        self._settle(state, [Mark.of(of.metadata) for of in answers], committed, grown=ends != starts)
        there = [of for of in partitions if of.partition in committed]  # the group may not know yet that some are gone
        begins = self._begin(there, committed, starts, ends)
        consumer.incremental_assign(list(partitions))
        self._lag.passed(self.topic, begins)
        unsaid = [
            TopicPartition(self.topic, partition, offset, self.mark)
            for partition, offset in begins.items()
            if (self._homes or self.incarnation) and committed[partition].metadata != self.mark
        ]
        if remembered - {self.mark}:
            unsaid += self._memory()
        if unsaid:  # so that others know home partitions and incarnation before the first event here
            consumer.commit(offsets=unsaid, asynchronous=False)

    def _memory(self) -> list[TopicPartition]:
        """Where the group notes which topic it reads: a topic that is deleted takes its own offsets along."""
        return [TopicPartition(name, 0, 0, self.mark) for name in self._beside[:1]]

    def _settle(
        self,
        state: TopicState,
        marks: list[Mark],
        committed: Mapping[int, TopicPartition],
        *,
        grown: bool,
    ) -> None:
        """Find out which incarnation of the topic this is, and which partitions are homes."""
        self._say_made_again(marks, state.topic_id)
        if self._beside:
            self.incarnation = incarnation_of(marks, state.topic_id, self.incarnation, utc_now())
        if not self._declared:
            return
        handled = [partition for partition, of in committed.items() if of.offset >= 0 and not self._foreign(of)]
        grown = grown and all(partition < self._declared for partition in handled)
        before, self._homes = self._homes, homes_of(
            marks, state.topic_id, state.partitions, self._declared, grown=grown
        )  # fmt: skip
        if self._homes < state.partitions and self._homes != before:
            self._report.warn(
                f"topic {self.topic} has {state.partitions} partitions, of which the first {self._homes} are homes of "
                "histories: events in the others are written again to these"
            )

    def _begin(
        self,
        partitions: Sequence[TopicPartition],
        committed: Mapping[int, TopicPartition],
        starts: Mapping[int, int],
        ends: Mapping[int, int],
    ) -> dict[int, int]:
        """Set where each partition is begun, if not at what is committed, and say so. Returns where that is."""
        foreign, beyond, unread, expected = [], [], [], {}
        for of in partitions:
            known, number = committed[of.partition], of.partition
            if known.offset < 0:
                unread += [number] if ends[number] > starts[number] else []
            elif self._foreign(known):
                foreign.append(number)
                of.offset = OFFSET_BEGINNING
            elif known.offset > ends[number]:
                beyond.append(number)
                of.offset = OFFSET_BEGINNING
            else:
                expected[number] = known.offset
        if unread:
            self._report.warn(f"begins at the oldest record of partitions {listed(unread)} of {self.topic}")
        if foreign:
            self._report.warn(
                f"topic {self.topic} was deleted and made again: partitions {listed(foreign)} are read from the "
                "beginning"
            )
        if beyond:
            text = (
                f"partitions {listed(beyond)} of {self.topic} end before what was read: the broker lost records; they "
                "are read from the beginning"
            )
            self._report.raise_alert(RECORDS_LOST, text)
            if self.incarnation:  # offsets come again, as in a topic that was made again
                self.incarnation = incarnation_of([], "", self.incarnation, utc_now())
        self._say_lost(lost(expected, starts))
        return {of.partition: max(starts[of.partition], expected.get(of.partition, 0)) for of in partitions}

    def made(self, names: Collection[str]) -> None:
        """Topics were missing and have just been made: that is said already."""
        self._said |= set(names)

    def _say_made_again(self, marks: Iterable[Mark], topic_id: str) -> None:
        """Raise an alert where another topic of this name was read before, once, if nobody has said so yet."""
        others = any(mark.topic_id not in ("", topic_id) for mark in marks)
        if others and self._beside and self.topic not in self._said and topic_id != self._settled:
            STREAM_TOPICS_LOST.labels(self._report.pipeline, self.topic).inc()
            self._report.raise_alert(
                TOPIC_LOST,
                f"topic {self.topic} was deleted and made again: what was in it and not yet handled is lost",
            )
        self._said.discard(self.topic)
        self._settled = topic_id

    def _foreign(self, committed: TopicPartition) -> bool:
        """Whether an offset is of a topic of this name that is no more."""
        topic_id = Mark.of(committed.metadata).topic_id
        return bool(topic_id) and topic_id != self._known[self.topic].topic_id

    def _note(self, found: Mapping[str, TopicState | None]) -> None:
        """Say what became of topics since the last look."""
        for name, state in found.items():
            known = self._known.get(name)
            leaderless = state.leaderless if state is not None else ()
            self._report.note(
                f"leaders of {name}",
                f"partitions {listed(leaderless)} of topic {name} have no leader: look at the brokers"
                if leaderless
                else "",
            )
            if known is None or (state is not None and known.topic_id == state.topic_id):
                if known is not None and state is not None and known.partitions != state.partitions:
                    self._report.warn(f"topic {name} has {state.partitions} partitions now, {known.partitions} before")
                    self._known[name] = state
                continue
            del self._known[name]  # said once
            self._said.add(name)
            if len(self._names) > 1:
                STREAM_TOPICS_LOST.labels(self._report.pipeline, name).inc()
                text = f"topic {name} was deleted: what was in it and not yet applied is lost"
                self._report.raise_alert(TOPIC_LOST, text)

    def _say_lost(self, found: Mapping[int, int]) -> None:
        if not found:
            return
        records = sum(found.values())
        text = (
            f"up to {records:,} records in partitions {listed(found)} of {self.topic} were deleted before they were "
            "read: its retention is too short for the lag, or somebody deleted them"
        )
        self._report.warn(text)
        self._report.raise_alert(RECORDS_LOST, text)
        if self._report.pipeline:
            STREAM_RECORDS_LOST.labels(self._report.pipeline, self._report.part).inc(records)

    def _commit_marks(self, consumer: Consumer) -> None:
        """Commit the marks of transactions that a partition ends with: else they look like records that were lost."""
        ours = {of.partition for of in consumer.assignment()}
        ends = {partition: end for partition, end in self._lag.behind_marks(self.topic).items() if partition in ours}
        if ends:
            offsets = [TopicPartition(self.topic, partition, end, self.mark) for partition, end in ends.items()]
            consumer.commit(offsets=offsets, asynchronous=False)
            self._lag.committed(offsets)
