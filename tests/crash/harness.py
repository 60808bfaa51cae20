"""One lane: a pipeline whose workers die one after another, turn by turn, until enough was published."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from almanac import failpoints
from almanac.clock import utc_now
from tests.crash.declared import pipeline_of
from tests.crash.forking import fork, said_by, wait, was_killed, was_refused
from tests.crash.shared import Shared
from tests.crash.worker import Task, work

RUNS_PER_WORKER = 6
TURNS_MIN = 8
"""However few publishes are asked for: so many have a paused attempt and two publishers at once among them."""
PAUSED_TURN, AT_ONCE_TURN, TURNS_PER_ROUND = 1, 2, 12
PAUSES_TRIED_MAX = 4
WRONG_MAX = 20
"""A lane in which so much goes wrong ends."""
LOSING = ("plan.opened", "publish.indexed", "publish.read-back")
"""Stopped there, an attempt must find that it lost its token; one that scores may go on as a new attempt."""
STOPPABLE = (
    *LOSING, "score.staged", "score.cached", "publish.committed",
    "sync.blocks-written", "sync.manifest-written", "sync.pointer-moved", "sync.held",
)  # fmt: skip
"""Outside of transactions: a process that is stopped within one holds its locks until the server ends it."""
ALWAYS_PASSED = "publish.committed"


@dataclass
class Found:
    """What it came to."""

    publishes: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    paused: int = 0
    superseded: int = 0
    at_once: int = 0
    reads: int = 0
    unanswered: int = 0
    epochs_read: int = 0
    rollbacks: int = 0
    wrong: list[str] = field(default_factory=list)


class Lane:
    """One pipeline, and the workers that publish it.

    Args:
        number: which lane; urls: of Postgres and Redis; folder: for what processes write down.
        seed: of every choice; the moments of deaths are exact, what others do meanwhile is not.
        publishes: how many all lanes make together.
    """

    def __init__(
        self, number: int, urls: tuple[str, str], folder: Path, shared: Shared, *, seed: int, publishes: int
    ) -> None:
        self.number = number
        self.urls = urls
        self.folder = folder
        self.shared = shared
        self.publishes = publishes
        self.chance = random.Random(seed)
        self.pipeline = pipeline_of(number)
        self.found = Found()
        self.start = utc_now()
        self._value = 1

    def run(self) -> dict[str, Any]:
        """Turn by turn, with deaths at every failpoint; returns what was found, as JSON values."""
        names, parent, turn = self._failpoints(), os.getppid(), 0
        while os.getppid() == parent and not self.shared.stopping() and len(self.found.wrong) < WRONG_MAX:
            if turn >= TURNS_MIN and self.shared.publishes() >= self.publishes:
                break
            kind = turn % TURNS_PER_ROUND
            if kind == PAUSED_TURN:
                self._paused()
            elif kind == AT_ONCE_TURN:
                self._at_once()
            else:
                self._killed(next(names))
            self._value = max(self._value, self.shared.greatest(self.number)) + self.chance.randint(0, 1)
            turn += 1
        return asdict(self.found)

    def _failpoints(self) -> Iterator[str]:
        while True:
            yield from self.chance.sample(failpoints.NAMES, len(failpoints.NAMES))

    def _task(self, **changes: Any) -> Task:
        task = Task(
            lane=self.number,
            postgres_url=self.urls[0],
            redis_url=self.urls[1],
            start=self.start,
            value=self._value,
            runs=RUNS_PER_WORKER,
            seed=self.chance.randrange(2**32),
        )
        return replace(task, **changes)

    def _killed(self, failpoint: str) -> None:
        nth = 1 if failpoint.startswith(("rollback", "reconcile")) else self.chance.randint(1, RUNS_PER_WORKER)
        child = self._work(self._task(failpoint=failpoint, nth=nth))
        status = wait(child)
        if was_killed(status):
            self.found.kills[failpoint] = self.found.kills.get(failpoint, 0) + 1
            self.shared.killed(self.number)
        elif status:
            self._ended_wrongly(f"a worker that was to die at {failpoint}", child, status)

    def _paused(self) -> None:
        """An attempt is stopped; another one makes the same run and others after it; then the first wakes up."""
        for left in reversed(range(PAUSES_TRIED_MAX)):
            name = self.chance.choice(STOPPABLE) if left else ALWAYS_PASSED
            sleeper = self._work(self._task(runs=1, failpoint=name, stop=True))
            status = wait(sleeper, untraced=True)
            if os.WIFSTOPPED(status):
                break
            if status:
                self._ended_wrongly(f"an attempt that was to pause at {name}", sleeper, status)
            self._value = max(self._value, self.shared.greatest(self.number)) + 1  # nothing of that one is done yet
        else:
            self.found.wrong.append("no attempt could be paused")
            return
        other = self._work(self._task(runs=3))
        status = wait(other)
        if status:
            self._ended_wrongly(f"the attempt beside one that was paused at {name}", other, status)
        os.kill(sleeper, signal.SIGCONT)
        status = wait(sleeper)
        self.found.paused += 1
        if was_refused(status, sleeper, self.folder, "Superseded"):
            self.found.superseded += 1
        elif status or name in LOSING:
            self._ended_wrongly(f"an attempt that was paused at {name} and outlived", sleeper, status)

    def _at_once(self) -> None:
        """Two publishers, of the same run and of the next one; one of them may find itself superseded."""
        task = self._task(runs=2)
        both = [self._work(task), self._work(replace(task, value=task.value + self.chance.randint(0, 1)))]
        for child in both:
            status = wait(child)
            if status and not was_refused(status, child, self.folder, ""):
                self._ended_wrongly("one of two publishers at once", child, status)
        self.found.at_once += 1

    def _work(self, task: Task) -> int:
        return fork(lambda: work(task, lambda value: self.shared.published(self.number, value)), self.folder)

    def _ended_wrongly(self, who: str, child: int, status: int) -> None:
        self.found.wrong.append(f"{who} ended with {status}: {said_by(child, self.folder)}")
