"""What a change of topics means, and what is said of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from streaming.incidents import LASTS, Incidents
from streaming.lag import Lag
from streaming.report import RUNNING, TOPIC_LOST, Report
from streaming.topic_state import TopicState, listed, lost, why_anew
from streaming.topics import Topic, worse

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BEFORE = {"t": TopicState(topic_id="a", partitions=4)}


def test_a_topic_that_is_gone_or_another_one_is_a_reason_to_begin_anew() -> None:
    assert why_anew(BEFORE, {"t": TopicState(topic_id="a", partitions=8, leaderless=(1,))}) is None
    assert "does not exist" in str(why_anew(BEFORE, {"t": None}))
    assert "made again" in str(why_anew(BEFORE, {"t": TopicState(topic_id="b", partitions=4)}))


def test_records_that_begin_after_where_reading_goes_on_are_lost() -> None:
    assert lost({0: 10, 1: 10, 2: 10}, {0: 10, 1: 13, 2: 0, 3: 99}) == {1: 3}
    assert listed(range(7)) == "0, 1, 2, 3, 4 and 2 more"


def test_what_lasts_makes_a_thread_that_goes_on_not_ready_and_is_logged_when_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="streaming")
    report = Report("bikes worker")
    report.say(RUNNING)
    for _ in range(3):
        report.note("leaders", "partition 1 has no leader")
    assert report.why_not_ready() == "bikes worker: partition 1 has no leader"
    report.note("leaders", "")
    assert report.why_not_ready() is None
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "running", "partition 1 has no leader", "leaders: well again",
    ]  # fmt: skip


def test_an_incident_is_an_alert_for_a_while() -> None:
    report, incidents = Report("bikes worker", pipeline="bikes", part="worker"), Incidents()
    report.raise_alert(TOPIC_LOST, "topic t was deleted")
    at = report.incidents[TOPIC_LOST].at
    incidents.follow([report], at)
    (alert,) = incidents.lasting()
    assert (alert.name, alert.pipeline, alert.reason, alert.starts_at) == (
        TOPIC_LOST, "bikes", "topic t was deleted", at,
    )  # fmt: skip
    assert b"topic t was deleted" in incidents.page()
    incidents.follow([report], at + LASTS + timedelta(seconds=1))
    assert incidents.lasting() == []


def test_marks_of_transactions_are_behind_what_is_committed() -> None:
    lag = Lag("bikes", "group")
    lag.passed("t", {0: 5, 1: 5})
    lag._reached = {("t", 0): 6, ("t", 1): 5}
    assert lag.behind_marks("t") == {0: 6}
    assert lag.expected("t", [0, 1, 2]) == {0: 6, 1: 5}
    lag._received = {("t", 0): 6}  # received, and not committed yet
    assert lag.behind_marks("t") == {}


@pytest.mark.parametrize(
    ("partitions", "changes", "says"),
    [
        (4, {}, []),
        (8, {"retention.ms": "-1", "max.message.bytes": "9999"}, []),
        (4, {"cleanup.policy": "compact", "retention.ms": "1"}, ["cleanup.policy is compact"]),
        (4, {"cleanup.policy": "compact,delete"}, ["cleanup.policy is compact,delete"]),
        (4, {"compression.type": "producer"}, ["compression.type is producer, not uncompressed"]),
        (4, {"retention.ms": "3600000"}, ["retention.ms is 3600000, not 604800000"]),
        (1, {"max.message.bytes": "10"}, ["max.message.bytes is 10, not 100", "it has 1 partitions, not 4"]),
    ],
)
def test_a_topic_that_somebody_made_is_compared_with_its_declaration(
    partitions: int, changes: dict[str, str], says: list[str]
) -> None:
    topic = Topic(name="t", retention=timedelta(days=7), record_bytes_max=100)
    found = worse(topic, partitions, {**topic.config(), **changes})
    assert [text.partition(":")[0] for text in found] == says
    assert worse(topic, partitions, {}) == [text for text in found if "partitions" in text]
