"""Where an event first stood is believed of stream workers alone, whatever headers a producer writes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from almanac.errors import UsageError
from almanac.settings import Settings
from streaming.dead_letters import Listed
from streaming.duplicates import Duplicates
from streaming.handle import sort
from streaming.proofs import Proofs
from streaming.records import (
    HEADER_CUT,
    HEADER_FORWARDED,
    HEADER_INCARNATION,
    HEADER_ORIGIN,
    HEADER_PROOF,
    HEADER_REASON,
    HEADER_TOPIC,
    Consumed,
    forwarded_record,
    read_dead_letter,
)
from streaming.redrive import Choice, choose, outgoing, unproved
from streaming.report import Report
from tests.unit.test_stream_handle import NOW, TINY, delivered, features, handle, record, vars_of

SECRET, NEXT = "a secret of workers alone", "the one that comes next"
TOPIC = "tiny.observations"
FORGED_ORIGIN = (HEADER_ORIGIN, b"a" * 200 + b"/0/0")


def proofs(*secrets: str) -> Proofs:
    words = " ".join(each.replace(" ", "-") for each in secrets or (SECRET,))
    return Proofs.of(TINY, Settings(origin_secret=words), Report("test", pipeline="tiny", part="worker"))


def letter_of(*events: Consumed, by: Proofs | None = None) -> Listed:
    """The dead letter that a worker writes of an event without features."""
    by = by or proofs()
    (letter,) = by.signed(handle(by.checked(events), features(c3=None)).dead_letters)
    return Listed(at=NOW, letter=read_dead_letter(delivered(letter)))


def again(listed: Listed, offset: int = 99) -> Consumed:
    return Consumed(topic=TOPIC, partition=0, offset=offset, standing=6, **vars_of(outgoing(listed)))


@pytest.mark.parametrize(
    "headers",
    [
        (FORGED_ORIGIN,),
        ((HEADER_ORIGIN, b"tiny.observations/2/7"), (HEADER_INCARNATION, b"9")),
        ((HEADER_ORIGIN, b"tiny.observations/2/7"), (HEADER_PROOF, b"0" * 64)),
        ((HEADER_ORIGIN, b"tiny.observations/2/7"), (HEADER_PROOF, None)),
        ((HEADER_ORIGIN, b"tiny.observations/2/7"), (HEADER_PROOF, "ż\ud800".encode("utf-8", "surrogatepass"))),
        tuple((HEADER_FORWARDED, b"tiny.observations/2/7") for _ in range(9)),
        ((HEADER_CUT, b"1/1/1"),),
        ((HEADER_INCARNATION, b"9999999999999999"),),
    ],
)
def test_a_claim_that_no_worker_proved_is_taken_off_and_said(
    headers: tuple[tuple[str, bytes | None], ...], caplog: pytest.LogCaptureFixture
) -> None:
    by = proofs()
    (found,) = by.checked([record(7, headers=(("trace", b"1"), *headers), standing=5)])
    assert (found.origin, found.redriven, found.forwards, found.incarnation) == ((TOPIC, 0, 7), False, 0, 5)
    assert found.headers == (("trace", b"1"),)
    assert letter_of(found).letter.whole
    assert "0 offset 7 claims in its headers to have stood elsewhere" in caplog.text
    by.checked([record(8, headers=headers)] * 500)
    assert caplog.text.count("claims in its headers") == 1


def test_a_forged_origin_drops_no_genuine_redrive_and_replaces_no_genuine_dead_letter() -> None:
    by, seen = proofs(), Duplicates()
    genuine = letter_of(record(7, partition=2))
    claimed = record(50, headers=((HEADER_ORIGIN, b"tiny.observations/2/7"),))
    first = sort(by.checked([claimed]), TINY, seen, NOW)
    assert [each.origin for each, _ in first.events] == [(TOPIC, 0, 50)]
    seen.merge(first.seen)
    second = sort(by.checked([again(genuine)]), TINY, seen, NOW)
    assert [each.origin for each, _ in second.events] == [(TOPIC, 2, 7)]
    forged = letter_of(claimed)
    copied = [
        replace(genuine, letter=replace(genuine.letter, headers=headers))
        for headers in (
            genuine.letter.headers[:-1],
            (("ce_id", b"7"), *genuine.letter.headers),
            (*genuine.letter.headers, (HEADER_INCARNATION, b"9")),
            (*genuine.letter.headers, (HEADER_CUT, b"1/1/1")),
        )
    ]
    chosen = choose([genuine, forged, *copied], Choice())
    assert genuine in chosen
    assert forged in chosen
    assert sum(each.origin == (TOPIC, 2, 7) for each in by.checked(map(again, chosen))) == 1


def test_a_dead_letter_sent_again_is_proved_to_be_the_event_it_was_and_stays_so() -> None:
    for event in (record(7, partition=2), record(7, partition=2, standing=5, headers=(("ce", b"a"), ("n", None)))):
        first = letter_of(event)
        (found,) = proofs().checked([again(first)])
        assert (found.origin, found.incarnation, found.redriven) == ((TOPIC, 2, 7), event.standing, True)
        second = letter_of(found)
        assert outgoing(second) == outgoing(first)
        assert len(choose([first, second], Choice())) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda event: replace(event, value=b"{}"),
        lambda event: replace(event, key=b"3"),
        lambda event: replace(event, headers=(("ce_id", b"1"), *event.headers)),
        lambda event: replace(event, headers=(*event.headers, (HEADER_ORIGIN, b"tiny.observations/2/8"))),
        lambda event: replace(event, headers=(*event.headers, (HEADER_FORWARDED, b"tiny.observations/2/8"))),
        lambda event: replace(event, headers=(*event.headers, (HEADER_INCARNATION, b"6"))),
    ],
)
def test_a_proof_is_of_one_event_at_one_place(change: object) -> None:
    assert callable(change)
    (found,) = proofs().checked([change(again(letter_of(record(7, partition=2, standing=5))))])
    assert (found.origin, found.incarnation) == ((TOPIC, 0, 99), 6)


def test_a_forwarded_event_is_proved_and_a_worker_signs_nothing_that_a_producer_claimed() -> None:
    by = proofs()
    claims = (FORGED_ORIGIN, (HEADER_REASON, b"bad-time"), (HEADER_TOPIC, b"other"), (HEADER_FORWARDED, b"t/1/1"))
    for headers in ((), claims):
        (event,) = by.checked([record(7, partition=3, headers=headers)])
        for offset in (50, 51):  # twice on its way
            (sent,) = by.signed([forwarded_record(event, 1)])
            home = Consumed(
                topic=TOPIC, partition=1, offset=offset, key=sent.key, value=sent.value, headers=sent.headers
            )
            (event,) = by.checked([home])
            assert (event.origin, event.forwards, event.redriven) == ((TOPIC, 3, 7), offset - 49, False)
        (found,) = by.checked([again(letter_of(event))])
        assert found.origin == (TOPIC, 3, 7)


def test_an_older_secret_proves_what_it_signed_until_it_is_taken_away() -> None:
    event = again(letter_of(record(7, partition=2), by=proofs(SECRET)))
    assert proofs(NEXT, SECRET).checked([event])[0].origin == (TOPIC, 2, 7)
    assert proofs(NEXT).checked([event])[0].origin == (TOPIC, 0, 99)
    newer = again(letter_of(record(7, partition=2), by=proofs(NEXT, SECRET)))
    assert proofs(NEXT).checked([newer])[0].origin == (TOPIC, 2, 7)


def test_without_a_secret_nothing_is_signed_and_nothing_believed(caplog: pytest.LogCaptureFixture) -> None:
    by = Proofs.of(TINY, Settings(origin_secret=None), Report("test", pipeline="tiny", part="worker"))
    assert "no origin_secret is known" in caplog.text
    listed = letter_of(record(7, partition=2), by=by)
    assert unproved([listed, letter_of(record(7))]) == 1
    assert by.checked([again(listed)])[0].origin == (TOPIC, 0, 99)


@pytest.mark.parametrize("words", ["short", f"{'a' * 20} short", " ".join(["a" * 20] * 5)])
def test_a_secret_that_could_be_guessed_is_refused_without_being_quoted(words: str) -> None:
    with pytest.raises(UsageError, match="at least 16 characters") as refused:
        Proofs.of(TINY, Settings(origin_secret=words), Report("test"))
    assert words not in str(refused.value)
