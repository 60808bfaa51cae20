"""A virtual clock and actors that take turns at every call of a store: one seed gives one order of everything.

An actor is ordinary code in a greenlet. Wherever it calls a store, `Hub.step`
decides by the seed whether the call fails before or after its effect, whether
the actor is paused or killed there, and who goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import greenlet

from almanac.errors import Unavailable

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEPS_MAX = 20_000
PAUSE_SECONDS_MAX = 900.0
STEP_SECONDS = 0.02


class Killed(BaseException):
    """The actor's process is gone; no code of ours may catch this."""


@dataclass(frozen=True, kw_only=True)
class Chances:
    """How likely each fault is at a step."""

    lost_request: float = 0.02
    lost_answer: float = 0.02
    pause: float = 0.02
    kill: float = 0.015


CALM = Chances(lost_request=0, lost_answer=0, pause=0, kill=0)


@dataclass
class _Actor:
    name: str
    turn: greenlet.greenlet
    wakes_at: float
    killable: bool
    pause_seconds_max: float
    luck: float


class Hub:
    """Runs actors until all have ended.

    Args:
        seed: of every decision.
        chances: of faults; `CALM` for a store that only ever works.
    """

    def __init__(self, seed: int, chances: Chances) -> None:
        self.random = random.Random(seed)
        self.chances = chances
        self.seconds = 0.0
        self.trace: list[tuple[float, str, str]] = []
        self.kills = 0
        self._actors: list[_Actor] = []
        self._running: _Actor | None = None
        self._steps = 0

    def now(self) -> datetime:
        """The virtual time."""
        return START + timedelta(seconds=self.seconds)

    def note(self, who: str, what: str) -> None:
        """Remember a step. It is put into words by `told`: a seed has thousands, and few are ever looked at."""
        self.trace.append((self.seconds, who, what))

    def told(self, last: int | None = None) -> list[str]:
        """The steps, or the last ones, a line each."""
        steps = self.trace if last is None else self.trace[-last:]
        return [f"{seconds:.2f} {who} {what}" for seconds, who, what in steps]

    def spawn(
        self,
        name: str,
        work: Callable[[], None],
        *,
        after: float = 0.0,
        killable: bool = True,
        pause_seconds_max: float = PAUSE_SECONDS_MAX,
        luck: float = 1.0,
    ) -> None:
        """Start an actor; what it raises besides being killed ends the simulation.

        Args:
            luck: its share of faults: 1 for that of all, less for fewer.
        """

        def run() -> None:
            try:
                work()
            except Killed:
                self.kills += 1

        actor = _Actor(name, greenlet.greenlet(run), self.seconds + after, killable, pause_seconds_max, luck)
        self._actors.append(actor)

    def run(self) -> None:
        """Let actors take turns until none is left."""
        while self._actors:
            self._steps += 1
            if self._steps > STEPS_MAX:
                raise AssertionError(f"more than {STEPS_MAX} steps: somebody goes round in circles")
            ready = [actor for actor in self._actors if actor.wakes_at <= self.seconds]
            if not ready:
                self.seconds = min(actor.wakes_at for actor in self._actors)
                continue
            actor = self._running = self.random.choice(ready)
            self.seconds += STEP_SECONDS
            try:
                actor.turn.switch()
            finally:
                self._running = None
                if actor.turn.dead:
                    self._actors.remove(actor)

    def sleep(self, seconds: float) -> None:
        """Let others go on for a while."""
        actor = self._running
        if actor is not None:
            actor.wakes_at = self.seconds + seconds
            self._give_way()

    def step(self, operation: str) -> None:
        """A moment at which others may go on, and this actor may fail: before its call has an effect.

        Raises:
            Unavailable: the request was lost.
            Killed: the actor is gone.
        """
        actor = self._running
        if actor is None:
            return  # the test itself
        self.note(actor.name, operation)
        chance = self.random.random() / actor.luck
        faults = self.chances
        if chance < faults.pause:
            actor.wakes_at = self.seconds + self.random.uniform(0, actor.pause_seconds_max)
            self.note(actor.name, f"is paused for {actor.wakes_at - self.seconds:.0f} s")
        self._give_way()
        if faults.pause <= chance < faults.pause + faults.lost_request:
            self.note(actor.name, f"{operation}: request lost")
            raise Unavailable(f"{operation}: the request was lost")
        self._perhaps_kill(actor, operation)

    def answer(self, operation: str) -> None:
        """The moment after a call had its effect.

        Raises:
            Unavailable: the answer was lost.
            Killed: the actor is gone.
        """
        actor = self._running
        if actor is None:
            return
        if self.random.random() < self.chances.lost_answer * actor.luck:
            self.note(actor.name, f"{operation}: answer lost")
            raise Unavailable(f"{operation}: the answer was lost")
        self._perhaps_kill(actor, operation)

    def _perhaps_kill(self, actor: _Actor, operation: str) -> None:
        if actor.killable and self.random.random() < self.chances.kill:
            self.note(actor.name, f"{operation}: killed")
            raise Killed

    def _give_way(self) -> None:
        actor = self._running
        parent = greenlet.getcurrent().parent
        assert parent is not None
        parent.switch()
        self._running = actor
