"""What callers read: the JSON of an answer, of a refusal, and the headers that let a cache be honest too.

Caching (RFC 9111, 5861). A cache may reuse an answer for `max-age` seconds: never past the moment that it turns stale,
loses a value or breaks `max_stale`, and never longer than `REUSE_SECONDS_MAX`, for an event or a rollback can change
any answer at once. That holds for caches that count from `Date` and for those that add `Age`, which is 0 where an
answer is made: the prediction's own age is another thing, and stands in `Almanac-Age`. A reader of a cached answer
adds the two. `stale-if-error` reaches to the moment that the answer is unusable.
"""

from __future__ import annotations

import hashlib
import math
import struct
from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

from almanac.clock import format_time
from almanac.entity_keys import shown
from almanac.ladder import Answer, OutputAnswer, Refusal, span
from almanac.partitioning import EntityKey, Grid
from almanac.pipeline import Pipeline
from almanac.ranked import RankedList
from serving_cache.lookup.choosing import Choice
from serving_cache.lookup.places import Reading
from serving_cache.lookup.service import Outcome

FLOAT32_MAX = 3.4e38
FLOAT32_DIGITS_MIN, FLOAT32_DIGITS_MAX = 7, 9  # significant decimal digits that a float32 may need
REUSE_SECONDS_MAX = 2
AGE_HEADER = "almanac-age"
"""Of the prediction, in seconds, rounded up, as it left this process; a 304 brings a cache's copy up to date."""
RETRY_AFTER_SECONDS = 5
TIMES_KNOWN_MAX = 4_096  # times kept as text: the cells of a generation share theirs

_FLOAT32 = struct.Struct("<f")


class Point(msgspec.Struct, frozen=True):
    """Centre of the cell, in degrees."""

    lat: float
    lon: float


class ItemJson(msgspec.Struct, frozen=True):
    """One item of a list, with its score and its attributes."""

    item: str
    score: float | None
    attributes: dict[str, float | None]


class OutputJson(msgspec.Struct, frozen=True, kw_only=True):
    """One output: a number, or where the pipeline ranks the items of a list, best first, in place of `value`.

    Both are null where the verdict is expired or where the prediction lacks them.
    """

    value: float | msgspec.UnsetType | None = msgspec.UNSET
    items: list[ItemJson] | msgspec.UnsetType | None = msgspec.UNSET
    unit: str
    valid_at: str | None
    verdict: str


class AnswerJson(msgspec.Struct, frozen=True, kw_only=True):
    """One entity's answer; README and openapi.json describe the fields."""

    pipeline: str
    entity: EntityKey
    point: Point | None
    outputs: dict[str, OutputJson]
    verdict: str
    source: str
    place: str | None
    rung: int
    reason: str | None
    as_of: str | None
    computed_at: str | None
    age_seconds: float | None
    generation: int | None
    epoch: int
    model: str | None
    clock: str | None


class RefusalJson(msgspec.Struct, frozen=True, kw_only=True):
    """One entity of many that got no answer: the status it would have had alone, and why."""

    entity: EntityKey
    status: int
    detail: str


class ManyJson(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of one epoch, one for each place asked, in that order; the rest stands in `refusals`, in order too."""

    pipeline: str
    epoch: int
    answers: list[AnswerJson]
    refusals: list[RefusalJson]


def answer_json(
    pipeline: Pipeline, entity: EntityKey, answer: Answer, outcome: Outcome, choice: Choice | None = None
) -> AnswerJson:
    """The JSON of a decision for an entity; of a list what the caller wants of it."""
    candidate = answer.candidate
    reasons = [*outcome.reasons_of(entity), *answer.reasons, *([outcome.moment.note] if outcome.moment.note else [])]
    return AnswerJson(
        pipeline=pipeline.name,
        entity=entity,
        point=_point(pipeline, entity),
        outputs={found.output.name: _output(found, pipeline, choice) for found in answer.outputs},
        verdict=answer.verdict.value,
        source=candidate.source.value,
        place=candidate.place,
        rung=int(answer.rung),
        reason="; ".join(reasons) or None,
        as_of=_time(candidate.as_of),
        computed_at=_time(candidate.computed_at),
        age_seconds=None if answer.age is None else round(answer.age.total_seconds(), 3),
        generation=candidate.generation,
        epoch=outcome.reading.epoch,
        model=candidate.model,
        clock=_clock_note(outcome.reading, candidate.generation),
    )


def _output(found: OutputAnswer, pipeline: Pipeline, choice: Choice | None) -> OutputJson:
    unit, valid_at, verdict = found.output.unit, _time(found.valid_at), found.verdict.value
    if pipeline.ranking is None:
        value = None if isinstance(found.value, RankedList) else shortest(found.value)
        return OutputJson(value=value, unit=unit, valid_at=valid_at, verdict=verdict)
    wanted = choice or Choice(pipeline.ranking.length)
    items = items_json(wanted.of(found.value)) if isinstance(found.value, RankedList) else None
    return OutputJson(items=items, unit=unit, valid_at=valid_at, verdict=verdict)


def items_json(found: RankedList) -> list[ItemJson]:
    """A list as it is sent, best item first."""
    return [
        ItemJson(item, shortest(score), {name: shortest(values[at]) for name, values in found.attributes.items()})
        for at, (item, score) in enumerate(zip(found.items, found.scores, strict=True))
    ]


def refusal_json(pipeline: Pipeline, entity: EntityKey, refusal: Refusal, outcome: Outcome) -> RefusalJson:
    """Why an entity gets no answer: 404 if the pipeline never predicted it, else 503."""
    known = outcome.reading.entities[entity]
    candidates = known.candidates
    never = candidates.current is None and candidates.previous is None and not candidates.overlays
    whole = known.covered and known.gap is None and known.previous_gap is None
    placed = outcome.reasons_of(entity)
    if never and whole and candidates.generation is not None and not placed and not refusal.passing:
        detail = f"{pipeline.name} has no prediction of {pipeline.entity} {_named(entity)}: it was never predicted"
        return RefusalJson(entity=entity, status=404, detail=detail)
    reasons = [*refusal.reasons, *placed, *([outcome.moment.note] if outcome.moment.note else [])]
    advice = "publish a generation" if candidates.generation is None else "wait for a newer prediction"
    if refusal.passing:
        advice = "ask again in a moment"
    if refusal.best_age is not None and refusal.best_age <= outcome.terms.freshness.usable_for:
        advice = f"accept max_stale of at least {span(_ceil(refusal.best_age))}, or {advice}"
    detail = f"{pipeline.name} refuses {pipeline.entity} {_named(entity)}: {'; '.join(reasons)}: {advice}"
    return RefusalJson(entity=entity, status=503, detail=detail)


def _named(entity: EntityKey) -> str:
    """A key within a sentence: as it is, unless it would break the line."""
    return str(entity) if isinstance(entity, int) or entity.isprintable() else shown(entity)


def cache_headers(answer: Answer, body: AnswerJson, max_stale: timedelta | None) -> tuple[tuple[str, str], ...]:
    """Age, ETag, Cache-Control and the prediction's age of one answer."""
    tag = etag(body, max_stale)
    if answer.age is None or answer.stale_in is None or answer.unusable_in is None:
        return (("etag", tag), ("cache-control", "no-cache"))
    reuse = max(0, min(math.floor(min(answer.stale_in, answer.unusable_in).total_seconds()), REUSE_SECONDS_MAX))
    error = max(0, math.floor(answer.unusable_in.total_seconds()) - reuse)
    return (
        ("age", "0"),
        (AGE_HEADER, str(math.ceil(answer.age.total_seconds()))),
        ("etag", tag),
        ("cache-control", f"max-age={reuse}, stale-if-error={error}"),
    )


def etag(body: AnswerJson, max_stale: timedelta | None) -> str:
    """A weak tag of everything in an answer but its growing age: a 304 means the same prediction, verdict and place."""
    reason = body.reason if body.age_seconds is None else None  # a reason repeats the age
    content = msgspec.json.encode((msgspec.structs.replace(body, age_seconds=None, reason=reason), str(max_stale)))
    return f'W/"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'


def shortest(value: float | None) -> float | None:
    """The same float32 with fewer digits (281.3 for 281.29998779296875); what was never a float32 stays as it is."""
    if value is None or not abs(value) < FLOAT32_MAX:
        return value
    for digits in range(FLOAT32_DIGITS_MIN, FLOAT32_DIGITS_MAX + 1):
        short = float(f"{value:.{digits}g}")
        if _FLOAT32.unpack(_FLOAT32.pack(short))[0] == value:
            return short
    return value


def _point(pipeline: Pipeline, entity: EntityKey) -> Point | None:
    if not isinstance(pipeline.partitions, Grid) or not isinstance(entity, int):
        return None
    lat, lon = pipeline.partitions.position(entity)
    return Point(lat=round(lat, 6), lon=round(lon, 6))


@lru_cache(maxsize=TIMES_KNOWN_MAX)
def _time(when: datetime | None) -> str | None:
    return None if when is None else format_time(when)


def _clock_note(reading: Reading, generation: int | None) -> str | None:
    seconds = reading.clock_shifts.get(generation or 0, 0.0)
    return f"observations replayed: clock shifted by {seconds / 3600:+g} h" if seconds else None


def _ceil(age: timedelta) -> timedelta:
    """Rounded up to the unit that `span` shows, so that the advice suffices."""
    unit = 1 if age < timedelta(seconds=119) else 60 if age < timedelta(hours=48) else 3600
    return timedelta(seconds=math.ceil(age.total_seconds() / unit) * unit)
