"""Rows that a worker wrote and the features sink has not applied yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import Unavailable
from streaming.own_rows import OwnRows


def test_a_row_is_seen_until_the_sink_has_committed_beyond_it() -> None:
    rows = OwnRows[dict[str, int]]()
    rows.keep("a", {"n": 1}, 0, 5)
    rows.applied({0: 5})
    assert rows.get("a") == {"n": 1}
    rows.applied({1: 100})
    assert rows.get("a") == {"n": 1}
    rows.applied({0: 6})
    assert rows.get("a") is None


def test_the_newest_row_of_an_entity_counts_and_is_not_let_go_with_an_older_one() -> None:
    rows = OwnRows[dict[str, int]]()
    rows.keep("a", {"n": 1}, 0, 5)
    rows.keep("a", {"n": 2}, 0, 9)
    rows.applied({0: 6})
    assert rows.get("a") == {"n": 2}


def test_nothing_is_known_after_an_assignment() -> None:
    rows = OwnRows[dict[str, int]]()
    rows.keep("a", {}, 0, 5)
    rows.forget()
    assert rows.get("a") is None


def test_rows_are_bounded_and_the_sink_is_named() -> None:
    rows = OwnRows[dict[str, int]](rows_max=2)
    rows.keep("a", {}, 0, 1)
    rows.need_room(1)
    with pytest.raises(Unavailable, match="1 rows wait for the features sink, at most 2"):
        rows.need_room(2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
def test_what_is_read_is_always_the_newest_row(steps: list[tuple[str, bool]]) -> None:
    """The store has what the sink applied; the newest is there or here, however the two take turns."""
    rows, store, topic = OwnRows[dict[str, int]](), dict[str, int](), list[tuple[str, int]]()
    newest: dict[str, int] = {}
    at = 0
    for number, (entity, sink_works) in enumerate(steps):
        own = rows.get(entity)
        assert (own["n"] if own is not None else store.get(entity)) == newest.get(entity)
        rows.keep(entity, {"n": number}, 0, len(topic))
        topic.append((entity, number))
        newest[entity] = number
        if sink_works:
            store[topic[at][0]] = topic[at][1]
            at += 1
            rows.applied({0: at})
