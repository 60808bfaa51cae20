"""Histories: the fold and its bulk form make the same rows, replays change nothing, windows count what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.clock import DAY_MICROSECONDS as DAY
from almanac.ragged import Ragged
from features.interactions import bulk as interactions_bulk
from features.interactions import fold as interactions_fold
from features.interactions.bulk import Baskets, histories
from features.interactions.fold import TILES, Event, advance
from features.interactions.history import HISTORY, NEVER, WINDOWS, WINDOWS_DAYS, hundredths, windows_at

ENTITIES, ITEMS = ["ann", "bob", "eve"], [f"item {letter}" for letter in "abcdef"]
START = 20_000 * DAY


@st.composite
def baskets_of(draw: st.DrawFn, *, returns: bool = True) -> list[Event]:
    """Events in the order of time; several may share a moment."""
    found = []
    for _ in range(draw(st.integers(0, 14))):
        at = START + draw(st.sampled_from([0, 1, DAY // 2, DAY, 3 * DAY, 89 * DAY, 90 * DAY, 200 * DAY]))
        lines = draw(
            st.lists(
                st.tuples(
                    st.sampled_from(ITEMS),
                    st.sampled_from([1.0, 2.0, 12.0, -1.0] if returns else [1.0, 2.0, 12.0]),
                    st.sampled_from([0.1, 2.55, 3.0]),
                ),
                min_size=1,
                max_size=4,
            )
        )
        found.append(Event(entity=draw(st.sampled_from(ENTITIES)), at=at, lines=tuple(lines)))
    distinct = {event.hash: event for event in found}
    return sorted(distinct.values(), key=lambda event: (event.entity, event.at, event.hash))


def as_baskets(events: list[Event]) -> Baskets:
    rows = [
        (ENTITIES.index(e.entity), ITEMS.index(line[0]), e.at, e.hash, *line[1:]) for e in events for line in e.lines
    ]
    entity, item, at, mark, quantity, price = zip(*rows, strict=True) if rows else [()] * 6
    whole = [np.array(column, np.int64) for column in (entity, item, at, mark)]
    return Baskets(ENTITIES, ITEMS, *whole, np.array(quantity, np.float64), np.array(price, np.float64))


def folded(
    events: list[Event], before: dict[str, dict[str, Any]] | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """The row of each entity at each of its moments."""
    rows, found = dict(before or {}), {}
    for event in events:
        advanced = advance(rows.get(event.entity), event)
        rows[event.entity] = advanced.row
        found[event.entity, advanced.at] = advanced.row
    return found


def as_rows(table: pa.Table) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["entity"], row["at"]): {name: row[name] for name in HISTORY} for row in table.to_pylist()}


@pytest.fixture(params=["as declared", "narrow"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories that overflow within a few events, so that what they let go of is looked at too."""
    if request.param == "narrow":
        for module in (interactions_fold, interactions_bulk):
            monkeypatch.setattr(module, "BOUGHT_MAX", 3)
            monkeypatch.setattr(module, "SEEN_MAX", 4)


@pytest.mark.usefixtures("limits")
def test_the_bulk_form_makes_the_rows_of_the_fold_at_once_and_night_by_night() -> None:
    @settings(max_examples=25, deadline=None)
    @given(baskets_of(), st.sampled_from([START, START + 1, START + DAY, START + 90 * DAY]))
    def check(events: list[Event], night: int) -> None:
        wanted = folded(events)
        assert as_rows(histories(as_baskets(events), None, START)) == wanted
        newest = {entity: max(at for e, at in wanted if e == entity) for entity, _ in wanted}
        assert as_rows(histories(as_baskets(events), None, START, newest_only=True)) == {
            (entity, at): wanted[entity, at] for entity, at in newest.items()
        }
        first = [event for event in events if event.at < night]
        rest = [event for event in events if event.at >= night]
        before = histories(as_baskets(first), None, START, newest_only=True)
        made = as_rows(histories(as_baskets(rest), before, night))
        assert made == {(entity, at): row for (entity, at), row in wanted.items() if at >= night}

    check()


@settings(max_examples=30, deadline=None)
@given(baskets_of(returns=False), st.randoms(use_true_random=False))
def test_events_may_come_twice_and_in_any_order(events: list[Event], random: Any) -> None:
    wanted, found = {}, {}
    for event in events:
        wanted[event.entity] = advance(wanted.get(event.entity), event).row
    again = events + random.choices(events, k=5) if events else []
    random.shuffle(again)
    for event in again:
        known = found.get(event.entity)
        advanced = advance(known, event)
        assert advanced.folded or advanced.row == known
        found[event.entity] = advanced.row
    assert found == wanted


def test_a_return_takes_back_what_was_bought_and_nothing_else() -> None:
    bought = advance(None, Event(entity="ann", at=START, lines=(("a", 6.0, 2.5), ("b", 1.0, 1.0)))).row
    more = advance(bought, Event(entity="ann", at=START + DAY, lines=(("a", 1.0, 2.5),))).row
    once = advance(more, Event(entity="ann", at=START + 2 * DAY, lines=(("a", -6.0, 2.5), ("x", -1.0, 9.0))))
    assert (once.row["bought_items"], once.row["bought_counts"], once.unmatched) == (["a", "b"], [1, 1], 1)
    assert (once.row["day_units"], once.row["day_spend"]) == ([7, 1, -6], [1600, 250, -1500])
    assert once.row["basket_items"] == ["a"]
    twice = advance(once.row, Event(entity="ann", at=START + 3 * DAY, lines=(("a", -1.0, 2.5),))).row
    assert twice["bought_items"] == ["b"]
    foreign = advance(None, Event(entity="eve", at=START, lines=(("a", -1.0, 2.5),)))
    assert (foreign.unmatched, foreign.row["days"], foreign.row["orders"], foreign.row["basket_at"]) == (
        1,
        [],
        0,
        NEVER,
    )


def test_an_event_older_than_what_a_history_knows_is_not_folded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions_fold, "SEEN_MAX", 2)
    events = [Event(entity="ann", at=START + n, lines=(("a", 1.0, 1.0),)) for n in range(5)]
    row = None
    for event in events:
        row = advance(row, event).row
    assert row is not None
    assert row["orders"] == 5
    assert not any(advance(row, event).folded for event in events)


@settings(max_examples=25, deadline=None)
@given(baskets_of(returns=False), st.integers(0, 120))
def test_windows_count_the_baskets_of_their_days(events: list[Event], days: int) -> None:
    moment = START + 200 * DAY + days * DAY + DAY // 3
    mine = [event for event in events if event.entity == "ann"]
    row = None
    for event in mine:
        row = advance(row, event).row
    if row is None:
        return
    lists = {name: Ragged.of([row[name]], np.int64) for name in ("days", *TILES)}
    lists |= {name: Ragged.of([row[name]], object) for name in ("bought_items", "basket_items")}
    scalars = {name: np.array([row[name]], np.int64) for name in ("basket_at", "first_at", "orders")}
    found = windows_at(scalars, lists, np.array([moment]))
    assert tuple(sorted(found)) == tuple(sorted(WINDOWS))
    for window in WINDOWS_DAYS:
        inside = [event for event in mine if event.at // DAY > moment // DAY - window]
        lines = [line for event in inside for line in event.lines]
        assert found[f"orders_{window}d"][0] == len(inside)
        assert found[f"lines_{window}d"][0] == len(lines)
        assert found[f"units_{window}d"][0] == sum(line[1] for line in lines)
        spent = hundredths(np.array([line[1] for line in lines]), np.array([line[2] for line in lines]))
        assert found[f"spend_{window}d"][0] == np.float32(spent.sum() / 100)
    assert found["days_since_last"][0] == np.float32((moment - max(event.at for event in mine)) / DAY)
