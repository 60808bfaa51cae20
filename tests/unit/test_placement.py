"""Home partitions: where an entity's events are folded, wherever they stand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from almanac.clock import micros_of
from almanac.settings import Settings
from streaming.duplicates import Duplicates
from streaming.guarding import FORWARDED_TOO_OFTEN
from streaming.handle import Sorted, sort
from streaming.placement import FORWARDS_MAX, Mark, homes_of, incarnation_of, partition_of
from streaming.proofs import Proofs
from streaming.records import HEADER_FORWARDED, HEADER_HOPS, HEADER_ORIGIN, Consumed
from streaming.report import Report
from tests.baskets import basket_pipeline, purchase

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TOPIC = "shop.purchases"
PIPELINE = basket_pipeline("baskets")


def stood(partition: int, offset: int, *headers: tuple[str, bytes | None]) -> Consumed:
    sent = purchase("c1", [("ITEM 1", 1.0, 2.5)], NOW)
    return Consumed(
        topic=TOPIC, partition=partition, offset=offset, key=sent.key, value=sent.value, headers=headers
    )  # fmt: skip


def sorted_at_home(record: Consumed, home: int) -> Sorted:
    return sort([record], PIPELINE, Duplicates(), NOW, lambda entity: home)


@pytest.mark.parametrize(
    ("key", "hashed"),
    [  # of Kafka's own test of its hash
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_a_key_is_placed_as_javas_clients_place_it(key: str, hashed: int) -> None:
    for partitions in (1, 4, 6, 8):
        assert partition_of(key, partitions) == (hashed & 0x7FFFFFFF) % partitions


def test_an_event_at_home_is_handled_and_one_elsewhere_is_written_again_as_it_is() -> None:
    record = stood(5, 7, ("trace", b"1"))
    assert sorted_at_home(record, 5).forwards == ()
    found = sorted_at_home(record, 1)
    assert found.events == found.refused == ()
    (forward,) = found.forwards
    assert (forward.topic, forward.partition, forward.key, forward.value) == (TOPIC, 1, b"c1", record.value)
    assert forward.headers == (("trace", b"1"), (HEADER_FORWARDED, f"{TOPIC}/5/7".encode()), (HEADER_HOPS, b"1"))


def test_an_event_that_was_forwarded_is_known_by_where_it_first_stood_and_is_no_duplicate_of_itself() -> None:
    seen = Duplicates()
    away = sort([stood(5, 7)], PIPELINE, seen, NOW, lambda entity: 1)
    seen.merge(away.seen)
    home = stood(1, 90, *away.forwards[0].headers)
    found = sort([home], PIPELINE, seen, NOW, lambda entity: 1)
    assert [record.origin for record, _ in found.events] == [(TOPIC, 5, 7)]
    assert not home.redriven
    again = stood(2, 91, (HEADER_ORIGIN, f"{TOPIC}/5/7".encode()), *away.forwards[0].headers)
    assert again.redriven
    assert again.origin == (TOPIC, 5, 7)


def test_an_event_that_goes_round_is_not_forwarded_for_ever() -> None:
    headers = [(HEADER_FORWARDED, f"{TOPIC}/{at}/7".encode()) for at in range(FORWARDS_MAX)]
    found = sorted_at_home(stood(5, 7, *headers), 1)
    assert found.forwards == ()
    assert [(record.offset, error.reason) for record, error in found.refused] == [(7, FORWARDED_TOO_OFTEN)]
    assert "agree on home partitions" in str(found.refused[0][1])


@pytest.mark.parametrize("secret", [None, "a-secret-that-workers-share"])
def test_workers_that_disagree_forward_an_event_a_few_times_and_no_more(secret: str | None) -> None:
    """Without a secret as well, by which nobody can prove where an event stood."""
    report = Report("test", pipeline=PIPELINE.name, part="worker")
    by = Proofs.of(PIPELINE, Settings(origin_secret=secret), report)
    record, hops = stood(5, 7, ("trace", b"1")), 0
    while found := sorted_at_home(next(iter(by.checked([record]))), hops % 2).forwards:
        hops += 1
        assert hops <= FORWARDS_MAX
        (sent,) = by.signed(found)
        record = stood(5 + hops, 90 + hops, *sent.headers)
    assert hops == FORWARDS_MAX


def test_home_partitions_are_those_that_were_committed_of_this_topic() -> None:
    marks = [Mark(topic_id="a", homes=4), Mark(), Mark(topic_id="old", homes=2)]
    assert homes_of(marks, "a", 8, 4, grown=True) == 4
    assert homes_of(marks, "a", 12, 6, grown=False) == 4
    assert homes_of([Mark(topic_id="old", homes=2)], "new", 8, 4, grown=False) == 8
    assert homes_of([], "a", 8, 4, grown=True) == 4, "four were declared; the others may have been added since"
    assert homes_of([], "a", 3, 4, grown=True) == 3


def test_a_topic_that_was_made_again_is_a_later_incarnation_and_the_same_one_stays() -> None:
    now = micros_of(NOW)
    assert incarnation_of([], "a", 0, NOW) == now, "nothing is known of any: its offsets went with a deleted topic"
    assert incarnation_of([Mark(topic_id="a", incarnation=5), Mark()], "a", 0, NOW) == 5
    assert incarnation_of([Mark(topic_id="old", incarnation=5)], "a", 0, NOW) == now
    assert incarnation_of([Mark(topic_id="old", incarnation=now + 7)], "a", 0, NOW) == now + 8, "a clock that went back"
    assert incarnation_of([], "a", now + 9, NOW) == now + 10
    assert incarnation_of([Mark(topic_id="a", homes=4)], "a", 0, NOW) == 0, "read before incarnations were counted"


def test_workers_that_counted_at_once_agree_on_the_greater_incarnation() -> None:
    marks = [Mark(topic_id="a", incarnation=5), Mark(topic_id="a", incarnation=6), Mark(topic_id="old", incarnation=9)]
    assert incarnation_of(marks, "a", 5, NOW) == incarnation_of(marks, "a", 6, NOW) == 6


@pytest.mark.parametrize("text", [None, "", "meta", "[]", '{"homes": "x"}', "{"])
def test_what_somebody_else_committed_beside_an_offset_is_no_mark(text: str | None) -> None:
    assert Mark.of(text) == Mark()
    assert Mark.of(Mark(topic_id="a", homes=4).text()) == Mark(topic_id="a", homes=4)
