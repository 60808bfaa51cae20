"""What a replay is made of: a clock that stands where it is put, nights, and events sent one entity at a time."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import KafkaException, Message
from numpy.typing import NDArray

from almanac.clock import DAY, EPOCH, MICROSECOND, at_micros, format_time, micros_of, parse_time, utc_now
from almanac.errors import StackError
from almanac.ladder import Answer, Decision, Unmade, climb
from almanac.list_quality import quality
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.ragged import Ragged
from almanac.ranked import RankedList
from almanac.rungs import Source
from almanac.settings import Settings
from almanac.steady import Moment, SystemClock
from serving_cache.lookup.service import Service
from streaming.applied import Applied
from streaming.connection import open_producer
from streaming.events import OBSERVED_AT, declared
from streaming.process import Crew, recruit
from streaming.publish import REPLAY_HOURS_MAX, Outgoing
from streaming.replaying import replayed_baskets
from streaming.topics import ensure_topics

APPLIED_SECONDS_MAX = 180.0
POLL_SECONDS = 0.005
FLUSH_SECONDS_MAX = 20.0
SAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Told:
    """An event to replay.

    Args:
        event: as it is sent.
        taken: the different items that it says were taken; none of a return.
    """

    entity: EntityKey
    at: datetime
    event: Outgoing
    taken: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What was looked up just before something was taken.

    Args:
        nightly, streamed: items of the generation's list, and of the one that the lookup answered with.
        since_night: whether the entity had an event since that generation's night.
    """

    entity: EntityKey
    taken: frozenset[str]
    nightly: tuple[str, ...]
    streamed: tuple[str, ...]
    source: Source | None
    since_night: bool


class Standing(SystemClock):
    """A clock that stands where it was put."""

    def __init__(self, moment: datetime) -> None:
        super().__init__()
        self.moment = moment

    def now(self) -> Moment:
        """Where it was put."""
        return Moment(self.moment)


def told(pipeline: Pipeline, settings: Settings, days: int) -> tuple[datetime, list[Told]]:
    """The first held-out midnight, and the events of so many days from it on, in the order of time.

    A file's clock is shifted by whole days, so that its nights stay nights whenever this runs.
    """
    from features.sources.lines import open_lines
    from jobs.training.ranker_data import held_out_since

    now = utc_now()
    if settings.data_of(pipeline.name) is not None:
        with tempfile.TemporaryDirectory() as elsewhere:
            by_hours = open_lines(pipeline, settings.model_copy(update={"state_dir": Path(elsewhere)}), now=now)
        last = by_hours.latest(now) - by_hours.clock_shift
        now = last + (now - last) // DAY * DAY + MICROSECOND
    source = open_lines(pipeline, settings, now=now)
    first = at_micros(held_out_since(pipeline, micros_of(source.latest(now))))
    found = []
    for event in replayed_baskets(pipeline, source, now, REPLAY_HOURS_MAX):
        body = msgspec.json.decode(event.value or b"")
        at, lines = parse_time(body[OBSERVED_AT]), body[pipeline.lines.name if pipeline.lines else ""]
        if first <= at < first + days * DAY:
            item = pipeline.lines.item if pipeline.lines else ""
            taken = frozenset(line[item] for line in lines if line["quantity"] > 0)
            found.append(Told(entity=body[pipeline.entity], at=at, event=event, taken=taken))
    return first, found


class Replay:
    """A pipeline on real servers and a standing clock."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self._pipeline, self._settings = pipeline, settings
        self._clock = Standing(EPOCH)
        self._topic = declared(pipeline).topic
        self._sinks = {"overlays": pipeline.predictions_topic, "features": pipeline.features_topic}
        self._night = EPOCH
        self._since: set[EntityKey] = set()
        self._crew: Crew | None = None
        self._ends: dict[int, int] = {}
        self._failed: KafkaException | None = None

    def __enter__(self) -> Replay:
        from serving_cache.lookup.postgres_place import PostgresPlace
        from serving_cache.lookup.redis_place import RedisPlace
        from serving_cache.migrate import migrate

        settings, name = self._settings, self._pipeline.name
        migrate(settings.need("postgres_url"), [self._pipeline])
        ensure_topics(self._pipeline, settings)
        self._producer = open_producer(settings)
        self._handled = Applied(self._topic, f"almanac-{name}-stream", settings)
        self._applied = {
            part: Applied(topic, f"almanac-{name}-sink-{part}", settings)
            for part, topic in (
                ("overlays", self._pipeline.predictions_topic),
                ("features", self._pipeline.features_topic),
            )
        }
        self._runner = asyncio.Runner()
        places = (RedisPlace(settings.need("redis_url")), PostgresPlace(settings.need("postgres_url")))
        self._service = Service(places, fresh_for=None, clock=self._clock)
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            stack.callback(self._runner.close)
            stack.callback(lambda: self._runner.run(self._service.close()))
            for each in (self._handled, *self._applied.values()):
                stack.callback(each.close)
            if self._crew is not None:
                self._crew.stop.set()
                self._crew.join()

    def learn(self, progress: Callable[[str], None]) -> None:
        """A model from what was taken before the held-out time."""
        from jobs.training.train import train

        train(self._pipeline, self._settings, now=utc_now(), progress=progress)

    def night(self, midnight: datetime) -> None:
        """A batch run as of a midnight, and what it was made of in the online store; then the stream may begin."""
        from features.store import one_look

        if self._crew is not None:
            self._wait("features")
        self._clock.moment = midnight
        with one_look():
            self._batch(midnight)
        self._since = set()
        if self._crew is None:
            self._crew = Crew()
            recruit(self._pipeline, self._settings, "replay", self._crew, self._clock)

    def _batch(self, midnight: datetime) -> None:
        from features.materialize.run import materialize
        from jobs.plan import plan
        from jobs.publish import clean_up, publish
        from jobs.score import score_shard
        from serving_cache.records import State

        pipeline, settings = self._pipeline, self._settings
        made = plan(pipeline, settings, run_key=f"replay {format_time(midnight)}", cutoff=midnight, now=midnight)
        try:
            for shard in made.shards:
                score_shard(pipeline, settings, made, shard)
            publication = publish(pipeline, settings, made, now=midnight)
        finally:
            clean_up(pipeline, settings, made)
        if publication.state is not State.CURRENT:
            raise StackError(f"the generation of {format_time(midnight)} is {publication.state}: see what it logged")
        materialize(pipeline, settings, made.moment)

    def through(self, part: Sequence[Told]) -> list[Looked]:
        """Look each entity's list up just before its event, send the events, and wait until they are applied."""
        looked = [self._look(event) for event in part if event.taken]
        for event in part:
            self._producer.produce(
                self._topic, key=event.event.key, value=event.event.value, on_delivery=self._delivered
            )
            self._producer.poll(0)
        self._clock.moment = max(event.at for event in part)
        if self._producer.flush(FLUSH_SECONDS_MAX) or self._failed is not None:
            raise StackError(f"the broker did not take {len(part)} events ({self._failed}): see its log")
        self._wait("overlays")
        self._since.update(event.entity for event in part)
        return looked

    def _delivered(self, error: Any, message: Message) -> None:
        if error is not None:
            self._failed = self._failed or KafkaException(error)
        else:
            self._ends[message.partition()] = max(self._ends.get(message.partition(), 0), message.offset() + 1)

    def _wait(self, sink: str) -> None:
        """Return once the worker has committed all events that were sent, and a sink what came of them.

        Raises:
            StackError: that took too long, or a thread of the stream died.
        """
        give_up_at = time.monotonic() + APPLIED_SECONDS_MAX
        self._until(
            give_up_at, lambda: all(self._handled.committed().get(p, 0) >= end for p, end in self._ends.items())
        )
        applied = self._applied[sink]
        ends = applied.ends()
        self._until(give_up_at, lambda: applied.behind(ends) is None)

    def _all_handled(self) -> bool:
        committed = self._handled.committed()
        return all(committed.get(partition, 0) >= end for partition, end in self._ends.items())

    def _until(self, give_up_at: float, done: Callable[[], bool]) -> None:
        while not done():
            crew = self._crew
            if crew is not None and crew.stop.is_set():
                raise StackError(f"the stream ended by itself ({crew.failures}): see what it logged")
            if time.monotonic() > give_up_at:
                said = [report.why_not_ready() for report in crew.reports] if crew is not None else []
                raise StackError(f"events were not applied within {APPLIED_SECONDS_MAX:.0f} s: {said}")
            time.sleep(POLL_SECONDS)

    def _look(self, event: Told) -> Looked:
        self._clock.moment = event.at - MICROSECOND
        outcome = self._runner.run(self._service.lookup(self._pipeline, [event.entity], None))
        answered = outcome.settled(event.entity)
        known = replace(outcome.reading.entities[event.entity].candidates, overlays=())
        alone = climb(known, outcome.terms, outcome.moment.now, Unmade(reason="the generation alone is asked"))
        return Looked(
            entity=event.entity,
            taken=event.taken,
            nightly=self._items(alone),
            streamed=self._items(answered),
            source=answered.candidate.source if isinstance(answered, Answer) else None,
            since_night=event.entity in self._since,
        )

    def _items(self, decision: Decision) -> tuple[str, ...]:
        if not isinstance(decision, Answer) or self._pipeline.ranking is None:
            return ()
        found = decision.candidate.values[self._pipeline.output_names[0]]
        return found.first(self._pipeline.ranking.length).items if isinstance(found, RankedList) else ()


def judged(found: Sequence[Looked], length: int) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Recall and NDCG of each basket's lists, nightly and streamed."""
    places: dict[str, int] = {}

    def ragged(lists: Sequence[Sequence[str]]) -> Ragged:
        return Ragged.of([[places.setdefault(item, len(places)) for item in one] for one in lists], np.int64)

    taken = ragged([sorted(one.taken) for one in found])
    nightly = quality(ragged([one.nightly for one in found]), taken, length)
    streamed = quality(ragged([one.streamed for one in found]), taken, length)
    return {"recall": (nightly[0], streamed[0]), "ndcg": (nightly[1], streamed[1])}


def spread(
    owners: NDArray[Any], values: NDArray[np.float64], seed: int, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Between what the mean of values lies, by samples of their owners: those of one owner are not independent."""
    _, owner = np.unique(owners, return_inverse=True)
    sums, counts = np.bincount(owner, values), np.bincount(owner)
    draw = np.random.default_rng(seed)
    means = np.empty(SAMPLES)
    for number in range(SAMPLES):
        chosen = draw.integers(0, len(sums), len(sums))
        means[number] = sums[chosen].sum() / counts[chosen].sum()
    low, high = np.percentile(means, percentiles)
    return float(low), float(high)
