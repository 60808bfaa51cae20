"""An overlay by a model that does not answer: never believed, and never left unsaid where it would have answered."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given

from almanac.ladder import Answer, Candidates, Source, climb
from almanac.pipeline import hours, minutes
from tests.unit.test_ladder import MODELS, NEWER, NOW, anything, candidate, st, stales, terms


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        (minutes(30), minutes(1), (NEWER,)),  # an overlay is believed, and a newer one is not
        (minutes(1), minutes(1), ()),  # one event, scored by both models
        (minutes(1), minutes(20), ()),
        (hours(2), hours(1.5), ()),  # the generation is newer than both
    ],
)
def test_an_overlay_that_is_not_believed_is_named_where_it_would_answer(
    own: timedelta, other: timedelta, said: tuple[str, ...]
) -> None:
    found = Candidates(
        generation=7,
        model=MODELS[0],
        overlays=(candidate(Source.STREAM, own), candidate(Source.STREAM, other, model=MODELS[1])),
        current=candidate(Source.BATCH, minutes(45)),
    )
    decision = climb(found, terms(), NOW)
    assert isinstance(decision, Answer)
    assert decision.candidate.model == MODELS[0]
    assert decision.reasons == said


@given(anything(), stales, st.booleans())
def test_no_usable_overlay_that_is_newer_than_the_answer_goes_unsaid(
    found: Candidates, max_stale: timedelta | None, default: bool
) -> None:
    decision = climb(found, terms(max_stale, default=default), NOW)
    if found.generation is None:
        return
    for overlay in found.overlays:
        alone = Candidates(generation=7, model=overlay.model, overlays=(overlay,))
        usable = isinstance(climb(alone, terms(), NOW), Answer)
        answered = isinstance(decision, Answer)
        as_of = decision.candidate.as_of if isinstance(decision, Answer) else None
        if overlay.model != found.model and usable and answered and (as_of is None or overlay.as_of > as_of):  # type: ignore[operator]
            assert any(f"but by {overlay.model}" in reason for reason in decision.reasons)
