"""What the ladder decides about and what it decides: candidates, terms, rungs, answers. Plain records, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum

from almanac.freshness import Verdict, age_of, too_far_ahead, verdict
from almanac.pipeline import Freshness, Output, Pipeline
from almanac.ranked import Value


class Source(StrEnum):
    """Which runtime made a prediction."""

    STREAM = "stream"
    FRESH = "fresh"
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
        values: a number or a list per output; one that is absent, NaN, infinite or empty counts as missing.
        source: which runtime made it.
        as_of: the data time it speaks from; None only for the declared default.
        computed_at: when it was scored.
        generation: the generation that it belongs to; None for an overlay or a default.
        model: id of the model that made it, such as `bikes-v3`.
        origin: the generation whose run scored it; differs from `generation` where a partition was carried forward.
        place: where its bytes came from, such as `redis`.
        reason: why its partition was carried forward; None if it was not.
    """

    values: Mapping[str, Value]
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
        overlays: predictions of the stream and of fresh computations, at most one per model.
        current, previous: the entity's row in each generation; None where it has none.
        default: the default that the current generation holds, where the declaration says that it does.
    """

    generation: int | None = None
    model: str | None = None
    overlays: tuple[Candidate, ...] = ()
    current: Candidate | None = None
    previous: Candidate | None = None
    default: Mapping[str, Value] | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an answer must satisfy.

    Args:
        outputs: the declared outputs.
        freshness: when a prediction is fresh, stale, expired.
        default: the declared default, a value per output; None where a generation holds it, or there is none.
        max_stale: greatest age the caller accepts; None for whatever is usable.
        fresh: whether the pipeline declares fresh computation.
    """

    outputs: tuple[Output, ...]
    freshness: Freshness
    default: Mapping[str, float] | None = None
    max_stale: timedelta | None = None
    fresh: bool = False

    @classmethod
    def of(cls, pipeline: Pipeline, *, max_stale: timedelta | None = None, fresh_for: timedelta | None = None) -> Terms:
        """The terms of a declaration; `fresh_for` overrides the declared one and is held to `usable_for`."""
        freshness = pipeline.freshness
        if fresh_for is not None:
            freshness = Freshness(fresh_for=min(fresh_for, freshness.usable_for), usable_for=freshness.usable_for)
        return cls(
            outputs=pipeline.outputs,
            freshness=freshness,
            default=None if isinstance(pipeline.default, str) else pipeline.default,
            max_stale=max_stale,
            fresh=pipeline.fresh is not None,
        )


@dataclass(frozen=True, kw_only=True)
class OutputAnswer:
    """One output of an answer; `value` is None where the verdict is expired or missing."""

    output: Output
    value: Value | None
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
        passing: whether asking again in a moment may find an answer, for a fresh computation was only late or busy.
    """

    reasons: tuple[str, ...]
    best_age: timedelta | None
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The ladder's wish for rung 2.

    Args:
        model: the model to compute with, the current generation's; None for the one of the pipeline's alias.
        newer_than: the newest data that rung 1 speaks from; a computation from no newer data is of no use.
    """

    model: str | None
    newer_than: datetime | None

    def why_not(self, as_of: datetime, terms: Terms, now: datetime) -> str | None:
        """Why a prediction from data of `as_of` would not help; None if it may."""
        if too_far_ahead(as_of, now):
            return f"the online features are as of a moment {span(as_of - now)} in the future: a clock was wrong"
        if self.newer_than is not None and as_of <= self.newer_than:
            return f"the online features, {span(age_of(as_of, now))} old, are no newer than what there is"
        if verdict(terms.outputs, as_of, terms.freshness, now) is Verdict.EXPIRED:
            return f"the online features have expired: they are {span(age_of(as_of, now))} old"
        return None


@dataclass(frozen=True, kw_only=True)
class Unmade:
    """A fresh computation that gave no prediction.

    Args:
        reason: why not, as a sentence goes on after `fresh computation: `.
        passing: whether asking again in a moment may help.
    """

    reason: str
    passing: bool = False


Settled = Answer | Refusal
Decision = Settled | Compute


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
