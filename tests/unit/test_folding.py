"""Folding: what a worker makes of baskets, its own rows first, and what it does not believe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.clock import format_time, micros_of
from almanac.decisions import is_newer
from almanac.errors import DeclarationError, Unavailable
from almanac.list_scoring import Scores
from almanac.settings import load_settings
from features.interactions.fold import Event as Basket
from features.interactions.fold import advance
from pipelines.weather import weather
from serving_cache.records import OverlayRecord
from streaming.duplicates import Duplicates
from streaming.folding import HISTORY_BYTES_MAX, Folding
from streaming.handle import Handled, sort
from streaming.models import Model
from streaming.records import HEADER_MESSAGE, HEADER_ORIGIN, Consumed, FeatureRow, read_feature_row, read_prediction
from streaming.redrive import Choice
from tests.baskets import RANGE, HistoriesInMemory, Sums, basket_pipeline, purchase

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
PIPELINE = basket_pipeline("baskets")
SETTINGS = load_settings(state_dir=Path("unused"), kafka_bootstrap="localhost:1")
Line = tuple[str, float, float]


class SinkInMemory:
    """A features sink that a test moves on."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.applied: dict[int, int] = {}

    def ends(self) -> dict[int, int]:
        return {}

    def behind(self, ends: Mapping[int, int]) -> str | None:
        return self.why

    def committed(self) -> dict[int, int]:
        return self.applied

    def close(self) -> None:
        """Nothing is open."""


class Delivered:
    """What a producer tells of a record that has arrived."""

    def __init__(self, key: bytes | None, offset: int) -> None:
        self._key, self._offset = key, offset

    def key(self) -> bytes | None:
        return self._key

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset


class Worker:
    """Steps 2 to 6 without Kafka."""

    def __init__(self) -> None:
        self.store, self.sink = HistoriesInMemory(), SinkInMemory()
        self.scorer: Scores = Sums()
        self.models: list[Model[Scores]] = []
        self.predicted: set[str] = set()
        self.folding = Folding(
            PIPELINE, SETTINGS, lambda pipeline, settings: self.store, self.sink,
            lambda pipeline, entities: self.predicted & {*entities},
        )  # fmt: skip
        self.topic: list[FeatureRow] = []
        self.offset = 0

    def handle(
        self, *events: tuple[str, list[Line], datetime], commit: bool = True, first: int | None = None
    ) -> Handled:
        """A batch; `first` is where its event stood when it became a dead letter, which is sent again now."""
        records = []
        headers = () if first is None else ((HEADER_ORIGIN, f"t/0/{first}".encode()),)
        for customer, lines, moment in events:
            sent = purchase(customer, lines, moment)
            place = {"topic": "t", "partition": 0, "offset": self.offset}
            records.append(Consumed(**place, key=sent.key, value=sent.value, headers=headers))
            self.offset += 1
        batch = sort(records, PIPELINE, Duplicates(), NOW)
        done = self.folding.handle(batch, self.models or [Model("baskets-v1", self.scorer)], NOW)
        if commit:
            for record in done.features:
                stored = Consumed(topic="f", partition=0, offset=len(self.topic), key=record.key, value=record.value)
                self.folding.delivered(None, Delivered(record.key, len(self.topic)))  # type: ignore[arg-type]
                self.topic.append(read_feature_row(PIPELINE, stored))
            self.folding.committed()
        return done

    def apply(self, until: int | None = None) -> None:
        """The sink brings rows to the store, and commits."""
        until = len(self.topic) if until is None else until
        for row in self.topic[self.sink.applied.get(0, 0) : until]:
            assert row.folded is not None
            held = self.store.rows.get(row.entity)
            if held is None or (held[1], held[2]) <= (row.folded.at, row.folded.created):
                self.store.rows[row.entity] = (dict(row.folded.row), row.folded.at, row.folded.created)
        self.sink.applied[0] = until


class Broken(Sums):
    """A model that answers NaN."""

    def score_matrix(self, matrix: Any) -> dict[str, Any]:
        return {name: values * np.float32("nan") for name, values in super().score_matrix(matrix).items()}


def listed(done: Handled) -> OverlayRecord:
    (record,) = done.predictions
    return read_prediction(PIPELINE, Consumed(topic="p", partition=0, offset=0, key=None, value=record.value))


def at(minutes: float) -> datetime:
    return NOW - timedelta(hours=5) + timedelta(minutes=minutes)


def reasons(done: Handled) -> dict[str, int]:
    return dict(done.reasons)


def test_a_purchase_ranks_as_of_its_moment_and_leaves_out_what_was_bought() -> None:
    done = Worker().handle(("c1", [(RANGE[3], 2, 1.5)], at(0)))
    (prediction,) = done.predictions
    overlay = read_prediction(PIPELINE, Consumed(topic="p", partition=0, offset=0, key=None, value=prediction.value))
    found: Any = overlay.values["score"]
    assert overlay.as_of == at(0)
    assert RANGE[3] not in found.items
    assert RANGE[4] in found.items  # its neighbour
    assert len(found.items) == 10
    assert found.attributes["price"][0] > 0


def test_a_history_that_was_lost_is_not_begun_anew_and_who_is_new_is_served_beside_it() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)))
    worker.apply()
    worker.folding.reassigned()
    before, worker.predicted = worker.store.rows.pop("c1"), {"c1"}  # DEL, or evicted
    done = worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(1)), ("c2", [(RANGE[2], 1, 1.0)], at(1)))
    assert reasons(done) == {"history-lost": 1}
    assert listed(done).entity == "c2"
    assert [row.entity for row in worker.topic] == ["c1", "c2"]  # nothing of c1 but what was there before
    assert worker.store.asked_again == ["c1"]
    letter = json.dumps([[name, value.decode()] for name, value in done.dead_letters[0].headers])
    assert "almanac redrive baskets --reason history-lost" in letter
    worker.store.rows["c1"] = before  # a materialization sent it again
    assert reasons(worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(1)), first=1)) == {}
    assert worker.topic[-1].folded.row["bought_items"] == [RANGE[1], RANGE[0]]  # type: ignore[union-attr]


def test_the_next_batch_sees_a_row_that_the_sink_has_not_applied_and_then_the_stores() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)))
    assert worker.store.rows == {}
    worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(1)))
    assert worker.topic[-1].folded.row["bought_items"] == [RANGE[1], RANGE[0]]  # type: ignore[union-attr]
    worker.apply()
    worker.folding.reassigned()
    worker.handle(("c1", [(RANGE[2], 1, 1.0)], at(2)))
    assert worker.topic[-1].folded.row["bought_items"] == [RANGE[2], RANGE[1], RANGE[0]]  # type: ignore[union-attr]


def test_a_batch_that_is_not_committed_leaves_nothing_behind() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)), commit=False)
    worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(1)))
    assert worker.topic[-1].folded.row["bought_items"] == [RANGE[1]]  # type: ignore[union-attr]


def test_a_commit_without_word_of_where_rows_stand_begins_anew() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)), commit=False)
    with pytest.raises(Unavailable, match="no word of where the row of customer_id c1 stands"):
        worker.folding.committed()


def test_after_an_assignment_it_waits_for_the_sink_and_says_so() -> None:
    worker = Worker()
    worker.sink.why = "partition 2 is at 4 of 9"
    for _ in range(2):
        with pytest.raises(Unavailable, match="baskets waits for its histories: partition 2 is at 4 of 9"):
            worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)))
    worker.sink.why = None
    assert worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0))).predictions
    worker.sink.why = "behind again"
    assert worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(1))).predictions  # asked once for an assignment
    worker.folding.reassigned()
    with pytest.raises(Unavailable, match="behind again"):
        worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(1)))


def test_a_late_event_is_folded_at_its_place_and_ranks_as_of_the_newest() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(10)))
    done = worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(5)))
    row = worker.topic[-1].folded
    assert row is not None
    assert row.row["bought_items"] == [RANGE[0], RANGE[1]]
    assert row.at == micros_of(at(10))
    assert row.created > worker.topic[0].folded.created  # type: ignore[union-attr]
    assert json.loads(done.predictions[0].value or b"")["as_of"] == format_time(at(10))


def test_items_that_are_newer_than_the_newest_event_say_what_a_list_speaks_as_of() -> None:
    worker = Worker()
    worker.store.items_at = micros_of(at(30))
    done = worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)))
    assert json.loads(done.predictions[0].value or b"")["as_of"] == format_time(at(30))


def test_an_event_that_a_history_holds_is_a_duplicate() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)))
    done = worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)))
    assert (done.duplicates, done.records) == (1, ())


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([(RANGE[0], -1, 1.0)], "return-without-purchase"),
        ([("POSTAGE", 1, 15.0)], "no-lines"),
        ([(RANGE[0], 1, 0.0)], "no-lines"),
        ([(RANGE[0], 0, 1.0)], "no-lines"),
        ([("  ", 1, 1.0)], "bad-item"),
        ([("a\u0007b", 1, 1.0)], "bad-item"),
        ([("* ", 1, 1.0)], "bad-item"),
    ],
)
def test_what_cannot_be_folded_in_is_a_dead_letter(lines: list[Line], reason: str) -> None:
    worker = Worker()
    done = worker.handle(("c1", lines, at(0)))
    assert reasons(done) == {reason: 1}
    assert done.features == ()
    assert done.predictions == ()


def test_a_return_takes_back_what_was_bought_and_one_of_something_else_beside_it_is_counted() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0), (RANGE[1], 1, 1.0)], at(0)))
    done = worker.handle(("c1", [(RANGE[0], -1, 1.0), (RANGE[9], -1, 1.0)], at(1)))
    assert worker.topic[-1].folded.row["bought_items"] == [RANGE[1]]  # type: ignore[union-attr]
    assert done.unmatched == 1
    assert not done.reasons


def test_an_item_that_the_range_does_not_have_is_kept_in_the_history_and_in_no_list() -> None:
    worker = Worker()
    done = worker.handle(("c1", [("brand  new", 1, 1.0)], at(0)))
    assert worker.topic[-1].folded.row["bought_items"] == ["BRAND NEW"]  # type: ignore[union-attr]
    assert "BRAND NEW" not in json.loads(done.predictions[0].value or b"")["values"]["score"]["items"]


def test_an_event_older_than_all_that_a_history_remembers_is_archived_and_changes_no_history() -> None:
    worker = Worker()
    for number in range(66):
        worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(10 + number)))
    newest = worker.topic[-1].folded
    assert newest is not None
    done = worker.handle(("c1", [(RANGE[1], 1, 1.0), ("POSTAGE", 1, 9.0)], at(0)))
    assert (done.late, done.duplicates, done.predictions, done.dead_letters) == (1, 0, (), ())
    archived = worker.topic[-1]
    assert archived.observed_at == at(0)
    assert archived.folded == replace(newest, lines=((RANGE[1], 1.0, 1.0),))
    worker.apply()
    assert worker.store.rows["c1"] == (newest.row, newest.at, newest.created)


def test_a_return_that_is_sent_again_after_its_purchase_gives_the_list_that_is_newest() -> None:
    worker = Worker()
    back = ("c1", [(RANGE[0], -1, 1.0)], at(10))
    assert reasons(worker.handle(back)) == {"return-without-purchase": 1}
    worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(30)))
    before = listed(worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(5))))
    after = listed(worker.handle(back, first=0))
    assert after.values != before.values
    assert after.as_of == before.as_of == at(30)
    assert is_newer(after.sequence, before.sequence)
    assert Choice(reason="return-without-purchase").reason


def test_an_event_whose_list_was_refused_has_one_when_it_is_sent_again_and_counts_once() -> None:
    worker = Worker()
    bought = ("c1", [(RANGE[0], 1, 1.0)], at(0))
    worker.scorer = Broken()
    assert reasons(worker.handle(bought)) == {"prediction-invalid": 1}
    held = worker.topic[-1].folded
    worker.scorer = Sums()
    done = worker.handle(bought, first=0)
    assert listed(done).values["score"].items  # type: ignore[union-attr]
    assert (done.features, done.duplicates) == ((), 0)
    worker.handle(("c1", [(RANGE[1], 1, 1.0)], at(1)))
    newest = worker.topic[-1].folded
    assert newest is not None
    assert held is not None
    assert newest.row["orders"] == held.row["orders"] + 1


def test_two_models_rank_one_history_and_one_that_fails_does_not_stop_the_other() -> None:
    worker = Worker()
    worker.models = [Model("baskets-v1", Sums()), Model("baskets-v2", Sums(), answers=False)]
    done = worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)), ("c2", [(RANGE[1], 1, 1.0)], at(0)))
    bodies = [json.loads(record.value or b"") for record in done.predictions]
    assert [(body["entity"], body["model"], body["answers"]) for body in bodies] == [
        (customer, model, model == "baskets-v1") for customer in ("c1", "c2") for model in ("baskets-v1", "baskets-v2")
    ]
    assert bodies[0]["values"] == bodies[1]["values"]
    assert len(done.features) == 2  # the history is folded once
    for broken in (0, 1):
        worker.models = [Model("baskets-v1", Sums()), Model("baskets-v2", Sums(), answers=False)]
        worker.models[broken] = replace(worker.models[broken], scorer=Broken())
        done = worker.handle(("c1", [(RANGE[2 + broken], 1, 1.0)], at(1 + broken)))
        assert [json.loads(record.value or b"")["model"] for record in done.predictions] == [f"baskets-v{2 - broken}"]
        assert (done.dead_letters, done.unscored) == ((), 1)


def test_a_history_that_no_topic_takes_is_not_begun_and_the_worker_goes_on() -> None:
    """Baskets of one moment are one basket, which grows beyond what a record may have."""
    worker = Worker()
    for number in range(60):
        done = worker.handle(("c1", [(f"{number:03}{line:03}" + "é" * 125, 1, 1.0) for line in range(50)], at(0)))
        if done.reasons:
            break
        assert len(done.features[0].value or b"") <= HISTORY_BYTES_MAX
    assert reasons(done) == {"too-large": 1}
    assert done.features == done.predictions == ()
    assert b"send fewer lines for one moment" in dict(done.dead_letters[0].headers)[HEADER_MESSAGE]
    assert worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(1))).predictions


def test_a_pipeline_that_cannot_fold_is_refused() -> None:
    with pytest.raises(DeclarationError, match="events with lines need"):
        Folding(weather, SETTINGS, HistoriesInMemory)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["event", "apply", "reassigned", "killed", "replayed"]),
        st.sampled_from(["c1", "c2"]),
        st.integers(0, 8),
        st.integers(0, 40),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(STEPS)
def test_histories_are_those_of_the_events_in_order_whatever_happens_in_between(steps: list[Any]) -> None:
    """Assignments, kills before the commit, replays and a sink that lags change nothing of any history."""
    worker = Worker()
    expected: dict[str, Any] = {}
    sent: list[tuple[str, list[Line], datetime]] = []
    for step, customer, item, minutes in steps:
        event = (customer, [(RANGE[item], 1.0, 2.5)], at(minutes))
        if step == "apply":
            worker.apply(min(worker.sink.applied.get(0, 0) + 1, len(worker.topic)))
        elif step == "reassigned":
            worker.apply()  # what it waits for
            worker.folding.reassigned()
        elif step == "killed":
            worker.handle(event, commit=False)
            worker.apply()
            worker.folding.reassigned()
        elif step == "replayed" and sent:
            worker.handle(sent[item % len(sent)])
        else:
            sent.append(event)
            worker.handle(event)
            basket = Basket(entity=customer, at=micros_of(event[2]), lines=tuple(event[1]))
            expected[customer] = advance(expected.get(customer), basket).row
    worker.apply()
    assert {customer: row for customer, (row, _, _) in worker.store.rows.items()} == expected
