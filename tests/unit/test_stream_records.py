"""Records that somebody else wrote: nobody's, whatever they say, and the end of no sink and no command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from almanac.errors import DataError
from almanac.pipeline import Pipeline
from streaming.records import Consumed, Produced, read_dead_letter, read_feature_row, read_prediction
from tests.unit.test_stream_handle import TINY, delivered, features, handle, record

FORGED = {
    "a topic that names a folder": {"source": {"topic": "../../outside", "partition": 0, "offset": 7}},
    "a topic of 250 characters": {"source": {"topic": "a" * 250, "partition": 0, "offset": 7}},
    "a topic of dots": {"source": {"topic": "..", "partition": 0, "offset": 7}},
    "a topic that is a number": {"source": {"topic": 7, "partition": 0, "offset": 7}},
    "a partition that no column can hold": {"source": {"topic": "t", "partition": 2**31, "offset": 7}},
    "an offset that no column can hold": {"source": {"topic": "t", "partition": 0, "offset": 10**30}},
    "an offset below none": {"source": {"topic": "t", "partition": 0, "offset": -1}},
    "a partition that is text": {"source": {"topic": "t", "partition": "0", "offset": 7}},
    "no place at all": {"source": [[]]},
    "a time beyond all": {"observed_at": "9999-12-31T23:59:59-01:00", "as_of": "9999-12-31T23:59:59-01:00"},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_record_that_says_an_impossible_place_is_nobodys_and_ends_no_sink(forged: dict[str, Any]) -> None:
    handled = handle([record(7)], features(c3=1.0))
    readers: list[tuple[Produced, Callable[[Pipeline, Consumed], Any]]] = [
        (handled.features[0], read_feature_row),
        (handled.predictions[0], read_prediction),
    ]
    for written, reader in readers:
        assert reader(TINY, delivered(written))
        changed = json.dumps({**json.loads(written.value or b""), **forged}).encode()
        with pytest.raises(DataError, match="was not written by a stream worker"):
            reader(TINY, delivered(replace(written, value=changed)))
        deep = replace(written, value=b'{"pipeline":' + b"[" * 100_000)
        with pytest.raises(DataError, match="was not written by a stream worker"):
            reader(TINY, delivered(deep))


@pytest.mark.parametrize("said", [b"9" * 5_000, b"-1", b"", "٣".encode(), b"\xff"])
def test_a_dead_letter_that_says_no_number_is_of_no_place(said: bytes) -> None:
    letter = read_dead_letter(record(7, headers=(("__streams.errors.offset", said), ("almanac.incarnation", said))))
    assert (letter.offset, letter.whole, letter.incarnation) == (-1, False, 0)
