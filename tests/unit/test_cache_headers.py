"""Headers for caches: whoever counts from `Date`, with or without `Age`, keeps no answer for longer than is true."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from serving_cache.lookup.answers import AGE_HEADER, REUSE_SECONDS_MAX, AnswerJson, cache_headers

BODY = AnswerJson(
    pipeline="weather", entity=17, point=None, outputs={}, verdict="fresh", source="batch", place="redis", rung=1,
    reason=None, as_of=None, computed_at=None, age_seconds=None, generation=1, epoch=1, model="m", clock=None,
)  # fmt: skip
SPANS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650))


def headers(age: timedelta | None, stale_in: timedelta | None, unusable_in: timedelta | None) -> dict[str, str]:
    answer: Any = SimpleNamespace(age=age, stale_in=stale_in, unusable_in=unusable_in)
    return dict(cache_headers(answer, BODY, None))


@given(SPANS, SPANS, SPANS)
def test_an_answer_is_reused_for_seconds_however_old_its_prediction_is(
    age: timedelta, stale_in: timedelta, unusable_in: timedelta
) -> None:
    found = headers(age, stale_in, unusable_in)
    reuse, error = (int(part.partition("=")[2]) for part in found["cache-control"].split(", "))
    assert found["cache-control"] == f"max-age={reuse}, stale-if-error={error}"
    assert 0 <= reuse <= REUSE_SECONDS_MAX
    # A cache that goes by Date alone, and one that adds Age, which is none where the answer was made.
    assert found["age"] == "0"
    assert timedelta(seconds=reuse) <= min(stale_in, unusable_in)
    assert timedelta(seconds=reuse + error) <= unusable_in
    assert timedelta(0) <= timedelta(seconds=int(found[AGE_HEADER])) - age < timedelta(seconds=1)


def test_what_has_no_age_is_asked_again_each_time() -> None:
    found = headers(None, None, None)
    assert found["cache-control"] == "no-cache"
    assert "age" not in found
    assert AGE_HEADER not in found


def test_a_tag_says_nothing_of_the_age_and_all_of_the_rest() -> None:
    assert tag(age_seconds=5.0) == tag(age_seconds=6.0)
    assert len({tag(), tag(generation=2), tag(verdict="stale"), tag(place="postgres"), tag(epoch=2)}) == 5


def tag(**changes: object) -> str:
    nothing: Any = SimpleNamespace(age=None, stale_in=None, unusable_in=None)
    return dict(cache_headers(nothing, msgspec.structs.replace(BODY, **changes), None))["etag"]
