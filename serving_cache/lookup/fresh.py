"""Rung 2: a prediction computed at the lookup, from online features, by the scoring function of batch and stream.

The steps of one computation, numbered alike here and in docs/architecture.md:

1. Entities that another request has in hand are waited for, not computed again.
2. The model: the answering generation's, or the alias's where none is published.
3. A slot: `Fresh.concurrency` computations are at work at once, the others wait.
4. Online features: those older than their view's TTL count as absent, and those
   no newer than what rung 1 speaks from are not computed with.
5. Score, in a thread.
6. Answer, and offer the predictions to `write_back`.

The deadline counts from the request's start. A computation that misses it goes
on without its caller, and what it finds is written back for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from almanac import metrics
from almanac.errors import AlmanacError
from almanac.ladder import Candidate, Compute, Terms, Unmade
from almanac.partitioning import EntityKey
from almanac.pipeline import Fresh, Pipeline
from almanac.steady import SystemClock
from serving_cache.lookup.listing import listed
from serving_cache.lookup.models import Models
from serving_cache.lookup.online import OnlineFeatures, Read
from serving_cache.lookup.places import Guarded, PlaceDown, PlaceUnusable
from serving_cache.lookup.predicting import Made, Question, predict
from serving_cache.lookup.write_back import WriteBack
from serving_cache.records import FRESH_TOPIC, OverlayRecord

if TYPE_CHECKING:
    from almanac.scoring import Scorer

logger = logging.getLogger(__name__)

SCORING_THREADS = 2
ENTITIES_MAX = 1_000  # computed for one request

_Key = tuple[str, EntityKey, Compute]
"""Pipeline, entity, and what was wished for: by which model, and newer than what."""


@dataclass(kw_only=True)
class _Job:
    """One batch: entities of one request that nobody else has in hand, all by one model.

    Args:
        deadline: the latest of all who wait for it, by the event loop's clock.
        late: what a caller is told whose deadline passes now.
        working: whether it has its slot.
        limit: ends the wait for model and slot at the deadline; None before that wait.
        outcomes: what each entity's callers wait for.
    """

    pipeline: Pipeline
    model: str | None
    wishes: dict[EntityKey, Compute]
    terms: Terms
    deadline: float
    late: Unmade = field(default=Unmade(reason="not begun within its deadline", passing=True))
    working: bool = False
    limit: asyncio.Timeout | None = None
    outcomes: dict[EntityKey, asyncio.Future[Made]] = field(default_factory=dict)

    def wait_until(self, deadline: float) -> None:
        """Let it wait for as long as somebody who has just joined does: not everybody began with the first one."""
        self.deadline = max(self.deadline, deadline)
        if self.limit is not None and not self.working:
            self.limit.reschedule(self.deadline)

    @property
    def over(self) -> bool:
        """Whether its own deadline has ended it before it came to work: whoever comes now begins another."""
        return not self.working and self.limit is not None and self.limit.expired()

    @property
    def fresh(self) -> Fresh:
        """The declaration."""
        return self.pipeline.fresh or Fresh()


@dataclass(frozen=True)
class _Flight:
    """One entity's computation, for all who wait for it."""

    outcome: asyncio.Future[Made]
    job: _Job


class FreshComputation:
    """Computes predictions at a lookup.

    Args:
        online: reads features; `models` loads, `write_back` writes, `clock` tells what ages are counted to.
    """

    def __init__(
        self, online: Guarded[OnlineFeatures], models: Models, write_back: WriteBack, clock: SystemClock
    ) -> None:
        self._online = online
        self._models = models
        self._write_back = write_back
        self._clock = clock
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._flights: dict[_Key, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(SCORING_THREADS, thread_name_prefix="almanac-fresh")

    async def compute(
        self, pipeline: Pipeline, wishes: Mapping[EntityKey, Compute], terms: Terms, began: float
    ) -> dict[EntityKey, Made]:
        """A prediction for each entity, or why there is none.

        Args:
            wishes: what the ladder asked for, at most `ENTITIES_MAX` entities.
            terms: of the request.
            began: when the request began, by the event loop's clock; the deadline counts from there.
        """
        if pipeline.fresh is None:
            return dict.fromkeys(wishes, Unmade(reason=f"{pipeline.name} declares none"))
        deadline = began + pipeline.fresh.deadline.total_seconds()
        chosen = dict(list(wishes.items())[:ENTITIES_MAX])
        flights = self._board(pipeline, chosen, terms, deadline)
        patience = deadline - asyncio.get_running_loop().time()
        if flights:
            await asyncio.wait({flight.outcome for flight in flights.values()}, timeout=max(patience, 0.0))
        found: dict[EntityKey, Made] = dict.fromkeys(
            wishes, Unmade(reason=f"{ENTITIES_MAX} entities are computed at once, and more were asked for")
        )
        for entity, flight in flights.items():
            if flight.outcome.done():
                found[entity] = flight.outcome.result()
            else:
                found[entity] = flight.job.late
                if flight.job.working:  # otherwise the computation itself counts that it did not come to work
                    metrics.FRESH_COMPUTATIONS.labels(pipeline.name, "timeout").inc()
        return found

    def warm(self, pipelines: Sequence[Pipeline]) -> None:
        """Begin to load the models of the aliases, so that the first fresh computation need not wait."""
        task = asyncio.get_running_loop().create_task(self._warm([p for p in pipelines if p.fresh is not None]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let go of what is at work, write what is waiting, and give connections back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._write_back.close()
        await self._models.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._online.place.close()

    async def _warm(self, pipelines: Sequence[Pipeline]) -> None:
        for pipeline in pipelines:
            try:
                await self._models.get(pipeline, None)
            except AlmanacError as error:
                logger.info("no model is loaded yet for fresh predictions of %s: %s", pipeline.name, error)

    def _board(
        self, pipeline: Pipeline, wishes: Mapping[EntityKey, Compute], terms: Terms, deadline: float
    ) -> dict[EntityKey, _Flight]:
        """Step 1: the computations in hand for these entities, those begun here among them."""
        loop = asyncio.get_running_loop()
        flights: dict[EntityKey, _Flight] = {}
        jobs: dict[str | None, _Job] = {}
        for entity, wish in wishes.items():
            key = (pipeline.name, entity, wish)
            if key in self._flights and not self._flights[key].job.over:
                metrics.FRESH_COMPUTATIONS.labels(pipeline.name, "coalesced").inc()
                self._flights[key].job.wait_until(deadline)
            else:
                new = _Job(pipeline=pipeline, model=wish.model, wishes={}, terms=terms, deadline=deadline)
                job = jobs.setdefault(wish.model, new)
                job.wishes[entity] = wish
                job.outcomes[entity] = loop.create_future()
                self._flights[key] = _Flight(job.outcomes[entity], job)
            flights[entity] = self._flights[key]
        for job in jobs.values():
            task = loop.create_task(self._fly(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return flights

    async def _fly(self, job: _Job) -> None:
        """One computation from beginning to end; whatever happens, everybody who waits is told."""
        found: dict[EntityKey, Made] = {}
        why = Unmade(reason="the service is stopping", passing=True)
        try:
            found = await self._made(job)
        except AlmanacError as error:
            why = Unmade(reason=str(error))
        except Exception as error:
            name = job.pipeline.name
            logger.exception("a fresh computation of %s failed", name, extra={"pipeline": name})
            why = Unmade(reason=f"an unforeseen error ({type(error).__name__}): the service's log says more")
        finally:
            if len(found) < len(job.wishes):
                metrics.FRESH_COMPUTATIONS.labels(job.pipeline.name, "failed").inc(len(job.wishes) - len(found))
            for entity in job.wishes:
                outcome = job.outcomes[entity]
                key = (job.pipeline.name, entity, job.wishes[entity])
                flight = self._flights.get(key)
                if flight is not None and flight.outcome is outcome:  # and not a later job's, which took its place
                    del self._flights[key]
                if not outcome.done():
                    outcome.set_result(found.get(entity, why))

    async def _made(self, job: _Job) -> dict[EntityKey, Made]:
        name = job.pipeline.name
        job.late = Unmade(reason=f"the model {job.model or job.pipeline.model} is still being loaded", passing=True)
        waits_for = "timeout"
        try:
            async with asyncio.timeout_at(job.deadline) as job.limit:
                scorer = await self._models.get(job.pipeline, job.model)  # step 2
                waits_for = "busy"
                job.late = Unmade(reason=f"all {job.fresh.concurrency} slots busy", passing=True)
                slots = self._slots.setdefault(name, asyncio.Semaphore(job.fresh.concurrency))
                await slots.acquire()  # step 3
        except TimeoutError:
            return _told(job, job.late, waits_for)
        job.working = True
        milliseconds = job.fresh.deadline.total_seconds() * 1000
        job.late = Unmade(reason=f"not done within its deadline of {milliseconds:.0f} ms", passing=True)
        began = time.perf_counter()
        metrics.FRESH_IN_FLIGHT.labels(name).inc()
        outcome = "failed"
        try:
            found, records = await self._computed(job, scorer)
            outcome = "answered" if records else "refused"
        finally:
            slots.release()
            metrics.FRESH_IN_FLIGHT.labels(name).dec()
            metrics.FRESH_SECONDS.labels(name, outcome).observe(time.perf_counter() - began)
        metrics.FRESH_COMPUTATIONS.labels(name, "answered").inc(len(records))
        metrics.FRESH_COMPUTATIONS.labels(name, "refused").inc(len(found) - len(records))
        self._write_back.offer(name, records)  # step 6
        return found

    async def _computed(self, job: _Job, scorer: Scorer) -> tuple[dict[EntityKey, Made], list[OverlayRecord]]:
        """Steps 4 and 5."""
        asked = Question(job.pipeline, job.wishes, job.terms, self._clock.now().now)
        try:
            if job.pipeline.ranking is not None:
                found = await listed(asked, scorer, scorer.model_id, self._ask, self._away)
            else:
                read = await self._ask(job.pipeline.features, list(job.wishes))  # step 4
                asked = replace(asked, now=self._clock.now().now)
                found = await self._away(predict, asked, read.reader, read.rows, scorer)  # step 5
        except PlaceDown as error:
            return _told(job, Unmade(reason=str(error), passing=True), "failed"), []
        except PlaceUnusable as error:
            return _told(job, Unmade(reason=str(error)), "failed"), []
        made = {entity: one for entity, one in found.items() if isinstance(one, Candidate)}
        return found, [record_of(entity, candidate) for entity, candidate in made.items()]

    async def _ask(self, service: str, keys: Sequence[Any]) -> Read:
        return await self._online.ask(self._online.place.read(service, keys), len(keys))

    async def _away(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _told(job: _Job, why: Unmade, outcome: str) -> dict[EntityKey, Made]:
    """The same reason for every entity of a job."""
    metrics.FRESH_COMPUTATIONS.labels(job.pipeline.name, outcome).inc(len(job.wishes))
    return dict.fromkeys(job.wishes, why)


def record_of(entity: EntityKey, made: Candidate) -> OverlayRecord:
    """A fresh prediction as the overlay that is written back."""
    if made.as_of is None or made.model is None or made.computed_at is None:
        raise AssertionError("a fresh prediction names its model and its times")
    return OverlayRecord(
        entity=str(entity),
        model=made.model,
        as_of=made.as_of,
        topic=FRESH_TOPIC,
        kafka_partition=0,
        kafka_offset=0,
        values=dict(made.values),
        computed_at=made.computed_at,
    )
