"""The ladder: which prediction answers, and why no better one did. Pure: no I/O, `now` is an argument.

    rung 1  the stream's overlay or the current generation, whichever has the greater as_of (a tie: overlay)
    rung 2  fresh computation (does not exist yet: `climb` has its place between rungs 1 and 3)
    rung 3  the previous generation
    rung 4  the declared default, which has no as_of and which any `max_stale` excludes
    rung 5  refusal

No rung answers with a prediction that is expired or older than `max_stale`.

An overlay is believed only if the model that made it is the current
generation's, so that a rollback takes its predictions back too. From this
follow two cases that are easy to get wrong:

- An entity that the current generation does not hold (a user who came after
  it) may be answered by an overlay of the same model: the generation vouches
  for the model, not for the list of entities.
- A pipeline without a published generation vouches for no model, so that none
  of its overlays answers.

An as_of that lies in the future counts as age 0 (see `age_of`); beyond
`CLOCK_TOLERANCE` the answer's reason says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum

from almanac.freshness import Verdict, age_of, age_verdict, output_verdict, valid_at, verdict
from almanac.pipeline import Freshness, Output, Pipeline

CLOCK_TOLERANCE = timedelta(seconds=5)


class Source(StrEnum):
    """Which runtime made a prediction."""

    STREAM = "stream"
    BATCH = "batch"
    DEFAULT = "default"


class Rung(IntEnum):
    """How far down the ladder an answer stands; 1 is best."""

    CURRENT = 1
    FRESH_COMPUTATION = 2
    PREVIOUS = 3
    DEFAULT = 4


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One prediction that could answer.

    Args:
        values: a number per output; one that is absent, NaN or infinite counts as missing.
        source: which runtime made it.
        as_of: the data time it speaks from; None only for the declared default.
        computed_at: when it was scored.
        generation: the generation that it belongs to; None for an overlay or a default.
        model: id of the model that made it, such as `weather-v3`.
        origin: the generation whose run scored it; differs from `generation` where a partition was carried forward.
        place: where its bytes came from, such as `redis`.
        reason: why its partition was carried forward; None if it was not.
    """

    values: Mapping[str, float]
    source: Source
    as_of: datetime | None
    computed_at: datetime | None = None
    generation: int | None = None
    model: str | None = None
    origin: int | None = None
    place: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """All predictions known for one entity, and the generation that vouches for the overlay's model.

    Args:
        generation: number of the current generation; None while none is published.
        model: the current generation's model; None while none is published.
        overlays: the stream's predictions, at most one per model.
        current, previous: the entity's row in each generation; None where it has none.
    """

    generation: int | None = None
    model: str | None = None
    overlays: tuple[Candidate, ...] = ()
    current: Candidate | None = None
    previous: Candidate | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an answer must satisfy.

    Args:
        outputs: the declared outputs.
        freshness: when a prediction is fresh, stale, expired.
        default: the declared default, a value per output.
        max_stale: greatest age the caller accepts; None for whatever is usable.
    """

    outputs: tuple[Output, ...]
    freshness: Freshness
    default: Mapping[str, float] | None = None
    max_stale: timedelta | None = None

    @classmethod
    def of(cls, pipeline: Pipeline, *, max_stale: timedelta | None = None, fresh_for: timedelta | None = None) -> Terms:
        """The terms of a declaration; `fresh_for` overrides the declared one and is held to `usable_for`."""
        freshness = pipeline.freshness
        if fresh_for is not None:
            freshness = Freshness(fresh_for=min(fresh_for, freshness.usable_for), usable_for=freshness.usable_for)
        return cls(outputs=pipeline.outputs, freshness=freshness, default=pipeline.default, max_stale=max_stale)


@dataclass(frozen=True, kw_only=True)
class OutputAnswer:
    """One output of an answer; `value` is None where the verdict is expired or missing."""

    output: Output
    value: float | None
    valid_at: datetime | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The ladder's decision for a candidate.

    Args:
        candidate: the prediction that answers.
        rung: where on the ladder it stands.
        verdict: fresh or stale; missing for the declared default.
        outputs: one per declared output, in its order.
        age: now minus as_of; None for the declared default.
        reasons: why no better prediction answered, best first; empty when there is nothing to explain.
        stale_in, unusable_in: time from now until the answer turns stale, or loses its first value or its
            licence under `max_stale`; None for the declared default.
    """

    candidate: Candidate
    rung: Rung
    verdict: Verdict
    outputs: tuple[OutputAnswer, ...]
    age: timedelta | None
    reasons: tuple[str, ...] = ()
    stale_in: timedelta | None = None
    unusable_in: timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The ladder's decision against every candidate.

    Args:
        reasons: why each of them was turned down, best first.
        best_age: age of the youngest prediction that was turned down for its age; None if there was none.
    """

    reasons: tuple[str, ...]
    best_age: timedelta | None


Decision = Answer | Refusal


@dataclass
class _Climb:
    """What was learned on the way down the ladder."""

    terms: Terms
    now: datetime
    reasons: list[str] = field(default_factory=list)
    ages: list[timedelta] = field(default_factory=list)

    def try_rung(self, candidate: Candidate, rung: Rung, name: str) -> Answer | None:
        """Answer with a dated candidate, or note why it cannot."""
        if candidate.as_of is None:
            self.reasons.append(f"{name} carries no as_of")
            return None
        given = _outputs(candidate.values, candidate.as_of, self.terms, self.now)
        valued = tuple(o.output for o in given if o.verdict is not Verdict.MISSING)
        if not valued:
            self.reasons.append(f"{name} holds no value of this entity")
            return None
        age = age_of(candidate.as_of, self.now)
        whole = verdict(valued, candidate.as_of, self.terms.freshness, self.now)
        if whole is Verdict.EXPIRED:
            self.ages.append(age)
            self.reasons.append(f"{name} has expired: it is {span(age)} old")
            return None
        if self.terms.max_stale is not None and age > self.terms.max_stale:
            self.ages.append(age)
            old, limit = _apart(age, self.terms.max_stale)
            self.reasons.append(f"{name} is {old} old, older than max_stale of {limit}")
            return None
        return Answer(
            candidate=candidate,
            rung=rung,
            verdict=whole,
            outputs=given,
            age=age,
            reasons=(*self.reasons, *_remarks(candidate, rung, name, self.terms, self.now)),
            stale_in=max(self.terms.freshness.fresh_for - age, timedelta(0)),
            unusable_in=_unusable_in(given, candidate.as_of, self.terms, self.now),
        )


def climb(candidates: Candidates, terms: Terms, now: datetime) -> Decision:
    """Decide which candidate answers, or that none can.

    Args:
        candidates: everything known about the entity.
        terms: outputs, freshness, default and the caller's `max_stale`.
        now: the time to count ages to, aware.
    """
    way = _Climb(terms, now)
    for candidate in _first_rung(candidates, way):
        answer = way.try_rung(candidate, Rung.CURRENT, _name(candidate, "the current generation"))
        if answer is not None:
            return answer
    # Rung 2, fresh computation from online features, belongs here once it exists.
    if candidates.previous is not None:
        name = _name(candidates.previous, "the previous generation")
        answer = way.try_rung(candidates.previous, Rung.PREVIOUS, name)
        if answer is not None:
            return answer
    if terms.default is not None:
        if terms.max_stale is None:
            return _default(terms, tuple(way.reasons))
        way.reasons.append("the declared default has no as_of, and max_stale excludes it")
    return Refusal(reasons=tuple(way.reasons), best_age=min(way.ages, default=None))


def _first_rung(candidates: Candidates, way: _Climb) -> list[Candidate]:
    """Overlay and current generation, greater as_of first (a tie: overlay); notes what is left out."""
    if candidates.generation is None:
        way.reasons.append("no generation is published yet")
        return []
    if candidates.current is None:
        way.reasons.append(f"generation {candidates.generation} (current) has no prediction of this entity")
    current_as_of = candidates.current.as_of if candidates.current is not None else None
    believed = [overlay for overlay in candidates.overlays if overlay.model == candidates.model]
    for overlay in candidates.overlays:
        newer = current_as_of is None or (overlay.as_of is not None and overlay.as_of >= current_as_of)
        if overlay.model != candidates.model and newer and not believed:
            way.reasons.append(
                f"the stream's prediction is by {overlay.model}, the current generation by {candidates.model}"
            )
    every = [*believed, *([candidates.current] if candidates.current is not None else [])]
    dated = [candidate for candidate in every if candidate.as_of is not None]
    return sorted(dated, key=lambda c: (c.as_of, c.source is Source.STREAM), reverse=True)


def _outputs(values: Mapping[str, float], as_of: datetime, terms: Terms, now: datetime) -> tuple[OutputAnswer, ...]:
    """Every declared output: its value if it may be given, and its own verdict."""
    found = []
    for output in terms.outputs:
        value = values.get(output.name)
        known = value is not None and math.isfinite(value)
        own = output_verdict(output, as_of, terms.freshness, now) if known else Verdict.MISSING
        shown = value if own in (Verdict.FRESH, Verdict.STALE) else None
        found.append(OutputAnswer(output=output, value=shown, valid_at=valid_at(output, as_of), verdict=own))
    return tuple(found)


def _default(terms: Terms, reasons: tuple[str, ...]) -> Answer:
    """Rung 4: the declared values, with no age to claim."""
    values = terms.default or {}
    return Answer(
        candidate=Candidate(values=values, source=Source.DEFAULT, as_of=None),
        rung=Rung.DEFAULT,
        verdict=Verdict.MISSING,
        outputs=tuple(
            OutputAnswer(output=output, value=values.get(output.name), valid_at=None, verdict=Verdict.MISSING)
            for output in terms.outputs
        ),
        age=None,
        reasons=reasons,
    )


def _unusable_in(outputs: Iterable[OutputAnswer], as_of: datetime, terms: Terms, now: datetime) -> timedelta:
    """Time until the first value must no longer be given: `valid_at`, `usable_for` or `max_stale`."""
    age = age_of(as_of, now)
    ends = [terms.freshness.usable_for - age]
    ends += [o.valid_at - now for o in outputs if o.value is not None and o.valid_at is not None]
    if terms.max_stale is not None:
        ends.append(terms.max_stale - age)
    return max(min(ends), timedelta(0))


def _remarks(candidate: Candidate, rung: Rung, name: str, terms: Terms, now: datetime) -> list[str]:
    """What a reader must know about a candidate that does answer."""
    if candidate.as_of is None:
        return []
    remarks = []
    if age_verdict(candidate.as_of, terms.freshness, now) is Verdict.STALE:
        newest = ", and nothing newer is known" if rung is Rung.CURRENT else ""
        age, limit = _apart(age_of(candidate.as_of, now), terms.freshness.fresh_for)
        remarks.append(f"{name} is {age} old, fresh for {limit}{newest}")
    if candidate.reason:
        remarks.append(f"carried forward from generation {candidate.origin}: {candidate.reason}")
    if candidate.as_of - now > CLOCK_TOLERANCE:
        remarks.append(f"as_of lies {span(candidate.as_of - now)} in the future: a clock is wrong")
    return remarks


def _name(candidate: Candidate, role: str) -> str:
    if candidate.source is Source.STREAM:
        return "the stream's prediction"
    return f"{role} ({candidate.generation})" if candidate.generation is not None else role


def _apart(age: timedelta, limit: timedelta) -> tuple[str, str]:
    """Two durations as a person reads them; in seconds where they would read the same though they differ."""
    if age != limit and span(age) == span(limit):
        return f"{age.total_seconds():.0f} s", f"{limit.total_seconds():.0f} s"
    return span(age), span(limit)


def span(length: timedelta) -> str:
    """A duration as a person reads it: `45 s`, `90 min`, `2 h 5 min`, `3 d 4 h`."""
    seconds = length.total_seconds()
    if abs(seconds) < 120:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + " s"
    whole_minutes = int(seconds // 60)
    hours, minutes = divmod(whole_minutes, 60)
    if whole_minutes <= 120:
        return f"{whole_minutes} min"
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
