"""The ladder's promises, over any candidates: age, expiry, models, and what a larger max_stale may change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.freshness import Verdict
from almanac.ladder import (
    Answer,
    Candidate,
    Candidates,
    Compute,
    Refusal,
    Rung,
    Settled,
    Source,
    Terms,
    Unmade,
    climb,
    span,
)
from almanac.pipeline import Freshness, Output, horizons, hours, minutes

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OUTPUTS = horizons("t2m", hours=(1, 6, 24), unit="K")
FRESHNESS = Freshness(fresh_for=minutes(90), usable_for=hours(24))
NEWER = (
    "the stream's prediction as of 2026-03-01T11:59:00Z is newer, but by weather-v2, the current generation by "
    "weather-v1"
)
DEFAULT = {output.name: 280.0 for output in OUTPUTS}
MODELS = ("weather-v1", "weather-v2")

ages = st.integers(-600, 40 * 3600).map(lambda seconds: timedelta(seconds=seconds))
stales = st.none() | st.integers(0, 40 * 3600).map(lambda seconds: timedelta(seconds=seconds))
values = st.dictionaries(
    st.sampled_from([o.name for o in OUTPUTS]), st.sampled_from([280.5, 281.0, float("nan"), float("inf")])
)


def candidate(
    source: Source, age: timedelta, *, given_values: dict[str, float] | None = None, **more: object
) -> Candidate:
    fields: dict[str, object] = {
        "values": {o.name: 281.0 for o in OUTPUTS} if given_values is None else given_values,
        "source": source,
        "as_of": NOW - age,
        "generation": 7,
        "model": MODELS[0],
        "place": "redis",
    }
    return Candidate(**{**fields, **more})  # type: ignore[arg-type]


@st.composite
def batches(draw: st.DrawFn) -> Candidate:
    return candidate(
        Source.BATCH, draw(ages), given_values=draw(st.none() | values), model=draw(st.sampled_from(MODELS))
    )


@st.composite
def anything(draw: st.DrawFn) -> Candidates:
    overlays = [
        candidate(
            draw(st.sampled_from([Source.STREAM, Source.FRESH])),
            draw(ages),
            given_values=draw(st.none() | values),
            model=model,
        )
        for model in draw(st.sets(st.sampled_from(MODELS)))
    ]
    return Candidates(
        generation=draw(st.none() | st.just(7)),
        model=draw(st.sampled_from(MODELS)),
        overlays=tuple(overlays),
        current=draw(st.none() | batches()),
        previous=draw(st.none() | batches()),
    )


@st.composite
def attempts(draw: st.DrawFn) -> Candidate | Unmade:
    if draw(st.booleans()):
        return Unmade(reason="all 4 slots busy", passing=draw(st.booleans()))
    model = draw(st.sampled_from(MODELS))
    return candidate(Source.FRESH, draw(ages), given_values=draw(st.none() | values), model=model, place=None)


def terms(max_stale: timedelta | None = None, *, default: bool = False, fresh: bool = False) -> Terms:
    declared = DEFAULT if default else None
    return Terms(outputs=OUTPUTS, freshness=FRESHNESS, default=declared, max_stale=max_stale, fresh=fresh)


def settled(found: Candidates, asked: Terms, attempt: Candidate | Unmade | None = None) -> Settled:
    """The decision after whatever the ladder wished for was tried."""
    decision = climb(found, asked, NOW, attempt)
    assert not isinstance(decision, Compute)
    return decision


@given(anything(), stales, st.booleans(), st.none() | attempts())
def test_never_older_than_asked_or_usable(
    found: Candidates, max_stale: timedelta | None, default: bool, attempt: Candidate | Unmade | None
) -> None:
    decision = climb(found, terms(max_stale, default=default, fresh=attempt is not None), NOW, attempt)
    if isinstance(decision, Answer) and decision.age is not None:
        assert timedelta(0) <= decision.age <= FRESHNESS.usable_for
        assert decision.candidate.as_of is not None
        assert decision.age == max(NOW - decision.candidate.as_of, timedelta(0))
        assert max_stale is None or decision.age <= max_stale
        assert decision.verdict in (Verdict.FRESH, Verdict.STALE)
        assert (decision.verdict is Verdict.FRESH) == (decision.age <= FRESHNESS.fresh_for)


@given(anything(), stales, st.booleans(), st.none() | attempts())
def test_no_value_is_given_past_its_valid_at(
    found: Candidates, max_stale: timedelta | None, default: bool, attempt: Candidate | Unmade | None
) -> None:
    decision = climb(found, terms(max_stale, default=default, fresh=attempt is not None), NOW, attempt)
    if isinstance(decision, Answer) and decision.rung is not Rung.DEFAULT:
        assert any(output.value is not None for output in decision.outputs)
        for output in decision.outputs:
            assert (output.value is None) == (output.verdict in (Verdict.EXPIRED, Verdict.MISSING))
            assert output.value is None or (output.valid_at is not None and output.valid_at > NOW)


@given(anything(), stales, st.booleans())
def test_only_the_answering_generations_model_speaks_for_the_stream(
    found: Candidates, max_stale: timedelta | None, default: bool
) -> None:
    decision = climb(found, terms(max_stale, default=default), NOW)
    if isinstance(decision, Answer) and decision.candidate.source in (Source.STREAM, Source.FRESH):
        assert found.generation is not None
        assert decision.candidate.model == found.model
        assert decision.rung is Rung.CURRENT


@given(ages, ages, stales)
def test_greater_as_of_wins_and_a_tie_goes_to_the_overlay(
    stream_age: timedelta, batch_age: timedelta, max_stale: timedelta | None
) -> None:
    found = Candidates(
        generation=7,
        model=MODELS[0],
        overlays=(candidate(Source.STREAM, stream_age),),
        current=candidate(Source.BATCH, batch_age),
    )
    decision = climb(found, terms(max_stale), NOW)
    if isinstance(decision, Answer):
        assert decision.candidate.source is (Source.STREAM if stream_age <= batch_age else Source.BATCH)


@given(anything(), st.booleans(), stales, stales, st.none() | attempts())
def test_a_larger_max_stale_never_turns_an_answer_into_a_refusal(
    found: Candidates,
    default: bool,
    one: timedelta | None,
    two: timedelta | None,
    attempt: Candidate | Unmade | None,
) -> None:
    far = timedelta.max
    smaller, larger = sorted((one, two), key=lambda limit: far if limit is None else limit)
    fresh = attempt is not None
    strict = settled(found, terms(smaller, default=default, fresh=fresh), attempt)
    lenient = settled(found, terms(larger, default=default, fresh=fresh), attempt)
    if isinstance(strict, Answer):
        assert isinstance(lenient, Answer)
        assert lenient.rung <= strict.rung


@given(anything(), stales)
def test_a_refusal_says_why_and_knows_the_best_age(found: Candidates, max_stale: timedelta | None) -> None:
    decision = climb(found, terms(max_stale), NOW)
    if isinstance(decision, Refusal):
        assert decision.reasons
        if decision.best_age is not None:
            beyond = max_stale is not None and decision.best_age > max_stale
            assert beyond or decision.best_age >= min(o.horizon for o in OUTPUTS if o.horizon is not None)


@given(anything(), stales)
def test_an_answer_may_be_reused_until_it_would_change(found: Candidates, max_stale: timedelta | None) -> None:
    """What `unusable_in` promises holds: a moment before, the same candidate still gives the same values."""
    asked = terms(max_stale)
    decision = climb(found, asked, NOW)
    if isinstance(decision, Answer) and decision.unusable_in:
        later = climb(found, asked, NOW + decision.unusable_in - timedelta(microseconds=1))
        assert isinstance(later, Answer)
        assert later.candidate is decision.candidate
        assert [o.value for o in later.outputs] == [o.value for o in decision.outputs]


@given(anything(), stales, st.booleans())
def test_computing_is_wished_for_exactly_where_rung_1_cannot_answer(
    found: Candidates, max_stale: timedelta | None, default: bool
) -> None:
    without = settled(found, terms(max_stale, default=default))
    wish = climb(found, terms(max_stale, default=default, fresh=True), NOW)
    if isinstance(without, Answer) and without.rung is Rung.CURRENT:
        assert wish == without
    else:
        assert isinstance(wish, Compute)
        assert wish.model == found.model


@given(anything(), stales, st.booleans(), st.booleans())
def test_a_computation_that_gave_nothing_changes_no_decision(
    found: Candidates, max_stale: timedelta | None, default: bool, passing: bool
) -> None:
    without = settled(found, terms(max_stale, default=default))
    unmade = Unmade(reason="all 4 slots busy", passing=passing)
    tried = settled(found, terms(max_stale, default=default, fresh=True), unmade)
    said = "fresh computation: all 4 slots busy"
    if isinstance(tried, Answer) and isinstance(without, Answer):
        assert (tried.candidate, tried.rung, tried.outputs) == (without.candidate, without.rung, without.outputs)
        assert (said in tried.reasons) == (tried.rung > Rung.FRESH_COMPUTATION)
    else:
        assert isinstance(tried, Refusal)
        assert isinstance(without, Refusal)
        assert (tried.best_age, tried.passing, said in tried.reasons) == (without.best_age, passing, True)


@given(anything(), stales, st.booleans(), attempts())
def test_a_fresh_answer_is_newer_than_rung_1_and_by_the_model_that_is_vouched_for(
    found: Candidates, max_stale: timedelta | None, default: bool, attempt: Candidate | Unmade
) -> None:
    decision = settled(found, terms(max_stale, default=default, fresh=True), attempt)
    if isinstance(decision, Answer) and decision.rung is Rung.FRESH_COMPUTATION:
        assert decision.candidate is attempt
        assert decision.candidate.model == found.model
        first = [*(o for o in found.overlays if o.model == found.model), *([found.current] if found.current else [])]
        for other in first if found.generation is not None else []:
            known = any(value == value and abs(value) < float("inf") for value in other.values.values())
            assert not known or other.as_of < decision.candidate.as_of  # type: ignore[operator]


@given(anything(), stales, attempts())
def test_a_wish_says_no_to_what_the_ladder_would_turn_down(
    found: Candidates, max_stale: timedelta | None, attempt: Candidate | Unmade
) -> None:
    asked = terms(max_stale, fresh=True)
    wish = climb(found, asked, NOW)
    if isinstance(wish, Compute) and isinstance(attempt, Candidate) and attempt.as_of is not None:
        decision = settled(found, asked, attempt)
        if wish.why_not(attempt.as_of, asked, NOW) is not None:
            assert not (isinstance(decision, Answer) and decision.rung is Rung.FRESH_COMPUTATION)


def test_a_fresh_computation_answers_before_the_previous_generation() -> None:
    found = Candidates(
        generation=7,
        model=MODELS[0],
        current=candidate(Source.BATCH, hours(30)),
        previous=candidate(Source.BATCH, hours(2), generation=6),
    )
    asked = terms(fresh=True)
    assert climb(found, asked, NOW) == Compute(model=MODELS[0], newer_than=NOW - hours(30))
    decision = settled(found, asked, candidate(Source.FRESH, minutes(20), place=None))
    assert isinstance(decision, Answer)
    assert (decision.rung, decision.candidate.source) == (Rung.FRESH_COMPUTATION, Source.FRESH)
    assert decision.reasons == ("the current generation (7) has expired: it is 30 h old",)
    other = settled(found, asked, candidate(Source.FRESH, minutes(20), model=MODELS[1]))
    assert isinstance(other, Answer)
    assert other.rung is Rung.PREVIOUS
    assert other.reasons[1] == "the fresh prediction is by weather-v2, the current generation by weather-v1"


def test_without_a_generation_a_fresh_computation_may_still_answer() -> None:
    assert climb(Candidates(), terms(fresh=True), NOW) == Compute(model=None, newer_than=None)
    decision = settled(Candidates(), terms(fresh=True), candidate(Source.FRESH, minutes(20), model="weather-v9"))
    assert isinstance(decision, Answer)
    assert decision.reasons == ("no generation is published yet",)


def test_the_default_answers_last_and_any_max_stale_excludes_it() -> None:
    decision = climb(Candidates(), terms(default=True), NOW)
    assert isinstance(decision, Answer)
    assert (decision.rung, decision.age, decision.candidate.source) == (Rung.DEFAULT, None, Source.DEFAULT)
    assert [output.value for output in decision.outputs] == [280.0] * 3
    assert isinstance(climb(Candidates(), terms(timedelta(days=3000), default=True), NOW), Refusal)


def test_the_previous_generation_answers_for_what_the_current_one_lacks() -> None:
    found = Candidates(generation=7, model=MODELS[0], previous=candidate(Source.BATCH, hours(2), generation=6))
    decision = climb(found, terms(), NOW)
    assert isinstance(decision, Answer)
    assert (decision.rung, decision.verdict) == (Rung.PREVIOUS, Verdict.STALE)
    assert decision.reasons[0] == "generation 7 (current) has no prediction of this entity"


def test_an_overlay_answers_for_an_entity_that_came_after_the_generation() -> None:
    found = Candidates(generation=7, model=MODELS[0], overlays=(candidate(Source.STREAM, minutes(1)),))
    decision = climb(found, terms(), NOW)
    assert isinstance(decision, Answer)
    assert (decision.rung, decision.candidate.source) == (Rung.CURRENT, Source.STREAM)


def test_without_a_generation_no_overlay_is_believed() -> None:
    found = Candidates(model=MODELS[0], overlays=(candidate(Source.STREAM, minutes(1)),))
    assert climb(found, terms(), NOW) == Refusal(reasons=("no generation is published yet",), best_age=None)


def test_a_newer_overlay_of_another_model_is_named_in_the_reason() -> None:
    found = Candidates(
        generation=7,
        model=MODELS[0],
        overlays=(candidate(Source.STREAM, minutes(1), model=MODELS[1]),),
        current=candidate(Source.BATCH, minutes(30)),
    )
    decision = climb(found, terms(), NOW)
    assert isinstance(decision, Answer)
    assert decision.candidate.source is Source.BATCH
    assert decision.reasons == (NEWER,)


def test_a_partition_carried_forward_says_so() -> None:
    held = candidate(Source.BATCH, minutes(70), origin=5, reason="quarantined: t2m_1h above 340")
    decision = climb(Candidates(generation=7, model=MODELS[0], current=held), terms(), NOW)
    assert isinstance(decision, Answer)
    assert decision.reasons == ("carried forward from generation 5: quarantined: t2m_1h above 340",)
    assert [o.verdict for o in decision.outputs] == [Verdict.EXPIRED, Verdict.FRESH, Verdict.FRESH]
    assert decision.outputs[0].value is None


def test_an_as_of_in_the_future_has_age_0_and_is_called_out_beyond_the_tolerance() -> None:
    near = climb(
        Candidates(generation=7, model=MODELS[0], current=candidate(Source.BATCH, -minutes(0.05))), terms(), NOW
    )
    far = climb(Candidates(generation=7, model=MODELS[0], current=candidate(Source.BATCH, -minutes(10))), terms(), NOW)
    assert isinstance(near, Answer)
    assert isinstance(far, Answer)
    assert near.age == far.age == timedelta(0)
    assert near.reasons == ()
    assert far.reasons == ("as_of lies 10 min in the future: a clock is wrong",)


def test_an_output_without_horizon_lives_as_long_as_it_is_usable() -> None:
    asked = Terms(outputs=(Output(name="score"),), freshness=FRESHNESS)
    held = candidate(Source.BATCH, hours(24), given_values={"score": 0.5})
    decision = climb(Candidates(generation=7, model=MODELS[0], current=held), asked, NOW)
    assert isinstance(decision, Answer)
    assert (decision.outputs[0].value, decision.verdict) == (0.5, Verdict.STALE)
    old = candidate(Source.BATCH, hours(24) + timedelta(microseconds=1), given_values={"score": 0.5})
    assert isinstance(climb(Candidates(generation=7, model=MODELS[0], current=old), asked, NOW), Refusal)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (5, "5 s"),
        (1.25, "1.25 s"),
        (119, "119 s"),
        (5400, "90 min"),
        (7500, "2 h 5 min"),
        (90000, "25 h"),
        (187200, "2 d 4 h"),
    ],
)
def test_spans_read_well(length: float, text: str) -> None:
    assert span(timedelta(seconds=length)) == text
