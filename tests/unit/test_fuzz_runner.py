"""The fuzzers' runner notices each kind of fault, planted in doors of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.runner import ACCEPTED, MEBIBYTE, Report, Verdict, fuzz

FINE = Verdict(ACCEPTED, True)
TORN = Verdict("torn", False)


class Planted:
    """A door with one fault."""

    reasons = frozenset({"torn", "late"})
    memory_bytes_max = 64 * MEBIBYTE

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.numbers: list[float] = []

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Planted]:
        """The door, and its own session."""
        self.folder = folder
        yield self

    def round(self, random: Random, count: int) -> Sequence[Verdict]:
        """Half is accepted."""
        self.numbers.append(random.random())
        match self.fault:
            case "loses one":
                return [FINE] * (count - 1)
            case "writes outside":
                self.folder.with_name("escaped").write_text("here")
            case "another reason":
                return [FINE] * (count - 1) + [Verdict("who knows", True)]
            case "shallow":
                return [TORN] * count
            case "raises":
                raise ValueError("not seen before")
        return [FINE] * (count // 2) + [TORN] * (count - count // 2)

    def memory_bytes(self) -> int:
        """Of its server."""
        return 65 * MEBIBYTE if self.fault == "grows" else 0


def run(door: Planted, inputs: int = 250, only_round: int | None = None) -> Report:
    return fuzz(door, seed=7, inputs=inputs, seconds=60, only_round=only_round)


def test_every_input_is_counted_and_what_was_not_reached_is_said() -> None:
    report = run(Planted())
    assert (report.inputs, report.by_reason, report.wrong) == (250, {ACCEPTED: 125, "torn": 125}, [])
    assert report.unreached == ["late"]
    assert "250 inputs" in report.summary


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("loses one", "round 0: 100 inputs were sent, and 99 counted"),
        ("writes outside", "outside the door's folder"),
        ("another reason", "no reason of the door's: who knows"),
        ("shallow", "fewer than 20% of the inputs passed the first check"),
        ("grows", "round 0: memory grew by 65 MiB, more than 64 MiB"),
    ],
)
def test_a_planted_fault_is_noticed(fault: str, said: str) -> None:
    assert any(said in line for line in run(Planted(fault)).wrong)


def test_what_a_door_raises_is_raised_and_the_working_folder_is_as_before() -> None:
    before = Path.cwd()
    with pytest.raises(ValueError, match="not seen before"):
        run(Planted("raises"))
    assert Path.cwd() == before


def test_a_round_can_be_replayed_by_its_number() -> None:
    whole, again = Planted(), Planted()
    run(whole)
    run(again, only_round=2)
    assert again.numbers == whole.numbers[2:3]
