"""Lanes side by side, a lookup and a reader, until enough was published or somebody ends it; then the verdict."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from serving_cache.migrate import migrate
from tests.crash.declared import pipeline_of
from tests.crash.forking import fork, said_by, wait, was_ended
from tests.crash.harness import Found, Lane
from tests.crash.judging import judge
from tests.crash.readers import read
from tests.crash.shared import Shared
from tests.lookups import environment, running_lookup

POLL_SECONDS = 0.1
DECLARATIONS = "from tests.crash.declared import pipeline_of\n\n{lines}\n"

Urls = tuple[str, str]
Told = Callable[[int, int], None]


def crash(urls: Urls, folder: Path, shared: Shared, *, seed: int, publishes: int, told: Told) -> Found:
    """Publish this often, with deaths at every failpoint, under reads; returns the verdict.

    Args:
        urls: of Postgres and Redis; folder: for what processes write down.
        shared: tells how many lanes; `shared.stop()` ends all of it early.
        told: is told publishes and kills so far, some ten times a second.
    """
    chance = random.Random(seed)
    numbers = range(shared.lanes)
    pipelines = [pipeline_of(number) for number in numbers]
    migrate(urls[0], pipelines)
    wrong: list[str] = []
    if shared.stopping():  # already
        return _verdict(urls, folder, shared, wrong)
    with _lookup(urls, folder, shared.lanes) as address:
        reading = partial(read, pipelines, (*urls, address), folder / "reader.json", chance.randrange(2**32))
        reader = fork(lambda: asyncio.run(reading()), folder)
        try:
            lanes = [
                Lane(number, urls, folder, shared, seed=chance.randrange(2**32), publishes=publishes)
                for number in numbers
            ]
            children = [fork(partial(_live, lane, folder), folder) for lane in lanes]
            wrong += _watch(children, folder, shared, told)
        finally:
            os.kill(reader, signal.SIGTERM)
            status = wait(reader)
            unready = shared.stopping() and was_ended(status)  # it had no time to hear of the signal
            if status and not unready:
                wrong.append(f"the reader ended wrongly: {said_by(reader, folder)}")
    return _verdict(urls, folder, shared, wrong)


def _live(lane: Lane, folder: Path) -> None:
    (folder / f"lane-{lane.number}.json").write_text(json.dumps(lane.run()))


def _watch(children: list[int], folder: Path, shared: Shared, told: Told) -> list[str]:
    """Wait for the lanes; what goes wrong in one ends all."""
    wrong, left = [], set(children)
    while left:
        for child in list(left):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                left.remove(child)
                if status:
                    wrong.append(f"a lane ended wrongly: {said_by(child, folder)}")
                    shared.stop()
        told(shared.publishes(), shared.kills())
        time.sleep(POLL_SECONDS)
    return wrong


def _verdict(urls: Urls, folder: Path, shared: Shared, wrong: list[str]) -> Found:
    all_of_it = Found(wrong=wrong, publishes=shared.publishes())
    written = folder / "reader.json"
    seen = json.loads(written.read_text()) if written.exists() else {}
    for number in range(shared.lanes):
        file, pipeline = folder / f"lane-{number}.json", pipeline_of(number)
        found = Found(**json.loads(file.read_text())) if file.exists() else Found()
        judge(found, pipeline, urls, seen.get(pipeline.name, ()))
        for name, count in found.kills.items():
            all_of_it.kills[name] = all_of_it.kills.get(name, 0) + count
        for name in ("paused", "superseded", "at_once", "reads", "unanswered", "epochs_read", "rollbacks", "wrong"):
            setattr(all_of_it, name, getattr(all_of_it, name) + getattr(found, name))
    return all_of_it


@contextmanager
def _lookup(urls: Urls, folder: Path, lanes: int) -> Iterator[str]:
    """A lookup of the product that serves the lanes' pipelines; yields its address."""
    declarations = folder / "declarations.py"
    lines = "\n".join(f"lane_{number} = pipeline_of({number})" for number in range(lanes))
    declarations.write_text(DECLARATIONS.format(lines=lines))
    variables = environment(folder, declarations, postgres=urls[0], redis=urls[1])
    with running_lookup(variables, folder / "lookup.log") as client:
        yield str(client.base_url)
