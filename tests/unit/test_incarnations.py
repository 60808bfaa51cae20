"""What is made of events of a topic that was deleted and made again, whose offsets begin anew."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from almanac.decisions import newest
from serving_cache.records import OverlayRecord
from streaming.dead_letters import Listed
from streaming.duplicates import Duplicates
from streaming.handle import sort
from streaming.records import Consumed, read_dead_letter, read_prediction
from streaming.redrive import outgoing
from tests.unit.test_stream_handle import NOW, TINY, delivered, features, handle, record, vars_of


def overlay(offset: int, incarnation: int, **more: Any) -> OverlayRecord:
    """The overlay of an event that stands in this incarnation of its topic."""
    events = [record(offset, standing=incarnation, **more)]
    return read_prediction(TINY, delivered(handle(events, features(c3=1.0)).predictions[0]))


def test_of_one_as_of_the_overlay_of_the_topic_that_was_made_again_wins_whatever_its_offset() -> None:
    assert newest([overlay(100, 5), overlay(0, 6), overlay(100, 5)]) == [overlay(0, 6)]
    assert newest([overlay(1, 6), overlay(0, 6)]) == [overlay(1, 6)]
    assert newest([overlay(100, 0), overlay(0, 5)]) == [overlay(0, 5)], "without an incarnation it is the lowest"
    assert newest([overlay(0, 5, minute=2), overlay(0, 6, minute=1)]) == [overlay(0, 5, minute=2)]
    (written,) = handle([record(7)], features(c3=1.0)).predictions
    before = {name: said for name, said in json.loads(written.value or b"").items() if name != "incarnation"}
    assert read_prediction(TINY, delivered(replace(written, value=json.dumps(before).encode()))) == overlay(7, 0)


def test_a_dead_letter_of_a_deleted_topic_stays_of_that_topic_when_it_is_sent_again() -> None:
    (letter,) = handle([record(7, standing=5)], features(c3=None)).dead_letters
    sent = outgoing(Listed(at=NOW, letter=read_dead_letter(delivered(letter))))
    again = Consumed(topic="tiny.observations", partition=0, offset=0, standing=6, **vars_of(sent))
    (written,) = handle([again], features(c3=1.0)).predictions
    assert read_prediction(TINY, delivered(written)) == overlay(7, 5)
    (refused,) = handle([again], features(c3=None)).dead_letters
    assert outgoing(Listed(at=NOW, letter=read_dead_letter(delivered(refused)))) == sent
    unsaid = replace(again, headers=tuple(each for each in again.headers if each[0] != "almanac.incarnation"))
    assert unsaid.incarnation == 0
    assert replace(unsaid, headers=(*unsaid.headers, ("almanac.incarnation", b"-1"))).incarnation == 0


def test_dead_letters_of_one_place_in_two_incarnations_are_two_events() -> None:
    def again(offset: int, incarnation: int, minute: int) -> Consumed:
        (letter,) = handle([record(7, standing=incarnation, minute=minute)], features(c3=None)).dead_letters
        sent = outgoing(Listed(at=NOW, letter=read_dead_letter(delivered(letter))))
        return Consumed(topic="tiny.observations", partition=0, offset=offset, standing=6, **vars_of(sent))

    for incarnations in ((5, 6), (0, 0)):  # and of letters that do not say it yet, by their moments
        found = sort([again(8, incarnations[0], 1), again(9, incarnations[1], 2)], TINY, Duplicates(), NOW)
        assert (len(found.events), found.duplicates) == (2, 0)
    found = sort([again(8, 5, 1), again(9, 5, 1)], TINY, Duplicates(), NOW)
    assert (len(found.events), found.duplicates) == (1, 1)
