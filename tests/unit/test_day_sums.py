"""Sums of a day that 64 bits do not hold: cut alike in stream and batch; an event that brings one is a dead letter."""

from __future__ import annotations

from dataclasses import replace

from features.interactions.bulk import histories
from features.interactions.fold import Event, advance
from features.interactions.history import DAY_SUM_MAX, DAYS_KEPT
from tests.baskets import RANGE
from tests.unit.test_folding import Worker, at, reasons
from tests.unit.test_interactions import ITEMS, START, as_baskets, as_rows, folded


def test_sums_that_are_too_large_are_cut_alike_in_batch_and_stream() -> None:
    lines = tuple((item, 1e13, 1.0) for item in ITEMS)  # 6e15 hundredths a basket
    events = [Event(entity="ann", at=START + number, lines=lines) for number in range(200)]
    events += [Event(entity="bob", at=START, lines=((ITEMS[0], 2.0, 0.5),))]
    found = as_rows(histories(as_baskets(events), None, START))
    assert found == folded(events)
    assert found["ann", START + 199]["day_spend"] == [DAY_SUM_MAX]
    assert found["bob", START]["day_spend"] == [100]
    assert DAYS_KEPT * DAY_SUM_MAX < 2**63


def test_after_9_224_baskets_of_1e15_a_history_is_cut_and_goes_on() -> None:
    """Each is believable by itself; together they were more than 64 bits hold, again at each try."""
    events = [Event(entity="ann", at=START + number, lines=((ITEMS[0], 1e7, 1e8),)) for number in range(9_224)]
    state, cut = None, 0
    for event in events:
        step = advance(state, event)
        state, cut = step.row, cut + step.beyond
    assert state is not None
    assert state["day_spend"] == [DAY_SUM_MAX]
    assert cut > 9_000
    assert as_rows(histories(as_baskets(events), None, START))["ann", START + 9_223]["day_spend"] == [DAY_SUM_MAX]


def test_whoever_folds_is_told_of_a_sum_that_was_cut() -> None:
    small = Event(entity="ann", at=START, lines=((ITEMS[0], 10.0, 1.0),))
    row = advance(None, small).row
    again, returned = replace(small, at=START + 1), Event(entity="ann", at=START + 1, lines=((ITEMS[0], -10.0, 1.0),))
    assert not advance(row, again).beyond
    assert advance({**row, "day_spend": [DAY_SUM_MAX - 999]}, again).beyond
    assert advance({**row, "day_units": [9 - DAY_SUM_MAX]}, returned).beyond


def test_an_event_that_would_make_a_sum_too_large_is_a_dead_letter_and_the_next_one_counts() -> None:
    worker = Worker()
    worker.handle(("c1", [(RANGE[0], 1, 1.0)], at(0)))
    first = worker.topic[-1].folded
    assert first is not None
    full = replace(first, row={**first.row, "day_spend": [DAY_SUM_MAX - 1_000]})  # as after thousands of large baskets
    worker.folding._own.keep("c1", full, 0, 10**9)
    done = worker.handle(("c1", [(RANGE[1], 10, 100.0)], at(1)), ("c1", [(RANGE[1], 1, 1.0)], at(2)))
    assert reasons(done) == {"out-of-range": 1}
    assert len(done.features) == 1
    assert worker.topic[-1].folded.row["day_spend"] == [DAY_SUM_MAX - 900]  # type: ignore[union-attr]
