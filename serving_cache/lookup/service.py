"""One lookup: the places in their order, the ladder, and the record's second opinion.

The steps, numbered alike here and in docs/architecture.md:

1. Ask the first place for everything it knows of the entities, at one epoch.
2. Let the ladder decide for each entity.
3. Accept, unless the place has gaps, is behind an epoch already seen, or leads
   to a refusal: then keep its decisions and ask the next place.
4. Of the last resort: the kept decisions, with every reason; else nothing can be said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from almanac.ladder import Decision, Refusal, Rung, Terms, climb
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from serving_cache.lookup.monitor import Moment, SystemClock
from serving_cache.lookup.places import Guarded, Place, PlaceDown, PlaceUnusable, Reading

ENTITIES_AT_A_TIME = 50  # before other requests get their turn


class NothingAnswers(Exception):
    """No place could be read; says what was wrong with each."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the ladder decided for some entities, all from one place at one epoch.

    Args:
        reasons: why no better place answered.
        moment: the time that ages were counted to.
    """

    place: str
    reading: Reading
    decisions: Mapping[EntityKey, Decision]
    terms: Terms
    moment: Moment
    reasons: tuple[str, ...] = ()


class Service:
    """Looks predictions up in places tried in order; the last one is the record.

    Args:
        places: first to last.
        fresh_for: overrides every pipeline's `fresh_for`; None to keep the declared ones.
        clock: what to count ages to.
    """

    def __init__(self, places: Sequence[Place], *, fresh_for: timedelta | None, clock: SystemClock) -> None:
        self.places = tuple(Guarded(place) for place in places)
        self._fresh_for = fresh_for
        self._clock = clock
        self._epochs: dict[str, int] = {}

    async def lookup(self, pipeline: Pipeline, entities: Sequence[EntityKey], max_stale: timedelta | None) -> Outcome:
        """Decide about each entity.

        Raises:
            NothingAnswers: no place could be read.
        """
        terms = Terms.of(pipeline, max_stale=max_stale, fresh_for=self._fresh_for)
        reasons: list[str] = []
        kept: Outcome | None = None
        for guarded in self.places:
            try:
                reading = await guarded.ask(guarded.place.read(pipeline, entities), len(entities))
            except (PlaceDown, PlaceUnusable) as error:
                reasons.append(str(error))
                continue
            outcome = await self._decide(guarded.name, reading, terms, tuple(reasons))
            doubt = None if guarded is self.places[-1] else self._doubt(pipeline, outcome)
            if doubt is None:
                self._saw(pipeline, guarded, reading)
                return outcome
            kept = outcome
            if doubt:
                reasons.append(doubt)
        if kept is None:
            raise NothingAnswers("; ".join(reasons))
        return Outcome(
            place=kept.place, reading=kept.reading, decisions=kept.decisions, terms=terms, moment=kept.moment,
            reasons=tuple(reasons),
        )  # fmt: skip

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
        """Each place by name: `ok`, or what is wrong. Asks all of them, breaker or not."""

        async def one(guarded: Guarded) -> str:
            try:
                await Guarded(guarded.place).ask(guarded.place.check())
            except (PlaceDown, PlaceUnusable) as error:
                return str(error)
            return "ok"

        states = await asyncio.gather(*(one(guarded) for guarded in self.places))
        return {guarded.name: state for guarded, state in zip(self.places, states, strict=True)}

    async def close(self) -> None:
        """Give all connections back."""
        for guarded in self.places:
            await guarded.place.close()

    async def _decide(self, place: str, reading: Reading, terms: Terms, reasons: tuple[str, ...]) -> Outcome:
        moment = self._clock.now()  # after the read, so that no age is too small
        return Outcome(
            place=place,
            reading=reading,
            decisions=await decide(reading, terms, moment.now),
            terms=terms,
            moment=moment,
            reasons=reasons,
        )

    def _doubt(self, pipeline: Pipeline, outcome: Outcome) -> str | None:
        """Why a copy's outcome should not be taken without asking the record; None to take it, empty for no remark."""
        seen = self._epochs.get(pipeline.name, 0)
        if outcome.reading.epoch < seen:
            return f"{outcome.place} is behind: it has epoch {outcome.reading.epoch}, epoch {seen} was seen"
        for entity, decision in outcome.decisions.items():
            reading = outcome.reading.entities[entity]
            if reading.gap is not None:
                return reading.gap
            lower = isinstance(decision, Refusal) or decision.rung is not Rung.CURRENT
            if lower and reading.previous_gap is not None:
                return reading.previous_gap
            if isinstance(decision, Refusal):
                return ""  # the record may know better; if it does not, there is nothing to add
        return None

    def _saw(self, pipeline: Pipeline, guarded: Guarded, reading: Reading) -> None:
        """Remember the greatest epoch; the record's own word replaces it, for a database may be made anew."""
        record = guarded is self.places[-1]
        seen = self._epochs.get(pipeline.name, 0)
        self._epochs[pipeline.name] = reading.epoch if record else max(seen, reading.epoch)


async def decide(reading: Reading, terms: Terms, now: datetime) -> dict[EntityKey, Decision]:
    """The ladder's decision for each entity of a reading; others may be answered in between."""
    decisions: dict[EntityKey, Decision] = {}
    for count, (entity, found) in enumerate(reading.entities.items(), start=1):
        decisions[entity] = climb(found.candidates, terms, now)
        if count % ENTITIES_AT_A_TIME == 0:
            await asyncio.sleep(0)
    return decisions
