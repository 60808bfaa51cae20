"""Records made to stop, slow or fill whoever reads them: each is refused by itself, within what its topic takes."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from almanac.errors import BlockError, EventError, ModelError, Unavailable
from streaming import guarding
from streaming.duplicates import NOTE_CHARS_MAX, REMEMBERED_MAX, Duplicates
from streaming.events import HEADERS_MAX, Event, _once, parse
from streaming.guarding import FORWARDED_TOO_OFTEN, HANDLING_FAILED, HEADERS_UNREADABLE, guarded, parts
from streaming.handle import sort, without_events
from streaming.placement import FORWARDS_MAX
from streaming.records import (
    HEADER_CUT,
    HEADER_FORWARDED,
    KEPT_OTHER_BYTES_MAX,
    KEPT_VALUE_BYTES_MAX,
    Consumed,
    Produced,
    dead_letter_record,
    read_dead_letter,
    read_feature_row,
    read_prediction,
)
from streaming.redrive import ALL_REASONS
from streaming.report import Report
from streaming.sink import read_all
from streaming.sizes import LETTER_BYTES_MAX, RECORD_BYTES_MAX, record_bytes
from streaming.worker import Worker
from tests.baskets import basket_pipeline, purchase
from tests.record_batches import batch, record
from tests.streams import tiny_pipeline

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TINY = tiny_pipeline("tiny")
GOOD = {"cell_id": 3, "observed_at": "2026-11-21T11:59:00Z", "t2m": 281.3}
Headers = tuple[tuple[str, bytes | None], ...]
HEADERS: dict[str, Headers] = {
    "a name of 60,000 emoji": (("🛒" * 60_000, b""),),
    "65,536 headers named a": (("a", None),) * 65_536,
    "1,000 empty names": (("", b""),) * 1_000,
    "one content": (("a", b"x" * 250_000),),
    "few": (("a", b"x"), ("b", None)),
    "none": (),
}


def consumed(offset: int = 0, value: bytes | None = None, headers: Headers = (), **more: Any) -> Consumed:
    value = json.dumps(GOOD).encode() if value is None else value
    return Consumed(
        topic="tiny.observations", partition=0, offset=offset, key=None, value=value, headers=headers, **more
    )


def stored(written: Produced) -> int:
    """Bytes that a broker counts of a record, made as a client makes it."""
    headers = [(name.encode("utf-8", "surrogatepass"), content) for name, content in written.headers]
    return len(batch(record(written.value, written.key, headers), 1))


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("size", [None, 0, 100, KEPT_VALUE_BYTES_MAX])
def test_a_record_is_as_large_as_the_broker_counts_it(headers: Headers, size: int | None) -> None:
    value = None if size is None else b"x" * size
    written = Produced(topic="t", key=b"17", value=value, headers=headers)
    assert 0 <= record_bytes(b"17", value, headers) - stored(written) <= 10


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("bytes_max", [LETTER_BYTES_MAX, LETTER_BYTES_MAX // 16])
@pytest.mark.parametrize("size", [100, KEPT_VALUE_BYTES_MAX, 2_000_000])
def test_a_dead_letter_is_what_its_topic_takes_and_says_what_was_cut(
    headers: Headers, bytes_max: int, size: int
) -> None:
    origin = Consumed(
        topic="t" * 249,
        partition=3,
        offset=10**17,
        key=b"k" * size,
        value=b"v" * size,
        headers=headers,
        standing=10**15,
    )
    written = dead_letter_record(TINY, origin, EventError("not-json", "\udcff🛒" * 5_000), bytes_max)
    assert stored(written) <= bytes_max
    letter = read_dead_letter(consumed(0, written.value, written.headers))
    assert (letter.reason, letter.topic, letter.partition, letter.offset) == ("not-json", "t" * 249, 3, 10**17)
    kept = (written.key, written.value, headers) == (origin.key, origin.value, written.headers[: len(headers)])
    assert letter.whole == kept
    own = sum(len(name.encode()) + len(content or b"") for name, content in headers)
    if own > KEPT_OTHER_BYTES_MAX:
        assert not letter.whole
        assert dict(written.headers)[HEADER_CUT].startswith(f"{size}/{size}/".encode())  # type: ignore[union-attr]


def test_headers_that_cannot_be_read_make_a_dead_letter_that_says_so_and_is_not_sent_again() -> None:
    refused = sort(
        [consumed(1, b"raw", unreadable="a header's name is not UTF-8"), consumed(2)], TINY, Duplicates(), NOW
    )
    assert [(r.offset, error.reason) for r, error in refused.refused] == [(1, HEADERS_UNREADABLE)]
    assert [r.offset for r, _ in refused.events] == [2]
    (written,) = without_events(refused, TINY).dead_letters
    letter = read_dead_letter(consumed(0, written.value, written.headers))
    assert (letter.raw, letter.whole, dict(written.headers)[HEADER_CUT]) == (b"raw", False, b"3/0/?")


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0
    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_a_name_that_stands_twice_is_found_in_time_that_grows_with_the_names() -> None:
    names = [Counted(number) for number in range(20_000)]
    with pytest.raises(EventError) as caught:
        _once([(name, 1) for name in (*names, Counted(19_999))])
    assert caught.value.reason == "duplicate-field"
    assert "'19999'" in str(caught.value)
    assert Counted.compared < 10 * len(names)


@pytest.mark.parametrize(("size", "reason"), [(65_000, "duplicate-field"), (131_000, "too-large")])
def test_many_short_names_are_refused(size: int, reason: str) -> None:
    names = [f'"{number:x}":1' for number in range(size // 8)]
    raw = "{" + ",".join(names)[: size - 20].rpartition(",")[0] + ',"0":1}'
    with pytest.raises(EventError) as caught:
        parse(raw.encode(), None, (), TINY, NOW)
    assert caught.value.reason == reason


def test_an_event_of_too_many_headers_is_not_looked_at() -> None:
    raw = json.dumps(GOOD).encode()
    assert parse(raw, None, [("ce", b"x")] * HEADERS_MAX, TINY, NOW).entity == 3
    with pytest.raises(EventError, match=r"65,536 headers, at most 1,000 are read") as caught:
        parse(raw, None, [("a", None)] * 65_536, TINY, NOW)
    assert caught.value.reason == "too-large"


@pytest.mark.parametrize(
    "error", [SystemError("NULL"), RecursionError(), MemoryError(), KeyError("x"), OSError(28, "no")]
)
def test_whatever_reading_a_record_raises_the_others_go_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(value: bytes, *rest: Any) -> Event:
        if value == b"bad":
            raise error
        return parse(value, *rest)

    monkeypatch.setattr(guarding, "parse", fails)
    found = sort([consumed(1), consumed(2, b"bad"), consumed(3, b"{}")], TINY, Duplicates(), NOW)
    assert [r.offset for r, _ in found.events] == [1]
    assert [(r.offset, e.reason) for r, e in found.refused] == [(2, HANDLING_FAILED), (3, "missing-field")]
    assert {HANDLING_FAILED, HEADERS_UNREADABLE, FORWARDED_TOO_OFTEN} <= set(ALL_REASONS)


def test_a_batch_that_fails_is_tried_in_ever_smaller_parts_and_in_its_order() -> None:
    records, done = [consumed(offset) for offset in range(100)], list[Any]()

    def work(some: Sequence[Consumed]) -> None:
        if any(each.offset in (0, 17, 99) for each in some):
            raise SystemError("with one of them")
        done.extend(each.offset for each in some)

    guarded(records, work, lambda each, error: done.append((each.offset, type(error))))
    expected: list[Any] = list(range(100))
    for bad in (0, 17, 99):
        expected[bad] = (bad, SystemError)
    assert done == expected


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("down"), ModelError("hash"), KafkaException(KafkaError(KafkaError._TRANSPORT)),
        OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EMFILE, "Too many open files"), TimeoutError(),
        ConnectionResetError(), OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "denied"),
    ],
)  # fmt: skip
def test_what_is_no_records_fault_makes_no_dead_letter(error: Exception) -> None:
    calls = list[int]()

    def work(some: Sequence[Consumed]) -> None:
        calls.append(len(some))
        raise error

    with pytest.raises(type(error)):
        guarded([consumed(1), consumed(2)], work, lambda each, why: None)
    assert calls == [2]
    assert guarding.may_be_of_a_record(BlockError("Postgres refused what was written"))
    assert guarding.may_be_of_a_record(OSError(errno.ENAMETOOLONG, "File name too long"))


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ENAMETOOLONG, "File name too long"), False),
    ],
)
def test_a_worker_waits_for_what_the_machine_refuses(
    error: OSError, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker.__new__(Worker)
    worker._pipeline = TINY

    def fails(records: Sequence[Consumed]) -> None:
        raise error

    monkeypatch.setattr(worker, "_try", fails)
    with pytest.raises(Unavailable if waits else OSError) as caught:
        worker._tried([consumed(1)])
    assert not waits or "see to this machine's disk, memory and open files" in str(caught.value)


def test_records_are_handled_in_parts_of_bounded_size() -> None:
    large = [consumed(offset, b"x" * 6_000_000) for offset in range(5)]
    assert [[each.offset for each in part] for part in parts([*large, consumed(5)])] == [[0, 1], [2, 3], [4, 5]]
    assert [len(part) for part in parts([consumed(0, b"x" * 20_000_000), consumed(1)])] == [1, 1]
    assert list(parts([])) == []


def test_an_event_that_would_not_fit_its_home_partition_is_a_dead_letter() -> None:
    pipeline = basket_pipeline("baskets")
    sent = purchase("c1", [("ITEM 1", 1.0, 2.5)], NOW)
    padding = RECORD_BYTES_MAX - record_bytes(sent.key, sent.value, (("p", b""),)) - 4
    stood = Consumed(
        topic="baskets.purchases", partition=5, offset=7, key=sent.key, value=sent.value,
        headers=(("p", b"x" * padding),),
    )  # fmt: skip
    assert stood.bytes <= RECORD_BYTES_MAX
    found = sort([stood], pipeline, Duplicates(), NOW, lambda entity: 1)
    assert [error.reason for _, error in found.refused] == ["too-large"]
    assert found.forwards == ()
    forged = ((HEADER_FORWARDED, b"x/1/1"),) * FORWARDS_MAX
    again = Consumed(topic="t", partition=5, offset=8, key=sent.key, value=sent.value, headers=forged)
    found = sort([again], pipeline, Duplicates(), NOW, lambda entity: 1)
    assert [error.reason for _, error in found.refused] == [FORWARDED_TOO_OFTEN]


@pytest.mark.parametrize("number", ["1e999", "NaN", '"\\u0000"', "[" * 100_000, '{"a":' * 100_000, "null", "-1e400"])
@pytest.mark.parametrize("reader", [read_prediction, read_feature_row])
def test_what_no_worker_wrote_is_skipped_and_the_records_behind_it_are_read(number: str, reader: Any) -> None:
    body = {"pipeline": "tiny", "entity": 3, "as_of": "2026-11-21T11:59:00Z", "observed_at": "2026-11-21T11:59:00Z",
            "value": 281.0, "values": dict.fromkeys(TINY.output_names, 1.0), "model": "m", "incarnation": 0,
            "source": {"topic": "t", "partition": 0, "offset": 1}, "computed_at": "2026-11-21T11:59:00Z"}  # fmt: skip
    good = json.dumps(body)
    places = ('"incarnation": 0', '"partition": 0', '"offset": 1', '"value": 281.0', '"computed_at": "2026')
    bad = [good.replace(place, place.partition(":")[0] + ": " + number) for place in places]
    records = [consumed(at, raw.encode()) for at, raw in enumerate([*bad, good])]
    found, foreign = read_all(records, lambda each: reader(TINY, each), Report("t"))
    assert len(found) + foreign == len(records)
    assert foreign >= 1
    assert len(found) >= 1


def test_a_place_of_thousands_of_digits_in_a_dead_letter_is_no_place() -> None:
    headers = (("__streams.errors.partition", b"1" * 5_000), ("__streams.errors.offset", b"2" * 5_000))
    letter = read_dead_letter(consumed(0, b"", headers))
    assert (letter.partition, letter.offset, letter.whole) == (-1, -1, False)


def test_what_is_remembered_of_events_does_not_grow_with_them() -> None:
    seen = Duplicates()
    long = Event(
        entity="c1", observed_at=NOW, value={}, lines=({"item_id": "x" * 100_000},), event_id=("s", "i" * 100_000)
    )
    other = Event(
        entity="c2", observed_at=NOW + timedelta(1), value={}, lines=long.lines, event_id=("s", "i" * 100_001)
    )
    for event in (long, other):
        assert not seen.knows(event)
        seen.remember(event)
        assert seen.knows(event)
    plain = Event(entity="c1", observed_at=NOW, value={}, lines=long.lines)
    assert seen.knows(plain)
    assert not seen.knows(Event(entity="c1", observed_at=NOW, value={}, lines=({"item_id": "y"},)))
    notes = [*seen._ids, *seen._latest.values()]
    assert max(len(repr(note)) for note in notes) < 3 * NOTE_CHARS_MAX
    seen.forget(long)
    assert not seen.knows(long)
    assert REMEMBERED_MAX < 100_000
