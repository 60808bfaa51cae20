"""The door of dead letters and redrive: letters of refused events, which others change before they are sent again.

A worker writes the dead letter of an event, valid or mutated; somebody changes the letter's value, key or headers.
Then it is shown, chosen, sent again and read by a worker. What a worker takes for an event of an earlier place must
be that event.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from almanac.clock import format_time
from almanac.errors import EventError
from almanac.pipeline import Pipeline
from almanac.plain_text import plain, plain_json
from features.archive_files import topic_in_names
from pipelines.weather import weather
from streaming.dead_letters import Listed
from streaming.duplicates import Duplicates
from streaming.events import REASONS
from streaming.handle import sort
from streaming.proofs import CLAIMS, Proofs
from streaming.records import RESERVED_HEADERS, Consumed, Produced, dead_letter_record, read_dead_letter
from streaming.redrive import Choice, choose, outgoing
from streaming.report import Report
from tests.baskets import basket_pipeline
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, Verdict

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
BASKETS = basket_pipeline("baskets")
NOT_WHOLE, UNPROVED, DUPLICATE = "not whole", "unproved", "duplicate"
"""What `choose` leaves out; what a worker takes for a new event; what it drops."""
Body = dict[str, Any]
Headers = tuple[tuple[str, bytes | None], ...]


def _weather(random: Random) -> Body:
    moment = NOW - timedelta(seconds=random.randrange(3_000))
    return {"cell_id": random.randrange(100), "observed_at": format_time(moment), "t2m": random.uniform(250, 300)}


def _basket(random: Random) -> Body:
    line = {"item_id": f"ITEM {random.randrange(9)}", "quantity": random.randrange(1, 9), "price": 2.5}
    moment = NOW - timedelta(seconds=random.randrange(3_000))
    return {"customer_id": str(random.randrange(1_000)), "observed_at": format_time(moment), "lines": [line]}


STRANGE: Sequence[Any] = (
    None, True, "", "\ud800", "\x1b[2J", "[/b]", -1, 1e308, 10**30, [], [[]], {}, {"a": "[/b]"}, "9999-12-31T23:59:59Z",
    "2026-11-21T13:00:00Z", "1970-01-01T00:00:00Z", "1969-12-31T00:00:00Z", "today", "a" * 400, 500.0, 99_999_999,
    [{"item_id": "*", "quantity": 1, "price": 1}] , [{"item_id": "A", "quantity": 1, "price": 1}] * 60, float("nan"),
)  # fmt: skip
"""Values that stand in for one of an event's."""
PLACES = (
    b"a" * 200 + b"/0/0",
    b"weather.observations/3/12345",
    b"../../x/1/1",
    b"t/1/-1",
    b"",
    None,
    b"\xff",
    b"9" * 40,
)


def _body(random: Random, pipeline: Pipeline) -> tuple[bytes | None, bytes | None]:
    """Value and key of an event, one of three mutated."""
    body = _basket(random) if pipeline is BASKETS else _weather(random)
    key: bytes | None = str(body[pipeline.entity]).encode()
    if random.random() < 0.66:
        return json.dumps(body).encode(), key
    kind = random.randrange(6)
    if kind == 0:
        body.pop(random.choice(list(body)))
    elif kind == 1:
        body[random.choice(list(body))] = random.choice(STRANGE)
    elif kind == 2:
        key = random.choice([None, b"other", b"\xff"])
    text = json.dumps(body)
    if kind == 3:
        text = text[:-1] + ', "' + random.choice(list(body)) + '": 1}'
    elif kind == 4:
        text = random.choice(["[]", "7", text[: random.randrange(len(text))], " " * 140_000 + text, "\x00"])
    value: bytes | None = text.encode("utf-8", "surrogatepass")
    return (None if kind == 5 and random.random() < 0.5 else value), key


def _event_headers(random: Random) -> Headers:
    said: list[tuple[str, bytes | None]] = []
    if random.random() < 0.3:
        said = [("ce_id", b"7"), ("ce_source", b"/s"), ("ce_type", b"t"), ("ce_specversion", b"1.0")]
        if random.random() < 0.3:
            said.pop(random.randrange(4))
    if random.random() < 0.2:
        said.append((random.choice(sorted(RESERVED_HEADERS)), random.choice(PLACES)))
    return tuple(said)


def _drop(random: Random, letter: Produced) -> Produced:
    at = random.randrange(len(letter.headers))
    return replace(letter, headers=letter.headers[:at] + letter.headers[at + 1 :])


def _claim(random: Random, letter: Produced) -> Produced:
    header = (random.choice(sorted(RESERVED_HEADERS)), random.choice(PLACES))
    return replace(letter, headers=(*letter.headers, header))


def _other_header(random: Random, letter: Produced) -> Produced:
    return replace(letter, headers=(("x" * random.randrange(9), random.randbytes(3)), *letter.headers))


def _value(random: Random, letter: Produced) -> Produced:
    at = random.randrange(len(letter.value or b"") + 1)
    return replace(letter, value=(letter.value or b"")[:at] + random.randbytes(1) + (letter.value or b"")[at + 1 :])


def _key(random: Random, letter: Produced) -> Produced:
    return replace(letter, key=random.choice([None, b"", b"17", random.randbytes(4)]))


CHANGES: Sequence[Callable[[Random, Produced], Produced]] = (_drop, _claim, _other_header, _value, _key)


@dataclass
class Redriven:
    """Workers of two pipelines, in this process."""

    folder: Path

    def round(self, random: Random, count: int) -> Sequence[Verdict]:
        """Each input is an event, its dead letter, and what becomes of that."""
        seen = {name: Duplicates() for name in (weather.name, BASKETS.name)}
        return [self._one(random, random.choice([weather, BASKETS]), number, seen) for number in range(count)]

    def memory_bytes(self) -> int:
        """Nothing else runs."""
        return 0

    def _one(self, random: Random, pipeline: Pipeline, number: int, seen: dict[str, Duplicates]) -> Verdict:
        topic = pipeline.stream.topic if pipeline.stream else ""
        by = Proofs(["a secret of workers alone"], pipeline.dead_letter_topic, Report("fuzz", pipeline=pipeline.name))
        value, key = _body(random, pipeline)
        headers = _event_headers(random)
        event = Consumed(topic=topic, partition=1, offset=number, key=key, value=value, headers=headers, standing=5)
        (event,) = by.checked([event])
        assert event.origin == (topic, 1, number)
        signed = by.signed([dead_letter_record(pipeline, event, EventError("future-time", "\x1b[/b] too early"))])[0]
        letter = random.choice(CHANGES)(random, signed) if random.random() < 0.4 else signed
        found = read_dead_letter(replace(event, key=letter.key, value=letter.value, headers=letter.headers))
        _shown(found.reason, found.message, found.topic)
        chosen = choose([Listed(at=NOW, letter=found)], Choice())
        if not chosen:
            return Verdict(NOT_WHOLE, False)
        sent = outgoing(chosen[0])
        again = Consumed(
            topic=topic, partition=0, offset=1_000_000, key=sent.key, value=sent.value, headers=sent.headers, standing=6
        )
        (again,) = by.checked([again])
        if not again.redriven:
            assert again.origin == (topic, 0, 1_000_000)
            assert not any(name in CLAIMS for name, _ in again.headers)
            return Verdict(UNPROVED, True)
        assert (again.origin, again.incarnation) == (event.origin, 5)
        assert (again.key, again.value, _own(again.headers)) == (event.key, event.value, _own(event.headers))
        assert len(topic_in_names(again.origin[0])) <= 100
        twice = random.random() < 0.1
        batch = sort([again, again] if twice else [again], pipeline, seen[pipeline.name], NOW)
        assert len(batch.events) + len(batch.refused) + batch.duplicates == 1 + twice
        if batch.refused:
            return Verdict(batch.refused[0][1].reason, True)
        return Verdict(DUPLICATE if batch.duplicates else ACCEPTED, True)


def _own(headers: Headers) -> Headers:
    return tuple(header for header in headers if header[0] not in RESERVED_HEADERS)


def _shown(*texts: str) -> None:
    assert all(plain(text).isprintable() for text in texts)
    assert plain_json(texts).isprintable()


class DeadLetters:
    """The door."""

    reasons = frozenset({NOT_WHOLE, UNPROVED, DUPLICATE, *REASONS})
    memory_bytes_max = 300 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Redriven]:
        """No server is needed: `tests/integration/test_stream.py` redrives through a real broker."""
        logging.getLogger("streaming").setLevel(logging.CRITICAL)
        yield Redriven(folder)


DOOR = DeadLetters()
