"""Baskets of a source as events: each is believed by the stream, and is the event that the source's lines are of."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from almanac.clock import micros_of, parse_time
from almanac.errors import UsageError
from almanac.interactions import Simulated
from almanac.pipeline import Interactions
from almanac.settings import load_settings
from features.interactions.fold import Event
from features.interactions.lines import with_events
from features.sources.crowd import Crowd
from features.sources.lines import open_lines
from pipelines.shop import shop
from streaming.events import parse
from streaming.replaying import replayed_baskets

NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)
assert isinstance(shop.source, Interactions)
SMALL = replace(
    shop, source=replace(shop.source, simulated=Simulated(entities=60, items=40, history=timedelta(days=5)))
)


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    found = open_lines(SMALL, load_settings(state_dir=tmp_path, source_data=""), now=NOW)
    assert isinstance(found, Crowd)
    return found


def test_each_basket_is_the_event_that_its_lines_are_of(crowd: Crowd) -> None:
    sent = list(replayed_baskets(SMALL, crowd, NOW, 24))
    bodies = [json.loads(event.value) for event in sent]
    assert [body["observed_at"] for body in bodies] == sorted(body["observed_at"] for body in bodies)
    for event in sent:
        parse(event.value, event.key, None, SMALL, NOW)
    marks = [
        Event(
            entity=body["customer_id"],
            at=micros_of(parse_time(body["observed_at"])),
            lines=tuple((line["item_id"], line["quantity"], line["price"]) for line in body["lines"]),
        ).hash
        for body in bodies
    ]
    latest = crowd.latest(NOW)
    lines = with_events(crowd.lines(latest - timedelta(hours=24), latest + timedelta(microseconds=1)))
    assert set(marks) == set(lines["event"].to_pylist())
    assert len(marks) == len(set(marks)) > 5


def test_what_cannot_be_replayed_is_said(crowd: Crowd) -> None:
    with pytest.raises(UsageError, match="0 hours cannot be replayed"):
        next(replayed_baskets(SMALL, crowd, NOW, 0))
    with pytest.raises(UsageError, match="carry no lines to replay"):
        next(replayed_baskets(replace(SMALL, stream=None), crowd, NOW, 1))


def test_a_basket_of_too_many_lines_comes_as_several_events(crowd: Crowd) -> None:
    assert SMALL.stream is not None
    assert SMALL.lines is not None
    few = replace(SMALL, stream=replace(SMALL.stream, lines=replace(SMALL.lines, most=2)))
    sizes = [len(json.loads(event.value)["lines"]) for event in replayed_baskets(few, crowd, NOW, 24)]
    whole = [len(json.loads(event.value)["lines"]) for event in replayed_baskets(SMALL, crowd, NOW, 24)]
    assert max(sizes) == 2
    assert sum(sizes) == sum(whole)
