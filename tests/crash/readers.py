"""Readers in a process of their own: the lookup's own service, one key or a hundred at a time, all the while."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path
from typing import Any

from almanac.ladder import Answer
from almanac.pipeline import Pipeline
from almanac.steady import SystemClock
from serving_cache.lookup.postgres_place import PostgresPlace
from serving_cache.lookup.redis_place import RedisPlace
from serving_cache.lookup.service import NothingAnswers, Service
from tests.crash.worker import CELLS

PAUSE_SECONDS = 0.004
WRONG_MAX = 50


class Seen:
    """What one reader saw of one pipeline."""

    def __init__(self) -> None:
        self.reads = 0
        self.by_epoch: dict[int, tuple[int, float]] = {}
        self.epoch = 0
        self.wrong: list[str] = []

    def say(self, text: str) -> None:
        """Keep something that must never be."""
        if len(self.wrong) < WRONG_MAX:
            self.wrong.append(text)


async def read(pipelines: list[Pipeline], urls: tuple[str, str], out: Path, seed: int) -> None:
    """Read until SIGTERM, then write down what was seen."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    service = Service(
        (RedisPlace(urls[1], limit_seconds=5.0), PostgresPlace(urls[0], limit_seconds=15.0)),
        fresh_for=None,
        clock=SystemClock(),
    )
    chance = random.Random(seed)
    seen = {pipeline.name: Seen() for pipeline in pipelines}
    try:
        while not stop.is_set():
            for pipeline in pipelines:
                await _one(service, pipeline, chance.sample(range(CELLS), chance.choice([1, 100])), seen[pipeline.name])
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await service.close()
        found: dict[str, Any] = {
            name: {"reads": s.reads, "wrong": s.wrong, "by_epoch": [[e, *pair] for e, pair in s.by_epoch.items()]}
            for name, s in seen.items()
        }
        out.write_text(json.dumps(found))


async def _one(service: Service, pipeline: Pipeline, cells: list[int], seen: Seen) -> None:
    try:
        outcome = await service.lookup(pipeline, cells, None)
    except NothingAnswers as error:
        seen.say(f"nothing answers: {error}")
        return
    seen.reads += 1
    epoch = outcome.reading.epoch
    if epoch == 0:
        if seen.epoch:
            seen.say(f"nothing is published any more, epoch {seen.epoch} was")
        return
    if epoch < seen.epoch:
        seen.say(f"back from epoch {seen.epoch} to {epoch} at {outcome.place}")
    seen.epoch = max(seen.epoch, epoch)
    answers = [outcome.settled(cell) for cell in cells]
    missing = sum(not isinstance(answer, Answer) for answer in answers)
    if missing:
        seen.say(f"epoch {epoch}: {missing} of {len(cells)} keys are missing at {outcome.place}")
        return
    pairs = {(a.candidate.generation, a.candidate.values["value"]) for a in answers if isinstance(a, Answer)}
    known = seen.by_epoch.setdefault(epoch, next(iter(pairs)))  # type: ignore[arg-type]
    if pairs != {known}:
        seen.say(f"epoch {epoch} is mixed: {sorted(pairs, key=str)}, was {known} at {outcome.place}")
