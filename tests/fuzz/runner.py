"""Throw mutated inputs at one door, count each input in one place, and say what was wrong."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

ACCEPTED = "accepted"
ROUND_INPUTS = 100
"""How many inputs a round may have; a round is what can be replayed by its number."""
FIRST_CHECK_SHARE_MIN = 0.2
"""So many of the inputs must pass the first check, or the fuzzer tries little behind it."""
MEBIBYTE = 1 << 20


class Verdict(NamedTuple):
    """What became of one input.

    Attributes:
        reason: `ACCEPTED`, or for what it was refused.
        past_first_check: whether the door's first check let it pass; whatever was accepted has passed it.
    """

    reason: str
    past_first_check: bool


class Session(Protocol):
    """A door that is open: servers run, valid inputs are at hand."""

    def round(self, random: Random, count: int) -> Sequence[Verdict]:
        """Send exactly `count` inputs, and say what became of each. It raises where something is wrong."""

    def memory_bytes(self) -> int:
        """What processes other than this one and its children need now, if the door has any; otherwise 0."""


class OneByOne(ABC):
    """A session without servers, whose inputs are sent one after the other."""

    @abstractmethod
    def send(self, random: Random) -> Verdict:
        """Send one input, another one each time; it raises where something is wrong."""

    def round(self, random: Random, count: int) -> Sequence[Verdict]:
        """See `Session`."""
        return [self.send(random) for _ in range(count)]

    def memory_bytes(self) -> int:
        """There are no other processes."""
        return 0


class Door(Protocol):
    """One way in.

    Attributes:
        reasons: every reason for a refusal that the code can give, derived from it.
        memory_bytes_max: by how much the memory of this process, or of one child, may grow while the door is open.
            The session's `memory_bytes` must stay below it, too.
    """

    reasons: frozenset[str]
    memory_bytes_max: int

    def opened(self, folder: Path) -> AbstractContextManager[Session]:
        """The door with whatever is behind it; nothing is written outside the folder."""


@dataclass
class Report:
    """What a run found."""

    inputs: int = 0
    seconds: float = 0.0
    past_first_check: int = 0
    memory_bytes: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line."""
        rate = self.inputs / self.seconds if self.seconds else 0.0
        share = self.past_first_check / self.inputs if self.inputs else 0.0
        reasons = len(self.by_reason) - (ACCEPTED in self.by_reason)
        return (
            f"{self.inputs:,} inputs in {self.seconds:.0f} s ({rate:,.0f} a second), "
            f"{self.by_reason[ACCEPTED]:,} accepted, {share:.0%} past the first check, "
            f"{reasons} reasons reached, {len(self.unreached)} not; "
            f"memory grew by {self.memory_bytes / MEBIBYTE:,.0f} MiB"
        )


def fuzz(
    door: Door,
    *,
    seed: int,
    inputs: int,
    seconds: float,
    begin: Callable[[int], None] = lambda number: None,
    only_round: int | None = None,
) -> Report:
    """Send rounds of inputs until there were so many, or so long.

    Args:
        door: which.
        seed: of every choice; a round's are of the seed and its number alone.
        inputs: how many at most.
        seconds: how long at most, the last round's end excepted.
        begin: is told each round's number before it begins.
        only_round: replay this one.
    """
    report = Report()
    with tempfile.TemporaryDirectory(prefix="almanac-fuzz-") as name:
        outer = Path(name)
        folder, canary = outer / "inside", outer / "canary"
        folder.mkdir()
        canary.write_text("nobody writes here")
        outer.chmod(0o755)  # Postgres has a user of its own
        before, tempfile.tempdir = (Path.cwd(), tempfile.tempdir), str(folder)
        os.chdir(folder)
        try:
            with door.opened(folder) as session:
                _rounds(door, session, report, (seed, inputs, seconds, only_round), begin)
        finally:
            os.chdir(before[0])
            tempfile.tempdir = before[1]
        if sorted(path.name for path in outer.iterdir()) != ["canary", "inside"] or canary.read_text() != (
            "nobody writes here"
        ):
            report.wrong.append("something was written outside the door's folder")
    _judge(door, report)
    return report


def _rounds(
    door: Door,
    session: Session,
    report: Report,
    limits: tuple[int, int, float, int | None],
    begin: Callable[[int], None],
) -> None:
    seed, inputs, seconds, only_round = limits
    base, began, number = _memory_bytes(), time.monotonic(), only_round or 0
    while report.inputs < inputs and time.monotonic() - began < seconds:
        begin(number)
        count = min(ROUND_INPUTS, inputs - report.inputs)
        verdicts = session.round(Random(f"{seed}:{number}"), count)
        if len(verdicts) != count:
            report.wrong.append(f"round {number}: {count} inputs were sent, and {len(verdicts)} counted")
        report.inputs += count
        report.by_reason.update(verdict.reason for verdict in verdicts)
        report.past_first_check += sum(verdict.past_first_check for verdict in verdicts)
        report.memory_bytes = max(report.memory_bytes, _memory_bytes() - base, session.memory_bytes())
        if report.memory_bytes > door.memory_bytes_max:
            grown, most = (size / MEBIBYTE for size in (report.memory_bytes, door.memory_bytes_max))
            report.wrong.append(f"round {number}: memory grew by {grown:,.0f} MiB, more than {most:,.0f} MiB")
        if report.wrong or only_round is not None:
            break
        number += 1
    report.seconds = time.monotonic() - began


def _judge(door: Door, report: Report) -> None:
    unknown = sorted(set(report.by_reason) - door.reasons - {ACCEPTED})
    if unknown:
        report.wrong.append(f"refused for what is no reason of the door's: {', '.join(unknown)}")
    report.unreached = sorted(door.reasons - set(report.by_reason))
    if report.past_first_check < FIRST_CHECK_SHARE_MIN * report.inputs:
        report.wrong.append(f"fewer than {FIRST_CHECK_SHARE_MIN:.0%} of the inputs passed the first check")


def _memory_bytes() -> int:
    """The most that this process or one of its ended children has needed; it never shrinks."""
    kibibytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kibibytes * 1024
