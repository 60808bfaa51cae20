"""From the records of a batch to what is written for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import FeatureError, PredictionError, UsageError
from almanac.partitioning import Grid
from almanac.pipeline import Freshness, GridObservations, Output, Pipeline, Stream, hours
from features.online import NEWEST_AT
from streaming import duplicates as duplicates_module
from streaming.dead_letters import Listed
from streaming.duplicates import Duplicates
from streaming.events import Event
from streaming.handle import Scoring, Sorted, nothing_known, score, sort
from streaming.models import Model
from streaming.publish import Outgoing
from streaming.records import Consumed, DeadLetter, Produced, read_dead_letter, read_feature_row, read_prediction
from streaming.redrive import Choice, choose, outgoing

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TINY = Pipeline(
    name="tiny",
    entity="cell_id",
    partitions=Grid(rows=4, cols=5, tile=2),
    outputs=(Output(name="t2m_1h", horizon=hours(1)), Output(name="t2m_6h", horizon=hours(6)), Output(name="risk")),
    features="weather_v1",
    model="tiny@champion",
    schedule="0 * * * *",
    freshness=Freshness(fresh_for=hours(1), usable_for=hours(2)),
    source=GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0)),
    stream=Stream(topic="tiny.observations"),
)


class SumOfInputs:
    """Answers t2m + 10 lag_1h + the minute, so that each number says which features it saw; -1 K of lag gives NaN."""

    inputs = ("t2m", "lag_1h", "minute")

    def usable(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.isfinite(values)

    def score(self, features: pa.Table) -> Mapping[str, np.ndarray[Any, Any]]:
        t2m, lag, minute = (features[name].to_numpy().astype(np.float32) for name in self.inputs)
        if (lag == -1).any():
            raise PredictionError("t2m_1h is NaN for 1 row")
        return {"t2m_1h": t2m + 10 * lag, "t2m_6h": minute, "risk": t2m * 0}


def observation_row(pipeline: Pipeline, entity: int, observed_at: datetime, value: float) -> dict[str, Any]:
    return {"cell_id": entity, "event_timestamp": observed_at, "t2m": value, "minute": float(observed_at.minute)}


SCORING = Scoring(models=[Model("tiny-v1", SumOfInputs())], observation_row=observation_row)


def record(
    offset: int, cell: Any = 3, minute: int = 0, value: float = 280.0, partition: int = 0, **more: Any
) -> Consumed:
    body = {"cell_id": cell, "observed_at": f"2026-11-21T13:{minute:02}:00Z", "t2m": value}
    return Consumed(
        topic="tiny.observations", partition=partition, offset=offset, key=None, value=json.dumps(body).encode(), **more
    )


def features(**lag_of: float | None) -> pa.Table:
    """Online features of cells `c3=…`, whose own observation is old and must not be seen."""
    cells = [int(name[1:]) for name in lag_of]
    return pa.table(
        {
            "cell_id": pa.array(cells, pa.int64()),
            "t2m": pa.array([1.0] * len(cells), pa.float32()),
            "lag_1h": pa.array(list(lag_of.values()), pa.float32()),
        }
    )


def handle(records: list[Consumed], online: pa.Table) -> Any:
    return score(sort(records, TINY, Duplicates(), NOW), online, TINY, SCORING, NOW)


def delivered(written: Produced, offset: int = 0) -> Consumed:
    return Consumed(
        topic=written.topic, partition=0, offset=offset, key=written.key, value=written.value, headers=written.headers
    )


def test_each_event_sees_its_own_observation_and_no_later_one() -> None:
    handled = handle([record(8, minute=20, value=290.0), record(7, minute=10)], features(c3=1.0))
    found = [read_prediction(TINY, delivered(written)) for written in handled.predictions]
    assert [(f.as_of.minute, f.values["t2m_1h"], f.values["t2m_6h"]) for f in found] == [(10, 290, 10), (20, 300, 20)]


def test_a_prediction_says_where_it_comes_from() -> None:
    (written,) = handle(
        [record(7, minute=10, headers=(("traceparent", TRACE), ("x", b"y")))], features(c3=1.0)
    ).predictions
    assert (written.topic, written.key, written.headers) == ("tiny.predictions", b"3", (("traceparent", TRACE),))
    assert json.loads(written.value or b"") == {
        "pipeline": "tiny",
        "entity": 3,
        "as_of": "2026-11-21T13:10:00Z",
        "values": {"t2m_1h": 290.0, "t2m_6h": 10.0, "risk": 0.0},
        "valid_at": {"t2m_1h": "2026-11-21T14:10:00Z", "t2m_6h": "2026-11-21T19:10:00Z", "risk": None},
        "model": "tiny-v1",
        "answers": True,
        "generation": None,
        "source": {"topic": "tiny.observations", "partition": 0, "offset": 7},
        "incarnation": 0,
        "event": None,
        "computed_at": "2026-11-21T13:30:00Z",
    }


def test_a_prediction_becomes_the_overlay_it_says() -> None:
    overlay = read_prediction(TINY, delivered(handle([record(7)], features(c3=1.0)).predictions[0]))
    assert (overlay.entity, overlay.model, overlay.kafka_partition, overlay.kafka_offset) == ("3", "tiny-v1", 0, 7)


def test_a_malformed_event_becomes_a_dead_letter_unchanged_and_the_others_go_on() -> None:
    raw = b'{"cell_id": 3, "t2m": \xff}'
    bad = Consumed(
        topic="tiny.observations", partition=2, offset=5, key=b"\x00key", value=raw, headers=(("x", None), ("x", b"2"))
    )
    handled = handle([record(7), bad], features(c3=1.0))
    (letter,) = handled.dead_letters
    assert (letter.topic, letter.key, letter.value, letter.headers[:2]) == (
        "tiny.dead-letters",
        b"\x00key",
        raw,
        (("x", None), ("x", b"2")),
    )
    assert dict(letter.headers[2:]) | {"__streams.errors.message": b""} == {
        "__streams.errors.exception": b"EventError",
        "__streams.errors.message": b"",
        "__streams.errors.topic": b"tiny.observations",
        "__streams.errors.partition": b"2",
        "__streams.errors.offset": b"5",
        "almanac.reason": b"not-json",
    }
    assert len(handled.predictions) == len(handled.features) == 1


def test_a_dead_letter_reads_back_and_of_two_refusals_the_last_counts() -> None:
    (first,) = handle([record(7, cell="x")], features()).dead_letters
    again = Consumed(
        topic="tiny.observations", partition=1, offset=9, key=None, value=first.value, headers=first.headers
    )
    (second,) = handle([again], features()).dead_letters
    letter = read_dead_letter(delivered(second))
    assert (letter.reason, letter.topic, letter.partition, letter.offset) == ("wrong-type", "tiny.observations", 1, 9)
    assert letter.raw == first.value


def test_a_dead_letter_of_somebody_else_can_be_read() -> None:
    strange = Consumed(
        topic="t", partition=0, offset=0, key=None, value=None, headers=(("__streams.errors.offset", b"x"),)
    )
    assert read_dead_letter(strange).reason == "unknown"


@pytest.mark.parametrize("absent", [None, np.nan, np.inf])
def test_a_cell_without_features_is_a_dead_letter_but_its_observation_is_kept(absent: float | None) -> None:
    handled = handle([record(7, cell=3), record(8, cell=4)], features(c3=absent, c4=1.0))
    assert [read_prediction(TINY, delivered(p)).entity for p in handled.predictions] == ["4"]
    assert [read_dead_letter(delivered(letter)).reason for letter in handled.dead_letters] == ["features-missing"]
    assert [read_feature_row(TINY, delivered(row)).entity for row in handled.features] == [3, 4]
    said = read_dead_letter(delivered(handled.dead_letters[0])).message
    assert "cell_id 3 has no usable feature lag_1h" in said
    assert "correct the cell_id if it is mistyped; if it is new, send the event again after" in said


def test_a_feature_that_no_cell_has_is_not_the_events_fault() -> None:
    with pytest.raises(FeatureError, match="lag_1h"):
        handle([record(7)], pa.table({"cell_id": pa.array([3], pa.int64()), "t2m": pa.array([1.0], pa.float32())}))


def test_only_the_event_whose_prediction_is_nan_is_refused() -> None:
    handled = handle([record(7, cell=3), record(8, cell=4), record(9, cell=5)], features(c3=1.0, c4=-1.0, c5=2.0))
    assert [read_prediction(TINY, delivered(p)).entity for p in handled.predictions] == ["3", "5"]
    (letter,) = (read_dead_letter(delivered(found)) for found in handled.dead_letters)
    assert (letter.reason, letter.offset) == ("prediction-invalid", 8)


def test_features_are_asked_for_as_of_the_events_that_waited() -> None:
    waited, later = NOW - timedelta(hours=9), NOW - timedelta(hours=2)
    bodies = [(3, waited), (4, waited + timedelta(minutes=2)), (5, later), (3, later)]
    events = tuple(
        (record(offset), Event(entity=cell, observed_at=moment, value=280.0))
        for offset, (cell, moment) in enumerate(bodies)
    )
    batch = Sorted(events=events, refused=(), duplicates=0, seen=Duplicates())
    assert batch.asked(NOW) == [(waited + timedelta(minutes=2), [4]), (later, [3, 5])]
    ahead = replace(events[0][1], observed_at=NOW + timedelta(minutes=2))
    assert Sorted(events=((record(0), ahead),), refused=(), duplicates=0, seen=Duplicates()).asked(NOW) == [(NOW, [3])]


def test_without_any_event_no_features_are_needed() -> None:
    handled = score(sort([record(7, cell="x")], TINY, Duplicates(), NOW), None, TINY, SCORING, NOW)
    assert (len(handled.predictions), len(handled.dead_letters)) == (0, 1)


def test_an_emptied_store_is_told_from_one_that_lacks_a_cell() -> None:
    own = ("cell_id", "t2m")
    assert nothing_known(features(c3=None), own)
    assert not nothing_known(features(c3=None, c4=1.0), own)
    assert not nothing_known(features(c3=None).select(["cell_id", "t2m"]), own)


def events_of(batch: Sorted) -> list[int]:
    return [origin.offset for origin, _ in batch.events]


def test_duplicates_are_dropped_and_a_value_that_returns_is_none() -> None:
    batch = sort([record(1), record(2), record(3, value=281.0), record(4)], TINY, Duplicates(), NOW)
    assert (events_of(batch), batch.duplicates) == ([1, 3, 4], 1)


def test_a_cloud_event_is_a_duplicate_by_its_identity_alone() -> None:
    headers = (("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t"), ("ce_specversion", b"1.0"))
    other = (("ce_id", b"2"), *headers[1:])
    batch = sort(
        [record(1, headers=headers), record(2, value=281.0, headers=headers), record(3, headers=other)],
        TINY,
        Duplicates(),
        NOW,
    )
    assert (events_of(batch), batch.duplicates) == ([1, 3], 1)


@pytest.mark.parametrize("cut", [("/sensor", "a 7", "/sensor a", "7"), ("s", "1/2", "s/1", "2"), ("a", "", "", "a")])
def test_cloud_events_whose_source_and_id_are_alike_only_when_joined_are_two(cut: tuple[str, str, str, str]) -> None:
    def cloud(source: str, identity: str) -> tuple[tuple[str, bytes], ...]:
        said = {"ce_source": source, "ce_id": identity, "ce_type": "t", "ce_specversion": "1.0"}
        return tuple((name, text.encode()) for name, text in said.items())

    batch = sort(
        [record(1, headers=cloud(*cut[:2])), record(2, value=281.0, headers=cloud(*cut[2:]))], TINY, Duplicates(), NOW
    )
    assert batch.duplicates == 0


def test_a_cloud_event_about_another_entity_is_another_event() -> None:
    headers = (("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t"), ("ce_specversion", b"1.0"))
    batch = sort([record(1, headers=headers), record(2, cell=18, headers=headers)], TINY, Duplicates(), NOW)
    assert (events_of(batch), batch.duplicates) == ([1, 2], 0)


def test_only_a_committed_batch_is_remembered() -> None:
    seen = Duplicates()
    thrown_away = sort([record(1)], TINY, seen, NOW)
    committed = sort([record(1)], TINY, seen, NOW)
    assert thrown_away.duplicates == committed.duplicates == 0
    seen.merge(committed.seen)
    assert sort([record(2)], TINY, seen, NOW).duplicates == 1


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_module, "REMEMBERED_MAX", 2)
    seen = Duplicates()
    for cell in (1, 2, 3):
        seen.remember(Event(entity=cell, observed_at=NOW, value=280.0, event_id=(cell,)))
    assert [seen.knows(Event(entity=cell, observed_at=NOW, value=280.0, event_id=(cell,))) for cell in (1, 2, 3)] == [
        False,
        True,
        True,
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from([3, 4, 99, "x"])), unique_by=lambda r: r[:2]
    )
)
def test_every_record_is_counted_exactly_once(drawn: list[tuple[int, int, Any]]) -> None:
    records = [
        record(offset, cell=cell, partition=partition, value=200.0 + offset) for partition, offset, cell in drawn
    ]
    batch = sort(records, TINY, Duplicates(), NOW)
    handled = score(batch, features(c3=1.0, c4=None), TINY, SCORING, NOW)
    assert len(handled.predictions) + len(handled.dead_letters) + batch.duplicates == len(records)
    assert len(handled.features) == len(batch.events)


def dated(online: pa.Table, *moments: datetime | None) -> pa.Table:
    return online.append_column(NEWEST_AT, pa.array(moments, pa.timestamp("s", tz="UTC")))


def test_an_event_older_than_its_cells_features_is_late_and_sees_no_future() -> None:
    hour = datetime(2026, 11, 21, 13, tzinfo=UTC)
    online = dated(features(c3=1.0, c4=1.0, c5=None), hour + timedelta(minutes=20), hour, None)
    handled = handle([record(6, cell=3, minute=19), record(7, cell=3, minute=20), record(8, cell=4)], online)
    assert [read_prediction(TINY, delivered(p)).kafka_offset for p in handled.predictions] == [7, 8]
    assert len(handled.features) == 3
    assert (handled.late, handled.dead_letters) == (1, ())


def test_features_that_a_late_event_lacks_are_nobodys_fault() -> None:
    online = dated(features(c3=None), datetime(2026, 11, 21, 14, tzinfo=UTC))
    handled = handle([record(6, cell=3)], online)
    assert (handled.late, handled.dead_letters, len(handled.features)) == (1, (), 1)


def test_a_lack_that_may_pass_is_told_before_anything_is_refused() -> None:
    asked: list[Mapping[Any, Any]] = []

    def not_yet(lacking: Mapping[Any, Any]) -> Mapping[Any, Any]:
        asked.append(lacking)
        raise FeatureError("not yet")

    with pytest.raises(FeatureError, match="not yet"):
        score(
            sort([record(7)], TINY, Duplicates(), NOW), features(c3=None), TINY, replace(SCORING, given_up=not_yet), NOW
        )
    assert asked == [{3: ["lag_1h"]}]


def test_an_event_whose_features_have_expired_says_so_and_how_old_they_are() -> None:
    why = {3: ("history has expired (7 h old, usable for 6 h)",), 4: ("history is missing",)}
    batch = sort([record(7, cell=3), record(8, cell=4)], TINY, Duplicates(), NOW)
    scoring = replace(SCORING, given_up=lambda lacking: why)
    handled = score(batch, features(c3=None, c4=None), TINY, scoring, NOW)
    letters = [read_dead_letter(delivered(letter)) for letter in handled.dead_letters]
    assert [letter.reason for letter in letters] == ["features-expired", "features-missing"]
    assert ["mistyped" in letter.message for letter in letters] == [False, True]
    assert "lag_1h (history has expired (7 h old, usable for 6 h)): run" in letters[0].message


def test_a_dead_letter_sent_again_is_the_event_it_was() -> None:
    first = record(7, cell=3, minute=10, headers=(("traceparent", TRACE),), partition=2)
    seen = Duplicates()
    batch = sort([first], TINY, seen, NOW)
    (letter,) = score(batch, features(c3=None), TINY, SCORING, NOW).dead_letters
    seen.merge(batch.seen)

    sent = outgoing(Listed(at=NOW, letter=read_dead_letter(delivered(letter))))
    assert (sent.value, sent.key) == (first.value, first.key)
    assert sent.headers == (("traceparent", TRACE), ("almanac.origin", b"tiny.observations/2/7"))
    again = Consumed(topic="tiny.observations", partition=0, offset=99, **vars_of(sent))
    assert (again.origin, again.redriven) == (("tiny.observations", 2, 7), True)

    batch = sort([again], TINY, seen, NOW)
    assert batch.duplicates == 0  # it was refused the first time, so it is no duplicate
    handled = score(batch, features(c3=None), TINY, SCORING, NOW)
    refused = read_dead_letter(delivered(handled.dead_letters[0]))
    assert (refused.topic, refused.partition, refused.offset) == ("tiny.observations", 2, 7)
    assert outgoing(Listed(at=NOW, letter=refused)) == sent
    seen.merge(batch.seen)

    batch = sort([again, replace(again, offset=100)], TINY, seen, NOW)
    assert batch.duplicates == 1  # of two at once one counts
    handled = score(batch, features(c3=1.0), TINY, SCORING, NOW)
    assert json.loads(handled.predictions[0].value or b"")["source"] == first.source
    seen.merge(batch.seen)
    assert sort([replace(again, offset=101)], TINY, seen, NOW).duplicates == 1  # counted once, it is not again


@pytest.mark.parametrize("origin", [b"", b"a/b/c", b"t/1/-1", b"t/1/2/3", None])
def test_an_origin_that_nobody_can_read_is_none(origin: bytes | None) -> None:
    assert record(7, headers=(("almanac.origin", origin),)).origin == ("tiny.observations", 0, 7)


def vars_of(sent: Outgoing) -> dict[str, Any]:
    return {"value": sent.value, "key": sent.key, "headers": sent.headers}


def test_dead_letters_are_chosen_by_reason_and_time_oldest_first_and_each_event_once() -> None:
    def listed(offset: int, minute: int, reason: str = "not-json") -> Listed:
        letter = DeadLetter(reason=reason, message="", topic="t", partition=0, offset=offset, raw=b"", key=None)
        return Listed(at=NOW + timedelta(minutes=minute), letter=letter)

    found = [
        listed(1, 0),
        listed(2, 1, "bad-time"),
        listed(1, 2, "bad-time"),
        listed(3, 3),
        listed(-1, 4),
        listed(4, 5),
    ]
    assert [one.letter.offset for one in choose(found, Choice())] == [2, 1, 3, 4]
    assert [one.letter.offset for one in choose(found, Choice(reason="bad-time"))] == [2, 1]
    assert [one.letter.offset for one in choose(found, Choice(since=NOW + timedelta(minutes=3)))] == [3, 4]
    assert [one.letter.offset for one in choose(found, Choice(limit=1))] == [2]
    other = Listed(at=NOW + timedelta(minutes=9), letter=replace(listed(1, 0).letter, raw=b"of a topic made again"))
    assert [one.letter.raw for one in choose([*found, other], Choice())] == [b"", b"", b"", b"", other.letter.raw]
    with pytest.raises(UsageError, match="not-jsom"):
        Choice(reason="not-jsom")
