"""What a fast clock sends, or somebody in its place, never outlives the truth: in events, in records, in answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from almanac.clock import format_time, micros_of
from almanac.errors import DataError
from almanac.freshness import Verdict, output_verdict, valid_at
from almanac.ladder import Answer, Candidates, Compute, Refusal, Source, climb
from almanac.pipeline import minutes
from serving_cache.records import OverlayRecord
from streaming.duplicates import Duplicates
from streaming.handle import score, sort
from streaming.records import Consumed, Produced, read_feature_row, read_prediction
from streaming.report import Report
from streaming.sink import Features, Overlays
from tests.baskets import RANGE
from tests.unit import test_folding as folding
from tests.unit import test_ladder as ladder
from tests.unit import test_stream_handle as observations

NOW = observations.NOW
SECOND = timedelta(seconds=1)
FAR = [
    datetime(9999, 12, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), ladder.NOW + 16 * minutes(1),
]  # fmt: skip


@pytest.mark.parametrize("as_of", FAR)
def test_an_as_of_far_in_the_future_answers_nothing_and_hides_nothing(as_of: datetime) -> None:
    far = replace(ladder.candidate(Source.STREAM, minutes(0)), as_of=as_of)
    true = ladder.candidate(Source.BATCH, minutes(10))
    named = Candidates(generation=7, model=ladder.MODELS[0], overlays=(far,), current=true)
    decision = climb(named, ladder.terms(), ladder.NOW)
    assert isinstance(decision, Answer)
    assert decision.candidate is true
    assert "in the future, so that its age is not known" in decision.reasons[0]
    other = replace(named, overlays=(replace(far, model=ladder.MODELS[1]),))
    decision = climb(other, ladder.terms(), ladder.NOW)
    assert isinstance(decision, Answer)
    assert decision.reasons == ()


@pytest.mark.parametrize("as_of", FAR)
def test_where_every_as_of_is_far_in_the_future_nothing_answers(as_of: datetime) -> None:
    far = replace(ladder.candidate(Source.STREAM, minutes(0)), as_of=as_of)
    batch = replace(ladder.candidate(Source.BATCH, minutes(0)), as_of=as_of)
    everywhere = Candidates(generation=7, model=ladder.MODELS[0], overlays=(far,), current=batch, previous=batch)
    assert isinstance(climb(everywhere, ladder.terms(), ladder.NOW), Refusal)
    wish = climb(everywhere, ladder.terms(fresh=True), ladder.NOW)
    assert wish == Compute(model=ladder.MODELS[0], newer_than=None)
    assert "in the future" in str(wish.why_not(as_of, ladder.terms(), ladder.NOW))
    fresh = replace(far, source=Source.FRESH, place=None)
    assert isinstance(climb(everywhere, ladder.terms(fresh=True), ladder.NOW, fresh), Refusal)


@pytest.mark.parametrize("as_of", FAR)
def test_no_as_of_is_too_late_for_the_moment_that_its_output_speaks_about(as_of: datetime) -> None:
    for output in ladder.OUTPUTS:
        moment = valid_at(output, as_of)
        assert moment is not None
        assert as_of <= moment <= datetime.max.replace(tzinfo=UTC)
        assert output_verdict(output, as_of, ladder.FRESHNESS, ladder.NOW) is Verdict.FRESH


def folded_at(worker: folding.Worker, now: datetime, events: Sequence[Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the worker writes of baskets that come at a moment."""
    monkeypatch.setattr(folding, "NOW", now)
    return worker.handle(*events)


@pytest.mark.parametrize("new", [False, True])
def test_65_baskets_of_a_fast_clock_push_out_no_real_one(new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = folding.Worker()
    if not new:
        folded_at(worker, NOW, [("c1", [(RANGE[0], 1, 1.0)], NOW - 60 * SECOND)], monkeypatch)
    fast = [("c1", [(RANGE[0], 1 + number, 1.0)], NOW + 299 * SECOND) for number in range(65)]
    done = folded_at(worker, NOW, fast, monkeypatch)
    assert (len(done.features), len(done.predictions), done.late, done.reasons) == (65, 0, 65, {})
    assert worker.topic[-1].observed_at == NOW + 299 * SECOND  # the archive has them as they are
    worker.apply()
    real = folded_at(worker, NOW + 61 * SECOND, [("c1", [(RANGE[1], 1, 1.0)], NOW + 60 * SECOND)], monkeypatch)
    assert (len(real.predictions), real.late) == (1, 0)
    row = worker.topic[-1].folded
    assert row is not None
    assert (row.at, row.row["basket_items"]) == (micros_of(NOW + 60 * SECOND), [RANGE[1]])
    assert row.row["orders"] == (1 if new else 2)


def test_a_basket_from_as_far_ahead_as_clocks_differ_is_folded_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = folding.Worker()
    done = folded_at(worker, NOW, [("c1", [(RANGE[0], 1, 1.0)], NOW + 5 * SECOND)], monkeypatch)
    assert (len(done.predictions), done.late) == (1, 0)


def observed(at: datetime, value: float, offset: int) -> Consumed:
    body = {"cell_id": 3, "observed_at": format_time(at), "t2m": value}
    return Consumed(topic="o", partition=0, offset=offset, key=None, value=json.dumps(body).encode())


class Kept:
    """A store that keeps what is newest, as all of them do."""

    def __init__(self) -> None:
        self.overlay: OverlayRecord | None = None
        self.rows: list[dict[str, Any]] = []

    def put_overlays(self, pipeline: str, overlays: Sequence[OverlayRecord]) -> int:
        before = self.overlay
        for one in overlays:
            if self.overlay is None or one.sequence > self.overlay.sequence:
                self.overlay = one
        return int(self.overlay is not before)

    def push(self, rows: Any) -> None:
        self.rows += rows.to_pylist()


def test_one_event_of_a_fast_clock_hides_no_true_ones_of_its_cell() -> None:
    seen, store = Duplicates(), Kept()
    answered = []
    for offset, (arrival, claimed) in enumerate([(0, 290), (10, 9), (20, 19), (291, 290)]):
        now = NOW + arrival * SECOND
        batch = sort([observed(NOW + claimed * SECOND, 280.0 + offset, offset)], observations.TINY, seen, now)
        seen.merge(batch.seen)
        done = score(batch, observations.features(c3=1.0), observations.TINY, observations.SCORING, now)
        target = Overlays(observations.TINY, store, Kept(), Report("overlays"), lambda now=now: now)  # type: ignore[misc]
        target.apply([observations.delivered(record) for record in done.predictions])
        assert store.overlay is not None
        answered.append((store.overlay.kafka_offset, (store.overlay.as_of - NOW) // SECOND))
    assert answered == [(0, 0), (1, 9), (2, 19), (3, 290)]


def test_an_event_that_a_fast_clock_sends_twice_counts_once() -> None:
    seen = Duplicates()
    for offset, duplicates in enumerate([0, 1, 1]):
        again = observed(NOW + 100 * SECOND, 280.0, offset)
        batch = sort([again], observations.TINY, seen, NOW + offset * SECOND)
        seen.merge(batch.seen)
        assert (len(batch.events), batch.duplicates) == (1 - duplicates, duplicates)


FORGED = ["9999-12-01T00:00:00Z", "9999-12-31T23:59:59Z", format_time(NOW + 301 * SECOND), "1969-12-31T23:59:59Z"]


def forged(written: Produced, **changes: Any) -> Consumed:
    return observations.delivered(
        replace(written, value=json.dumps({**json.loads(written.value or b""), **changes}).encode())
    )


@pytest.mark.parametrize("said", FORGED)
def test_a_record_that_no_worker_can_have_written_by_now_is_applied_nowhere(said: str) -> None:
    done = observations.handle([observations.record(7)], observations.features(c3=1.0))
    store, report = Kept(), Report("sink")
    overlays = Overlays(observations.TINY, store, store, report, lambda: NOW)
    for name in ("as_of", "computed_at"):
        assert overlays.apply([forged(done.predictions[0], **{name: said})])["foreign"] == 1
    assert store.overlay is None
    features = Features(observations.TINY, lambda: store, observations.observation_row, report, lambda: NOW)
    assert features.apply([forged(done.features[0], observed_at=said)])["foreign"] == 1
    assert store.rows == []
    assert overlays.apply([observations.delivered(done.predictions[0])])["overlays_newer"] == 1
    assert features.apply([observations.delivered(done.features[0])])["pushed"] == 1
    assert read_prediction(observations.TINY, forged(done.predictions[0], as_of=FORGED[2]), NOW + SECOND)


AHEAD = micros_of(NOW + 301 * SECOND)
NO_HISTORIES: dict[str, dict[str, Any]] = {
    "from the future": {"at": AHEAD},
    "beyond all times": {"at": 2**62},
    "made in the future": {"created": AHEAD},
    "made beyond all numbers": {"created": 2**70},
    "seen in the future": {"seen_at": [AHEAD]},
    "all that there will be is seen": {"seen_floor": 2**62},
    "a day to come": {"days": [99_999]},
    "a sum beyond all numbers": {"day_spend": [2**63]},
    "a sum that is none": {"day_spend": [True]},
    "no list": {"day_spend": 3},
    "lists of other lengths": {"bought_counts": [1, 1]},
    "another column": {"more": 1},
    "items that are none": {"bought_items": [None]},
}


@pytest.mark.parametrize("changes", NO_HISTORIES.values(), ids=NO_HISTORIES.keys())
def test_a_history_that_no_worker_can_have_written_by_now_is_applied_nowhere(changes: dict[str, Any]) -> None:
    (written,) = folding.Worker().handle(("c1", [(RANGE[0], 1, 1.0)], NOW - SECOND), commit=False).features
    body = json.loads(written.value or b"")
    of_row = {name: value for name, value in changes.items() if name not in ("at", "created")}
    of_it = {name: value for name, value in changes.items() if name not in of_row}
    bad = forged(written, folded={**body["folded"], **of_it, "row": {**body["folded"]["row"], **of_row}})
    assert read_feature_row(folding.PIPELINE, observations.delivered(written), NOW).folded
    with pytest.raises(DataError, match="was not written by a stream worker"):
        read_feature_row(folding.PIPELINE, bad, NOW)
