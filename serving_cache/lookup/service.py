"""One lookup: the places in their order, the ladder, and the record's second opinion.

The steps, numbered alike here and in docs/architecture.md:

1. Ask the first place for everything it knows of the entities, at one epoch.
2. Let the ladder decide for each entity. Where it says so, and the place has no
   gaps, compute fresh predictions and let it decide again.
3. Accept, unless the place has gaps, is behind an epoch already seen, or leads
   to a refusal: then keep its decisions and ask the next place.
4. Of the last resort: the kept decisions, with every reason; else nothing can be said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from almanac.ladder import Answer, Candidate, Compute, Decision, Refusal, Rung, Settled, Terms, Unmade, climb
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from almanac.steady import Moment, SystemClock
from serving_cache.lookup.places import Guarded, Place, PlaceBusy, PlaceDown, PlaceUnusable, Reading

if TYPE_CHECKING:
    from serving_cache.lookup.counting import Counts

ENTITIES_AT_A_TIME = 50  # before other requests get their turn


Made = Candidate | Unmade
Attempts = dict[tuple[EntityKey, str | None], Made]
"""What was computed in one request, by entity and the model that was asked for: never the same twice."""


class NothingAnswers(Exception):
    """No place could be read; says what was wrong with each."""


class Computation(Protocol):
    """What can compute fresh predictions: `serving_cache.lookup.fresh.FreshComputation` does."""

    async def compute(
        self, pipeline: Pipeline, wishes: Mapping[EntityKey, Compute], terms: Terms, began: float
    ) -> Mapping[EntityKey, Made]:
        """A prediction for each wish, or why there is none, before the deadline."""

    def warm(self, pipelines: Sequence[Pipeline]) -> None:
        """Begin with what takes long."""

    async def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the ladder decided for some entities, all from one place at one epoch.

    Args:
        reasons: why no better place answered.
        moment: the time that ages were counted to.
        doubted: entities that the record was to be asked about too, and `doubts`: why, and why it said nothing better.
    """

    place: str
    reading: Reading
    decisions: Mapping[EntityKey, Decision]
    terms: Terms
    moment: Moment
    reasons: tuple[str, ...] = ()
    doubted: frozenset[EntityKey] = frozenset()
    doubts: tuple[str, ...] = ()

    def reasons_of(self, entity: EntityKey) -> tuple[str, ...]:
        """Why no better place answered for this entity: an answer says nothing of a place that it did not need."""
        return (*self.reasons, *self.doubts) if entity in self.doubted else self.reasons

    def settled(self, entity: EntityKey) -> Settled:
        """The decision for one entity, of an outcome that `Service.lookup` returned."""
        found = self.decisions[entity]
        if isinstance(found, Compute):
            raise AssertionError(f"{entity} was left undecided")
        return found


@dataclass(frozen=True)
class _Doubt:
    """Why a copy's outcome is not taken without asking the record, empty for no remark; and about which entities."""

    why: str
    entities: frozenset[EntityKey]


@dataclass(frozen=True)
class _Asked:
    """One request, and what was computed for it so far."""

    pipeline: Pipeline
    terms: Terms
    began: float
    attempts: Attempts = field(default_factory=dict)


class Service:
    """Looks predictions up in places tried in order; the last one is the record.

    Args:
        places: first to last.
        fresh_for: overrides every pipeline's `fresh_for`; None to keep the declared ones.
        clock: what to count ages to.
        fresh: computes fresh predictions; None where that is not to be had.
        counts: counts what the service does; None to count nothing.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        fresh_for: timedelta | None,
        clock: SystemClock,
        fresh: Computation | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.places = tuple(Guarded(place) for place in places)
        self.fresh = fresh
        self.counts = counts
        self._fresh_for = fresh_for
        self._clock = clock
        self._epochs: dict[str, int] = {}

    async def lookup(self, pipeline: Pipeline, entities: Sequence[EntityKey], max_stale: timedelta | None) -> Outcome:
        """Decide about each entity.

        Raises:
            NothingAnswers: no place could be read.
        """
        terms = Terms.of(pipeline, max_stale=max_stale, fresh_for=self._fresh_for)
        asked = _Asked(pipeline, terms, asyncio.get_running_loop().time())
        reasons: list[str] = []
        kept: Outcome | None = None
        for guarded in self.places:
            last = guarded is self.places[-1]
            try:
                reading = await guarded.ask(guarded.place.read(pipeline, entities), len(entities))
            except (PlaceDown, PlaceUnusable) as error:
                reasons.append(str(error))
                self._failed(pipeline, guarded, error)
                continue
            outcome = await self._decide(guarded.name, reading, asked, tuple(reasons))
            doubt = None if last else self._gap(pipeline, outcome)
            if doubt is None:
                outcome = await self._settle(outcome, asked)
                doubt = None if last else self._second_thought(outcome)
            if doubt is None:
                self._saw(pipeline, guarded, reading)
                return outcome
            kept = replace(outcome, doubted=doubt.entities)
            if doubt.why:
                reasons.append(doubt.why)
        if kept is None:
            raise NothingAnswers("; ".join(reasons))
        settled = await self._settle(kept, asked)
        more = self._second_thought(settled)
        doubted = settled.doubted | more.entities if more is not None else settled.doubted
        return replace(settled, doubted=doubted, doubts=tuple(reasons[len(kept.reasons) :]))

    async def current(self, pipeline: Pipeline) -> tuple[dict[str, object] | None, str]:
        """The current generation from the first place that answers, and that place.

        Raises:
            NothingAnswers: no place could be read.
        """
        reasons = []
        for guarded in self.places:
            try:
                return await guarded.ask(guarded.place.current(pipeline)), guarded.name
            except (PlaceDown, PlaceUnusable) as error:
                reasons.append(str(error))
        raise NothingAnswers("; ".join(reasons))

    async def health(self) -> dict[str, str]:
        """Each place by name: `ok`, `busy: …`, or what is wrong. Asks all of them, breaker or not."""
        states = await asyncio.gather(*(guarded.state(guarded.place.check()) for guarded in self.places))
        return {guarded.name: state for guarded, state in zip(self.places, states, strict=True)}

    async def close(self) -> None:
        """Give all connections back."""
        if self.fresh is not None:
            await self.fresh.close()
        for guarded in self.places:
            await guarded.place.close()

    async def _decide(self, place: str, reading: Reading, asked: _Asked, reasons: tuple[str, ...]) -> Outcome:
        moment = self._clock.now()  # after the read, so that no age is too small
        return Outcome(
            place=place,
            reading=reading,
            decisions=await decide(reading, asked.terms, moment.now, asked.attempts),
            terms=asked.terms,
            moment=moment,
            reasons=reasons,
        )

    async def _settle(self, outcome: Outcome, asked: _Asked) -> Outcome:
        """Compute what the ladder wishes for, and let it decide again."""
        wishes = {entity: found for entity, found in outcome.decisions.items() if isinstance(found, Compute)}
        if not wishes:
            return outcome
        if self.fresh is None:
            made: Mapping[EntityKey, Made] = dict.fromkeys(wishes, Unmade(reason="this process computes none"))
        else:
            made = await self.fresh.compute(asked.pipeline, wishes, asked.terms, asked.began)
        asked.attempts.update({(entity, wishes[entity].model): found for entity, found in made.items()})
        decided = await self._decide(outcome.place, outcome.reading, asked, outcome.reasons)
        return replace(decided, doubted=outcome.doubted)

    def _failed(self, pipeline: Pipeline, guarded: Guarded[Place], error: PlaceDown | PlaceUnusable) -> None:
        if self.counts is not None:
            count = self.counts.place_busy if isinstance(error, PlaceBusy) else self.counts.place_failed
            count(pipeline.name, guarded.name)

    def _gap(self, pipeline: Pipeline, outcome: Outcome) -> _Doubt | None:
        """What a copy lacks that the record may have; None if it is whole."""
        reading, seen = outcome.reading, self._epochs.get(pipeline.name, 0)
        if reading.epoch < seen:
            why = f"{outcome.place} is behind: it has epoch {reading.epoch}, epoch {seen} was seen"
            return _Doubt(why, frozenset(reading.entities))
        gaps = {entity: found.gap for entity, found in reading.entities.items() if found.gap is not None}
        return _Doubt(next(iter(gaps.values())), frozenset(gaps)) if gaps else None

    def _second_thought(self, outcome: Outcome) -> _Doubt | None:
        """Why a whole copy's outcome should not be taken without asking the record; None to take it.

        There is no remark on a refusal: the record may know better, and if it does not, there is nothing to add.
        """
        entities: set[EntityKey] = set()
        gaps: list[str] = []
        for entity, decision in outcome.decisions.items():
            refused = isinstance(decision, Refusal)
            if refused or (isinstance(decision, Answer) and decision.rung > Rung.FRESH_COMPUTATION):
                gap = outcome.reading.entities[entity].previous_gap
                if gap is not None:
                    gaps.append(gap)
                if refused or gap is not None:
                    entities.add(entity)
        return _Doubt(gaps[0] if gaps else "", frozenset(entities)) if entities else None

    def _saw(self, pipeline: Pipeline, guarded: Guarded[Place], reading: Reading) -> None:
        """Remember the greatest epoch; the record's own word replaces it, for a database may be made anew."""
        record = guarded is self.places[-1]
        seen = self._epochs.get(pipeline.name, 0)
        self._epochs[pipeline.name] = reading.epoch if record else max(seen, reading.epoch)


async def decide(reading: Reading, terms: Terms, now: datetime, attempts: Attempts) -> dict[EntityKey, Decision]:
    """The ladder's decision for each entity of a reading; others may be answered in between.

    Args:
        attempts: what was computed for this request already.
    """
    decisions: dict[EntityKey, Decision] = {}
    for count, (entity, found) in enumerate(reading.entities.items(), start=1):
        made = attempts.get((entity, found.candidates.model)) if attempts else None
        if isinstance(made, Candidate):  # it answers under the generation whose model it was made by
            made = replace(made, generation=found.candidates.generation)
        decisions[entity] = climb(found.candidates, terms, now, made)
        if count % ENTITIES_AT_A_TIME == 0:
            await asyncio.sleep(0)
    return decisions
