"""Forks workers that die, and judges what was left and what readers saw."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import psycopg

from almanac import failpoints
from almanac.clock import utc_now
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from serving_cache.sync import sync_redis
from tests.crash.readers import read
from tests.crash.worker import Task, pipeline_of, work

RUNS_PER_WORKER = 6
READERS = 1
STOPPABLE = ("plan.opened", "score.staged", "publish.indexed", "publish.read-back", "publish.committed", "sync.held")
"""Outside of transactions: a process that is stopped within one holds its locks until the server ends it."""
STUCK_SECONDS_MAX = 120.0


@dataclass
class Found:
    """What it came to."""

    publishes: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    paused: int = 0
    at_once: int = 0
    reads: int = 0
    epochs_read: int = 0
    rollbacks: int = 0
    wrong: list[str] = field(default_factory=list)


class Harness:
    """One pipeline, its stores and its readers.

    Args:
        urls: of Postgres and Redis.
        folder: for what readers write down.
        seed: of every choice; the moments of deaths are exact, what others do meanwhile is not.
    """

    def __init__(self, urls: tuple[str, str], folder: Path, seed: int) -> None:
        self.urls = urls
        self.folder = folder
        self.chance = random.Random(seed)
        self.pipeline = pipeline_of(f"crash_{os.getpid()}")
        self.found = Found()
        self.start: datetime = utc_now()
        self._value = 1
        self._shared = mmap.mmap(-1, 16)  # publishes; greatest value published
        migrate(urls[0], [self.pipeline])

    def run(self, publishes: int, told: Callable[[Found], None] = lambda _: None) -> Found:
        """Publish this often, with deaths at every failpoint in turn, then judge."""
        readers = [self._fork(partial(self._read, number)) for number in range(READERS)]
        names = list(failpoints.NAMES)
        try:
            turn = 0
            while self._read_shared()[0] < publishes:
                kind = turn % 12
                if kind == 10:
                    self._paused()
                elif kind == 11:
                    self._at_once()
                else:
                    self._killed(names[(turn - turn // 12 * 2) % len(names)])
                turn += 1
                self.found.publishes = self._read_shared()[0]
                told(self.found)
        finally:
            for reader in readers:
                os.kill(reader, signal.SIGTERM)
            for reader in readers:
                os.waitpid(reader, 0)
        self._judge()
        return self.found

    def _task(self) -> Task:
        return Task(
            pipeline=self.pipeline.name,
            postgres_url=self.urls[0],
            redis_url=self.urls[1],
            start=self.start,
            value=self._value,
            runs=RUNS_PER_WORKER,
            seed=self.chance.randrange(2**32),
        )

    def _killed(self, failpoint: str) -> None:
        nth = 1 if failpoint.startswith(("rollback", "reconcile")) else self.chance.randint(1, RUNS_PER_WORKER)
        child = self._work(replace(self._task(), failpoint=failpoint, nth=nth))
        status = _wait(child)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.found.kills[failpoint] += 1
        elif status:
            said = "; ".join(file.read_text() for file in self.folder.glob(f"error-{child}"))
            self.found.wrong.append(f"a worker that was to die at {failpoint} ended with {status}: {said}")
        self._go_on()

    def _paused(self) -> None:
        """An attempt is stopped; another one makes the same run and others after it; then the first wakes up."""
        name = self.chance.choice(STOPPABLE)
        sleeper = self._work(replace(self._task(), runs=1, failpoint=name, stop=True))
        if not os.WIFSTOPPED(_wait(sleeper, untraced=True)):
            self._go_on()
            return
        _wait(self._work(replace(self._task(), runs=3)))
        os.kill(sleeper, signal.SIGCONT)
        _wait(sleeper)
        self.found.paused += 1
        self._go_on()

    def _at_once(self) -> None:
        """Two publishers, of the same run and of the next one; one of them may find itself superseded."""
        task = replace(self._task(), runs=2)
        both = [self._work(task), self._work(replace(task, value=task.value + self.chance.randint(0, 1)))]
        for child in both:
            _wait(child)
        self.found.at_once += 1
        self._go_on()

    def _go_on(self) -> None:
        """The next worker takes up the run that was cut short, or the next one."""
        self._value = max(self._value, self._read_shared()[1]) + self.chance.randint(0, 1)

    def _work(self, task: Task) -> int:
        return self._fork(lambda: work(task, self._done))

    def _fork(self, act: Callable[[], None]) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            act()
            status = 0
        except BaseException as error:  # noqa: BLE001  (whatever it is, the parent must hear of it)
            (self.folder / f"error-{os.getpid()}").write_text(repr(error))
        finally:
            os._exit(status)

    def _read(self, number: int) -> None:
        asyncio.run(read([self.pipeline], self.urls, self.folder / f"reader-{number}.json", number))

    def _done(self, value: int) -> None:
        """Counted by the worker itself: of two at once, one may be lost, which only makes the run longer."""
        publishes, greatest = self._read_shared()
        self._shared[:16] = struct.pack("qq", publishes + 1, max(greatest, value))

    def _read_shared(self) -> tuple[int, int]:
        publishes, greatest = struct.unpack("qq", self._shared[:16])
        return publishes, greatest

    def _judge(self) -> None:
        """Compare what readers saw with every move of the pointer; then both stores with each other."""
        name, wrong = self.pipeline.name, self.found.wrong
        with psycopg.connect(self.urls[0]) as connection:
            moves = {
                epoch: (kind, generation, int(run_key.split()[1]), as_of)
                for epoch, kind, generation, run_key, as_of in connection.execute(
                    "SELECT m.epoch, m.kind, m.generation, g.run_key, g.as_of FROM pointer_moves m "
                    "JOIN generations g USING (pipeline, generation) WHERE pipeline = %s ORDER BY m.epoch",
                    (name,),
                ).fetchall()
            }
        self.found.rollbacks = sum(kind == "rollback" for kind, *_ in moves.values())
        published = Counter(generation for kind, generation, *_ in moves.values() if kind == "publish")
        wrong += [f"generation {g} was published {n} times" for g, n in published.items() if n > 1]
        if sorted(moves) != list(range(1, len(moves) + 1)):
            wrong.append("an epoch is missing")
        for epoch, (kind, generation, _, as_of) in moves.items():
            if kind == "publish" and epoch > 1 and as_of < moves[epoch - 1][3]:
                wrong.append(f"epoch {epoch}: generation {generation} moved readers back")
        for file in sorted(self.folder.glob("reader-*.json")):
            seen = json.loads(file.read_text())[name]
            self.found.reads += seen["reads"]
            self.found.epochs_read += len(seen["by_epoch"])
            wrong += seen["wrong"]
            for epoch, generation, value in seen["by_epoch"]:
                if epoch not in moves or moves[epoch][1:3] != (generation, int(value)):
                    wrong.append(f"epoch {epoch} was read as generation {generation} of run {value}")
        with PostgresStore(self.urls[0]) as store, RedisStore(self.urls[1]) as cache:
            sync_redis(self.pipeline, store, cache)
            pointer = store.pointer(name)
            if pointer != cache.pointer(name):
                wrong.append("Redis does not follow")
            if pointer is not None:
                store.blocks(self.pipeline, pointer.generation.generation, range(self.pipeline.partitions.count))


def _wait(child: int, *, untraced: bool = False) -> int:
    """The wait status of a child; one that hangs is ended, which shows in the status."""
    until = time.monotonic() + STUCK_SECONDS_MAX
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG | (os.WUNTRACED if untraced else 0))
        if pid:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGTERM)
    return os.waitpid(child, 0)[1]
