"""Reads of one pipeline that wait for their turn are made together: a crowd of callers asks a store few questions.

Up to `READS_AT_ONCE` reads are under way; who comes meanwhile joins the next one, which begins after he came. So no
caller gets an answer that is older than his question, and with few callers nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass, field

from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from serving_cache.lookup.places import PlaceDown, PlaceUnusable, Reading

READS_AT_ONCE = 4  # of one pipeline
ENTITIES_MAX = 1_000  # in one read of several callers

Read = Callable[[Pipeline, Sequence[EntityKey]], Awaitable[Reading]]


@dataclass
class _Asked:
    """One caller's question, and the answer that he waits for."""

    entities: Sequence[EntityKey]
    answer: asyncio.Future[Reading]


@dataclass
class _Line:
    """One pipeline's reads under way, and who waits for the next."""

    under_way: int = 0
    waiting: list[_Asked] = field(default_factory=list)


class Batches:
    """Reads through `read`, several callers at a time.

    Args:
        read: reads a place; may raise what it likes, and every caller of that read gets it.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lines: dict[str, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
        """What `read` returns of these entities. The caller may be cancelled at any moment."""
        asked = _Asked(entities, asyncio.get_running_loop().create_future())
        line = self._lines.setdefault(pipeline.name, _Line())
        line.waiting.append(asked)
        if line.under_way < READS_AT_ONCE:
            self._begin(pipeline, line)
        return await asked.answer

    def _begin(self, pipeline: Pipeline, line: _Line) -> None:
        line.under_way += 1
        task = asyncio.get_running_loop().create_task(self._work(pipeline, line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, pipeline: Pipeline, line: _Line) -> None:
        """Read for those who wait, until nobody does."""
        try:
            while batch := _next(line):
                await self._answer(pipeline, batch)
        finally:
            line.under_way -= 1

    async def _one_by_one(self, pipeline: Pipeline, batch: Sequence[_Asked]) -> None:
        """Read for each caller alone: one caller's entity must not cost the others their answer.

        Who left meanwhile is not read for, and where the place is down all who are left are told so at once: else a
        crowd whose read was unusable would hold its turn for as many time limits as it has callers.
        """
        for at, asked in enumerate(batch):
            if asked.answer.done():
                continue
            await self._answer(pipeline, [asked])
            error = asked.answer.exception() if asked.answer.done() and not asked.answer.cancelled() else None
            if isinstance(error, PlaceDown):
                for other in batch[at + 1 :]:
                    _fail(other, error)
                return

    async def _answer(self, pipeline: Pipeline, batch: Sequence[_Asked]) -> None:
        together = list(dict.fromkeys(entity for asked in batch for entity in asked.entities))
        try:
            reading = await self._read(pipeline, together)
        except PlaceUnusable as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            await self._one_by_one(pipeline, batch)
        except asyncio.CancelledError:
            for asked in batch:
                asked.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            for asked in batch:
                _fail(asked, error)
        else:
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_result(reading if len(batch) == 1 else _part(reading, asked.entities))


def _next(line: _Line) -> list[_Asked]:
    """Those whose turn it is: as many as are read at once, without those who have gone."""
    batch: list[_Asked] = []
    count = taken = 0
    for asked in line.waiting:
        if batch and count + len(asked.entities) > ENTITIES_MAX:
            break
        taken += 1
        if not asked.answer.done():
            batch.append(asked)
            count += len(asked.entities)
    del line.waiting[:taken]
    return batch


def _part(reading: Reading, entities: Sequence[EntityKey]) -> Reading:
    chosen = {entity: reading.entities[entity] for entity in entities}
    return Reading(epoch=reading.epoch, entities=chosen, clock_shifts=reading.clock_shifts)


def _fail(asked: _Asked, error: Exception) -> None:
    """Give a caller an exception of his own: a traceback grows with each who raises the same one."""
    if not asked.answer.done():
        asked.answer.set_exception(copy(error))
