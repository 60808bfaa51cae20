"""Readers in a process of their own: of the lookup's service and, over HTTP, of a whole lookup; 1 or 100 keys each."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio

from almanac.ladder import Answer
from almanac.pipeline import Pipeline
from almanac.steady import SystemClock
from serving_cache import layout
from serving_cache.lookup.postgres_place import PostgresPlace
from serving_cache.lookup.redis_place import RedisPlace
from serving_cache.lookup.service import NothingAnswers, Service
from tests.crash.declared import CELLS

PAUSE_SECONDS = 0.004
HTTP_PAUSE_SECONDS = 0.02
HTTP_SECONDS_MAX = 30.0
KEYS = (1, 100)
WRONG_MAX = 50
GAPS = ("redis has no manifest", "redis misses a block")
"""Postgres answers then; yet Redis is never emptied here, so what its pointer names must be there."""
OK, UNAVAILABLE = 200, 503


class Seen:
    """What one reader saw of one pipeline."""

    def __init__(self) -> None:
        self.reads = 0
        self.unanswered = 0
        self.by_epoch: dict[int, tuple[int | None, object]] = {}
        self.epoch = 0
        self.redis_epoch = 0
        self.wrong: list[str] = []

    def say(self, text: str) -> None:
        """Keep something that must never be."""
        if len(self.wrong) < WRONG_MAX:
            self.wrong.append(text)

    def nothing(self, why: str) -> None:
        """No number was given: wrong, unless a busy machine kept a store from answering in time."""
        self.unanswered += 1
        if "did not answer" not in why and "cannot be reached" not in why:
            self.say(f"nothing answers: {why}")

    def judge_pointer(self, data: bytes | None) -> None:
        """Redis's own pointer goes forward, whatever the lookup would make of it."""
        epoch = 0 if data is None else layout.decode_pointer(data).epoch
        if epoch < self.redis_epoch:
            self.say(f"Redis went back from epoch {self.redis_epoch} to {epoch}")
        self.redis_epoch = epoch

    def judge(self, epoch: int, asked: int, answers: Sequence[tuple[int | None, object]], place: str) -> None:
        """Look at one answer: none is missing, none of another generation, and the pointer went forward."""
        self.reads += 1
        if epoch == 0:
            if self.epoch:
                self.say(f"nothing is published any more, epoch {self.epoch} was")
            return
        if epoch < self.epoch:
            self.say(f"back from epoch {self.epoch} to {epoch} at {place}")
        self.epoch = max(self.epoch, epoch)
        if len(answers) != asked:
            self.say(f"epoch {epoch}: {asked - len(answers)} of {asked} keys are missing at {place}")
            return
        known = self.by_epoch.setdefault(epoch, answers[0])
        if set(answers) != {known}:
            self.say(f"epoch {epoch} is mixed: {sorted(set(answers), key=str)}, was {known} at {place}")

    def json(self) -> dict[str, Any]:
        """For the process that judges."""
        return {
            "reads": self.reads,
            "unanswered": self.unanswered,
            "wrong": self.wrong,
            "by_epoch": [[epoch, *pair] for epoch, pair in self.by_epoch.items()],
        }


async def read(pipelines: list[Pipeline], urls: tuple[str, str, str], out: Path, seed: int) -> None:
    """Read until SIGTERM, or until the parent is gone, then write down what was seen.

    Args:
        urls: of Postgres, Redis and a lookup.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    chance = random.Random(seed)
    inside = {pipeline.name: Seen() for pipeline in pipelines}
    outside = {pipeline.name: Seen() for pipeline in pipelines}
    await asyncio.gather(
        _read_inside(pipelines, (urls[0], urls[1]), stop, chance, inside),
        _read_outside(list(outside), urls[2], stop, chance, outside),
    )
    out.write_text(json.dumps({name: [inside[name].json(), outside[name].json()] for name in inside}))


async def _read_inside(
    pipelines: list[Pipeline], urls: tuple[str, str], stop: asyncio.Event, chance: random.Random, seen: dict[str, Seen]
) -> None:
    places = (RedisPlace(urls[1], limit_seconds=5.0), PostgresPlace(urls[0], limit_seconds=15.0))
    service = Service(places, fresh_for=None, clock=SystemClock())
    raw = redis.asyncio.Redis.from_url(urls[1])
    parent = os.getppid()
    try:
        while not stop.is_set() and os.getppid() == parent:
            for pipeline in pipelines:
                seen[pipeline.name].judge_pointer(await raw.get(layout.pointer_key(pipeline.name)))
                cells = chance.sample(range(CELLS), chance.choice(KEYS))
                await _ask_service(service, pipeline, cells, seen[pipeline.name])
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        stop.set()
        await raw.aclose()
        await service.close()


async def _ask_service(service: Service, pipeline: Pipeline, cells: list[int], seen: Seen) -> None:
    try:
        outcome = await service.lookup(pipeline, cells, None)
    except NothingAnswers as error:
        seen.nothing(str(error))
        return
    for reason in (*outcome.reasons, *outcome.doubts):
        if reason.startswith(GAPS):
            seen.say(f"epoch {outcome.reading.epoch}: {reason}")
    settled = [outcome.settled(cell) for cell in cells]
    answers = [
        (one.candidate.generation, one.candidate.values["value"])
        for one in settled
        if isinstance(one, Answer) and one.candidate is not None
    ]
    seen.judge(outcome.reading.epoch, len(cells), answers, outcome.place)


async def _read_outside(
    names: list[str], url: str, stop: asyncio.Event, chance: random.Random, seen: dict[str, Seen]
) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=HTTP_SECONDS_MAX, trust_env=False) as client:
        while not stop.is_set():
            for name in names:
                await _ask_over_http(client, name, chance.sample(range(CELLS), chance.choice(KEYS)), seen[name])
            await asyncio.sleep(HTTP_PAUSE_SECONDS)


async def _ask_over_http(client: httpx.AsyncClient, name: str, cells: list[int], seen: Seen) -> None:
    if len(cells) == 1:
        response = await client.get(f"/v1/{name}/entities/{cells[0]}")
    else:
        response = await client.post(f"/v1/{name}/entities:lookup", json={"entities": cells})
    body = response.json()
    if response.status_code == UNAVAILABLE and body["type"].endswith("no-place"):
        seen.nothing(body["detail"])
    elif response.status_code == OK:
        found = body.get("answers", [body])
        answers = [(one["generation"], one["outputs"]["value"]["value"]) for one in found]
        seen.judge(body["epoch"], len(cells), answers, f"{found[0]['place']} over HTTP")
    elif seen.epoch:
        seen.say(f"after epoch {seen.epoch}: {response.status_code} {response.text[:300]}")
