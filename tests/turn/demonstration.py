"""A demonstration in which hours turn where they are told to."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast, get_args

from almanac.demo import __main__ as demonstration
from almanac.demo.report import Report
from tests.turn.scheduler import Scheduler

Where = Literal["before", "within", "after"]
WITHIN_SECONDS = 5.0
"""How long after its beginning an hour turns within a stage, or at its first claim if that comes before."""


class At(NamedTuple):
    """A place in a demonstration: number of a stage, from 1 on, and where."""

    stage: int
    where: Where

    @classmethod
    def parse(cls, text: str) -> At:
        """`3:within`.

        Raises:
            ValueError: not of this form.
        """
        number, _, where = text.partition(":")
        if where not in get_args(Where):
            raise ValueError(f"{text!r} names no place: give a stage and one of {', '.join(get_args(Where))}")
        return cls(int(number), cast(Where, where))


@dataclass
class TurningReport(Report):
    """A report at whose stages hours turn."""

    turns: Collection[At] = ()
    scheduler: Scheduler | None = None
    number: int = 0
    within: threading.Timer | None = None
    done: list[At] = field(default_factory=list)

    def stage(self, title: str) -> None:
        """The stage before has ended, and this one begins."""
        self.finish()
        self._turn(At(self.number + 1, "before"))
        super().stage(title)
        self.number += 1
        if At(self.number, "within") in self.turns:
            self.within = threading.Timer(WITHIN_SECONDS, self._turn, [At(self.number, "within")])
            self.within.daemon = True
            self.within.start()

    def claim(self, held: bool, what: str, evidence: str) -> bool:
        """A claim of the stage; see `Report.claim`."""
        self._turn_within()
        return super().claim(held, what, evidence)

    def finish(self) -> None:
        """The stage has ended."""
        self._turn_within()
        self._turn(At(self.number, "after"))

    def _turn_within(self) -> None:
        if self.within is not None:
            self.within.cancel()
            if self.within.is_alive():
                self.within.join()
            self.within = None
            self._turn(At(self.number, "within"))

    def _turn(self, at: At) -> None:
        if at not in self.turns or at in self.done or self.scheduler is None:
            return
        self.done.append(at)
        self.say(f"--- an hour turns {at.where} stage {at.stage} ---")
        self.scheduler.turn()


@contextmanager
def turning(report: TurningReport) -> Iterator[None]:
    """Inside, the demonstration's report is this one."""
    before = demonstration.Report
    demonstration.Report = lambda: report  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        demonstration.Report = before  # type: ignore[misc]
