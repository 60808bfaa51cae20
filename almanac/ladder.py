"""The ladder: which prediction answers, and why no better one did. Pure: no I/O, `now` is an argument.

    rung 1  the overlay or the current generation, whichever has the greater as_of (a tie: overlay)
    rung 2  fresh computation: `climb` says `Compute`, the service acts, and `climb` decides again with the outcome
    rung 3  the previous generation
    rung 4  the declared default, which has no as_of and which any `max_stale` excludes
    rung 5  refusal

No rung answers with a prediction that is expired or older than `max_stale`.

An overlay is believed only if the model that made it is the current
generation's, so that a rollback takes its predictions back too. One that would
answer but for that is named in the reasons, if it is newer than all that is
believed. From the rule follow two cases that are easy to get wrong:

- An entity that the current generation does not hold (a user who came after
  it) may be answered by an overlay of the same model: the generation vouches
  for the model, not for the list of entities.
- A pipeline without a published generation vouches for no model, so that none
  of its overlays answers. A fresh computation does: by the model of the
  pipeline's alias, which is what the next generation will be made by.

A fresh computation answers only if it speaks from newer data than everything
on rung 1: computing the same again would give the same age.

An as_of that lies in the future counts as age 0 (see `age_of`); beyond
`CLOCK_TOLERANCE` the answer's reason says so, and beyond `AHEAD_MAX` it answers
nothing and hides nothing, for its age cannot be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from almanac.clock import format_time
from almanac.freshness import (
    CLOCK_TOLERANCE,
    Verdict,
    age_of,
    age_verdict,
    output_verdict,
    too_far_ahead,
    valid_at,
    verdict,
)
from almanac.pipeline import Output
from almanac.ranked import Value, is_value
from almanac.rungs import (
    Answer,
    Candidate,
    Candidates,
    Compute,
    Decision,
    OutputAnswer,
    Refusal,
    Rung,
    Settled,
    Source,
    Terms,
    Unmade,
    span,
)

__all__ = [
    "Answer",
    "Candidate",
    "Candidates",
    "Compute",
    "Decision",
    "OutputAnswer",
    "Refusal",
    "Rung",
    "Settled",
    "Source",
    "Terms",
    "Unmade",
    "climb",
    "span",
]


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
        if too_far_ahead(candidate.as_of, self.now):
            ahead = span(candidate.as_of - self.now)
            self.reasons.append(f"{name} is as of a moment {ahead} in the future, so that its age is not known")
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


def climb(
    candidates: Candidates, terms: Terms, now: datetime, fresh: Candidate | Unmade | None = None
) -> Answer | Refusal | Compute:
    """Decide which candidate answers, that none can, or that rung 2 is to be tried.

    Args:
        candidates: everything known about the entity.
        terms: outputs, freshness, default and the caller's `max_stale`.
        now: the time to count ages to, aware.
        fresh: what a fresh computation gave; None if it was not tried. With it, `Compute` is not said again.
    """
    way = _Climb(terms, now)
    first = _first_rung(candidates, way)
    for candidate in first:
        answer = way.try_rung(candidate, Rung.CURRENT, _name(candidate, "the current generation"))
        if answer is not None:
            return answer
    if terms.fresh:
        wish = Compute(model=candidates.model, newer_than=_newest(first, terms, now))
        if fresh is None:
            return wish
        answer = _second_rung(fresh, wish, way)
        if answer is not None:
            return answer
    if candidates.previous is not None:
        name = _name(candidates.previous, "the previous generation")
        answer = way.try_rung(candidates.previous, Rung.PREVIOUS, name)
        if answer is not None:
            return answer
    default = terms.default or candidates.default
    if default is not None:
        if terms.max_stale is None:
            return _default(default, candidates, terms, tuple(way.reasons))
        way.reasons.append("the declared default has no as_of, and max_stale excludes it")
    passing = terms.fresh and isinstance(fresh, Unmade) and fresh.passing
    return Refusal(reasons=tuple(way.reasons), best_age=min(way.ages, default=None), passing=passing)


def _newest(candidates: Iterable[Candidate], terms: Terms, now: datetime) -> datetime | None:
    """The newest as_of of candidates that hold any value, and whose age can be told."""
    known = [
        candidate.as_of
        for candidate in candidates
        if candidate.as_of is not None
        and not too_far_ahead(candidate.as_of, now)
        and any(_known(candidate.values, output) for output in terms.outputs)
    ]
    return max(known, default=None)


def _second_rung(fresh: Candidate | Unmade, wish: Compute, way: _Climb) -> Answer | None:
    """Answer with what a fresh computation gave, or note why it cannot."""
    if isinstance(fresh, Unmade):
        way.reasons.append(f"fresh computation: {fresh.reason}")
        return None
    if wish.model is not None and fresh.model != wish.model:
        way.reasons.append(f"the fresh prediction is by {fresh.model}, the current generation by {wish.model}")
        return None
    if fresh.as_of is not None and wish.newer_than is not None and fresh.as_of <= wish.newer_than:
        way.reasons.append("the fresh prediction speaks from no newer data than what there is")
        return None
    return way.try_rung(fresh, Rung.FRESH_COMPUTATION, "the fresh prediction")


def _first_rung(candidates: Candidates, way: _Climb) -> list[Candidate]:
    """Overlay and current generation, greater as_of first (a tie: overlay); notes what is left out."""
    if candidates.generation is None:
        way.reasons.append("no generation is published yet")
        return []
    if candidates.current is None:
        way.reasons.append(f"generation {candidates.generation} (current) has no prediction of this entity")
    believed = [overlay for overlay in candidates.overlays if overlay.model == candidates.model]
    ignored = _ignored(candidates, believed, way)
    if ignored is not None and ignored.as_of is not None:
        way.reasons.append(
            f"{_name(ignored, '')} as of {format_time(ignored.as_of)} is newer, but by {ignored.model}, "
            f"the current generation by {candidates.model}"
        )
    every = [*believed, *([candidates.current] if candidates.current is not None else [])]
    dated = [candidate for candidate in every if candidate.as_of is not None]
    return sorted(dated, key=lambda c: (c.as_of, c.source is not Source.BATCH), reverse=True)


def _ignored(candidates: Candidates, believed: Iterable[Candidate], way: _Climb) -> Candidate | None:
    """The newest overlay that would answer if it were not by another model; None if nothing is missed."""
    dated = [
        (overlay.as_of, overlay)
        for overlay in candidates.overlays
        if overlay.model != candidates.model and overlay.as_of is not None and _usable(overlay, way.terms, way.now)
    ]
    if not dated:
        return None
    newest, overlay = max(dated, key=lambda found: found[0])
    own = [one for one in believed if _usable(one, way.terms, way.now)]
    equalled = any(one.as_of is not None and one.as_of >= newest for one in own)
    current = candidates.current
    if current is not None and current.as_of is not None and _usable(current, way.terms, way.now):
        equalled = equalled or current.as_of > newest  # a tie goes to overlays
    return None if equalled else overlay


def _usable(candidate: Candidate, terms: Terms, now: datetime) -> bool:
    """Whether a dated candidate has a value that is not expired, however old the caller takes it."""
    valued = tuple(output for output in terms.outputs if _known(candidate.values, output))
    if not valued or candidate.as_of is None or too_far_ahead(candidate.as_of, now):
        return False
    return verdict(valued, candidate.as_of, terms.freshness, now) is not Verdict.EXPIRED


def _known(values: Mapping[str, Value], output: Output) -> bool:
    return is_value(values.get(output.name))


def _outputs(values: Mapping[str, Value], as_of: datetime, terms: Terms, now: datetime) -> tuple[OutputAnswer, ...]:
    """Every declared output: its value if it may be given, and its own verdict."""
    found = []
    for output in terms.outputs:
        known = _known(values, output)
        own = output_verdict(output, as_of, terms.freshness, now) if known else Verdict.MISSING
        shown = values[output.name] if own in (Verdict.FRESH, Verdict.STALE) else None
        found.append(OutputAnswer(output=output, value=shown, valid_at=valid_at(output, as_of), verdict=own))
    return tuple(found)


def _default(values: Mapping[str, Value], candidates: Candidates, terms: Terms, reasons: tuple[str, ...]) -> Answer:
    """Rung 4: the declared values, or those that the generation holds, with no age to claim."""
    held = terms.default is None
    return Answer(
        candidate=Candidate(
            values=values, source=Source.DEFAULT, as_of=None, generation=candidates.generation if held else None
        ),
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
        newest = ", and nothing newer is known" if rung in (Rung.CURRENT, Rung.FRESH_COMPUTATION) else ""
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
    if candidate.source is Source.FRESH:
        return "the fresh prediction"
    return f"{role} ({candidate.generation})" if candidate.generation is not None else role


def _apart(age: timedelta, limit: timedelta) -> tuple[str, str]:
    """Two durations as a person reads them; in seconds where they would read the same though they differ."""
    if age != limit and span(age) == span(limit):
        return f"{age.total_seconds():.0f} s", f"{limit.total_seconds():.0f} s"
    return span(age), span(limit)
