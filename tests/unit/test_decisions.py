"""The store's decisions: which overlay wins, what publishing leads to, what retention lets go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.clock import HOUR
from almanac.decisions import (
    STAGED_KEPT,
    Kept,
    Retention,
    Sequence,
    abandoned,
    decide_publish,
    droppable,
    forgettable,
    is_newer,
    newest,
    to_drop,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SEQUENCES = st.tuples(
    st.integers(0, 3).map(lambda m: NOON + timedelta(minutes=m)),
    st.sampled_from(["a", "B", "_", "a.b", "ä"]),
    st.integers(0, 2),
    st.integers(0, 5),
)


@dataclass(frozen=True)
class Item:
    entity: str
    model: str
    sequence: Sequence


ITEMS = st.builds(Item, st.sampled_from(["1", "2"]), st.sampled_from(["m-v1", "m-v2"]), SEQUENCES)


@given(SEQUENCES, SEQUENCES)
def test_of_two_sequences_one_is_newer_unless_they_are_equal(a: Sequence, b: Sequence) -> None:
    assert is_newer(a, b) + is_newer(b, a) == (a != b)


@given(SEQUENCES, SEQUENCES, SEQUENCES)
def test_newer_is_transitive(a: Sequence, b: Sequence, c: Sequence) -> None:
    if is_newer(a, b) and is_newer(b, c):
        assert is_newer(a, c)


def test_as_of_decides_before_topic_and_place() -> None:
    later = NOON + timedelta(microseconds=1)
    assert is_newer((later, "a", 0, 0), (NOON, "z", 9, 9))
    assert is_newer((NOON, "a", 0, 0), (NOON, "B", 9, 9))  # by bytes, not by a dictionary's order
    assert is_newer((NOON, "a", 1, 0), (NOON, "a", 0, 9))
    assert is_newer((NOON, "a", 0, 0), None)
    assert not is_newer((NOON, "a", 0, 0), (NOON, "a", 0, 0))


@given(st.lists(ITEMS), st.randoms())
def test_newest_keeps_one_of_each_whatever_the_order(items: list[Item], random: object) -> None:
    found = newest(items)
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert newest(shuffled) == found
    assert {(i.entity, i.model) for i in found} == {(i.entity, i.model) for i in items}
    assert not any(
        is_newer(i.sequence, f.sequence) for i in items for f in found if (i.entity, i.model) == (f.entity, f.model)
    )


@pytest.mark.parametrize(
    ("staged", "as_of", "current", "state"),
    [
        (20, NOON, None, "current"),
        (19, NOON, NOON, "current"),  # the same hour again, say with a better model
        (18, NOON, None, "rejected"),
        (20, NOON, NOON + timedelta(hours=1), "archived"),
        (18, NOON, NOON + timedelta(hours=1), "rejected"),
    ],
)
def test_what_publishing_leads_to(staged: int, as_of: datetime, current: datetime | None, state: str) -> None:
    decision = decide_publish(staged=staged, planned=20, coverage_min=0.95, as_of=as_of, current_as_of=current)
    assert decision.state == state
    assert decision.coverage == staged / 20
    assert bool(decision.reason) == (state != "current")


def test_nothing_planned_covers_nothing() -> None:
    decision = decide_publish(staged=0, planned=0, coverage_min=0.1, as_of=NOON, current_as_of=None)
    assert decision.state == "rejected"


def kept(generation: int, state: str) -> Kept:
    """Generation n was published at the nth hour, and left an hour later."""
    published = None if state == "staged" else NOON + generation * HOUR
    left = published + HOUR if published and state in ("previous", "rolled_back") else None
    return Kept(generation, state, NOON + generation * HOUR, published, left)


def dropped(found: list[Kept], pointed: list[int], kept: int, hour: int = 99) -> list[int]:
    retention = Retention(generations=kept, previous=HOUR, rolled_back=24 * HOUR)
    return to_drop(found, pointed=pointed, retention=retention, now=NOON + hour * HOUR)


def test_retention_keeps_the_latest_and_what_the_pointer_names() -> None:
    found = [kept(n, "previous") for n in range(1, 7)] + [kept(7, "current"), kept(8, "staged")]
    assert dropped(found, pointed=[7, 6], kept=3) == [1, 2, 3]
    assert dropped(found, pointed=[7, 6], kept=1) == [1, 2, 3, 4, 5]
    assert dropped(found, pointed=[1], kept=2) == [2, 3, 4]


def test_what_was_current_lately_is_kept_however_many_there_are() -> None:
    found = [kept(n, "previous") for n in range(1, 7)] + [kept(7, "current")]
    assert dropped(found, pointed=[7, 6], kept=1, hour=6) == [1, 2, 3, 4]  # 5 was left at the sixth hour
    assert dropped(found, pointed=[7, 6], kept=1, hour=7) == [1, 2, 3, 4, 5]


def test_what_was_rolled_back_is_kept_for_a_day_and_no_longer() -> None:
    found = [kept(1, "current"), kept(2, "rolled_back"), kept(3, "rolled_back")]
    assert dropped(found, pointed=[1], kept=9, hour=26) == []
    assert dropped(found, pointed=[1], kept=9, hour=27) == [2]
    assert dropped(found, pointed=[1], kept=9, hour=28) == [2, 3]


def test_backfills_do_not_push_out_what_readers_read() -> None:
    found = [kept(1, "previous"), kept(2, "current")] + [kept(n, "archived") for n in range(3, 9)]
    assert dropped(found, pointed=[2, 1], kept=2) == [3, 4, 5, 6]


@given(
    st.lists(st.sampled_from(["previous", "rolled_back", "archived", "staged"]), max_size=12),
    st.integers(1, 4),
    st.integers(0, 40),
)
def test_retention_never_drops_what_is_pointed_to_unfinished_or_lately_left(
    states: list[str], count: int, hour: int
) -> None:
    found = [kept(n, state) for n, state in enumerate(states)]
    pointed = [n for n, state in enumerate(states) if state == "previous"][-2:]
    gone = dropped(found, pointed, count, hour)
    assert not set(gone) & set(pointed)
    assert not any(states[n] == "staged" for n in gone)
    assert not any(states[n] == "previous" and hour < n + 2 for n in gone)
    assert not any(states[n] == "rolled_back" and hour < n + 25 for n in gone)
    assert len([s for s in states if s == "archived"]) - sum(states[n] == "archived" for n in gone) <= count


def test_a_table_stays_while_a_generation_refers_to_it() -> None:
    assert droppable({7: {7, 3}, 6: {6}}, [1, 3, 6, 7, 8], unfinished=[8]) == [1]
    assert droppable({}, [1, 2], unfinished=[2]) == [1]


def test_an_unfinished_generation_is_abandoned_by_age() -> None:
    found = [kept(1, "staged"), kept(2, "current")]
    born = NOON + timedelta(hours=1)
    assert abandoned(found, born + STAGED_KEPT) == []
    assert abandoned(found, born + STAGED_KEPT + timedelta(seconds=1)) == [1]


def test_of_many_unfinished_generations_the_newest_wait_and_those_that_may_be_at_work_are_left_alone() -> None:
    found = [kept(n, "staged") for n in range(12)]  # one an hour
    assert abandoned(found, NOON + 11 * HOUR) == [0, 1, 2, 3, 4]
    assert abandoned(found, NOON + 30 * HOUR) == list(range(10))


def test_of_rejected_generations_the_latest_stay_known_and_the_newest_of_all() -> None:
    assert forgettable([9, 2, 5, 3], newest=10, kept=2) == [2, 3]
    assert forgettable([9, 2, 5, 3], newest=9, kept=2) == [2]  # what the monitor shows is not one of those
    assert forgettable([2, 3], newest=3, kept=1) == []
    assert forgettable([], newest=None, kept=1) == []


def test_what_a_run_did_last_counts_and_not_when_it_began() -> None:
    old = Kept(1, "staged", NOON, None, active_at=NOON + 47 * HOUR)
    assert abandoned([old], NOON + 47 * HOUR + STAGED_KEPT) == []
    assert abandoned([old], NOON + 48 * HOUR + STAGED_KEPT) == [1]
    others = [Kept(n, "staged", NOON + 40 * HOUR, None) for n in (2, 3)]
    assert abandoned([old, *others], NOON + 47 * HOUR) == [2]  # of the two that wait it is the newest


def test_a_clock_that_was_wrong_once_keeps_no_generation_for_long() -> None:
    now = NOON + STAGED_KEPT + HOUR
    assert abandoned([Kept(1, "staged", NOON, None, active_at=now + 5 * HOUR)], now) == []
    assert abandoned([Kept(1, "staged", NOON, None, active_at=now + 1000 * HOUR)], now) == [1]
