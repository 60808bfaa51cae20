"""Dead letters that are read back: the newest of them, within a number and a size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from streaming.dead_letters import Listed, Newest
from streaming.records import DeadLetter

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def listed(number: int, minute: int) -> Listed:
    letter = DeadLetter(reason="x", message="", topic="t", partition=0, offset=number, raw=b"", key=None)
    return Listed(at=NOON + timedelta(minutes=minute), letter=letter)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50)), max_size=40), st.integers(1, 10), st.integers(1, 120))
def test_the_newest_stay_within_number_and_size(sizes: list[tuple[int, int]], count: int, size: int) -> None:
    newest = Newest(count, size)
    letters = [listed(number, minute) for number, (minute, _) in enumerate(sizes)]
    for letter, (_, its) in zip(letters, sizes, strict=True):
        newest.add(letter, its)
    stay = newest.listed()
    assert len(stay) <= count
    sizes_of = {letter.letter.offset: its for letter, (_, its) in zip(letters, sizes, strict=True)}
    assert sum(sizes_of[one.letter.offset] for one in stay) <= size or len(stay) == 1
    assert [one.at for one in stay] == sorted(one.at for one in stay)
    # Nothing that was let go is newer than what stays.
    gone = [letter for letter in letters if letter not in stay]
    assert not gone or not stay or max(one.at for one in gone) <= min(one.at for one in stay) or newest.let_go_for_size
    if sum(sizes_of.values()) <= size:
        order = sorted(letters, key=lambda one: (one.at, one.letter.offset))
        assert (stay, newest.let_go_for_size) == (order[-count:], 0)
