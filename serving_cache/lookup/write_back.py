"""Fresh predictions on their way back into the stores: once each, after the answer, never in its way.

Postgres first and then Redis, as the stream's sinks do. A Postgres that is down
takes nothing, and Redis is then not written either: it holds nothing that
cannot be rebuilt from Postgres. What was not written is forgotten; the next
lookup of the entity computes it again. What Redis did not take, the reconciler
brings.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from threading import Thread
from typing import Any, Protocol, TypeVar

from almanac import metrics
from almanac.errors import AlmanacError
from serving_cache.lookup.breaker import Breaker
from serving_cache.records import OverlayRecord

logger = logging.getLogger(__name__)

WAITING_MAX = 20_000  # predictions; beyond it the oldest are dropped
WRITTEN_KNOWN_MAX = 50_000  # predictions that are known to be written
BATCH_MAX = 1_000
CLOSE_SECONDS_MAX = 2.0


class OverlayStore(Protocol):
    """What both stores offer."""

    def put_overlays(self, pipeline: str, records: Sequence[OverlayRecord]) -> int:
        """Put each if it is newer, atomically; returns how many were."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


Stores = Callable[[], tuple[OverlayStore, OverlayStore]]
"""Opens the record and its copy; slow, so called in the thread."""
_Key = tuple[str, str, str]  # pipeline, entity, model
T = TypeVar("T")


class WriteBack:
    """Writes overlays in a thread of its own, batch by batch."""

    def __init__(self, open_stores: Stores) -> None:
        self._open = open_stores
        self._stores: tuple[OverlayStore, OverlayStore] | None = None
        self._waiting: deque[tuple[str, OverlayRecord]] = deque(maxlen=WAITING_MAX)
        self._known: OrderedDict[_Key, datetime] = OrderedDict()
        self._breaker = Breaker()
        self._task: asyncio.Task[None] | None = None

    def offer(self, pipeline: str, records: Sequence[OverlayRecord]) -> None:
        """Take predictions to be written, but those that were already; returns at once."""
        for record in records:
            key = (pipeline, record.entity, record.model)
            if self._known.get(key) == record.as_of:
                continue
            self._known[key] = record.as_of
            self._known.move_to_end(key)
            if len(self._known) > WRITTEN_KNOWN_MAX:
                self._known.popitem(last=False)
            self._waiting.append((pipeline, record))
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def close(self) -> None:
        """Write what is waiting, within `CLOSE_SECONDS_MAX`, and close the stores."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS_MAX)
            if not self._task.done():  # a store hangs: its thread ends with the process
                self._task.cancel()
                return
        for store in self._stores or ():
            with suppress(AlmanacError):
                store.close()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            pipeline = self._waiting[0][0]
            batch: list[OverlayRecord] = []
            while self._waiting and self._waiting[0][0] == pipeline and len(batch) < BATCH_MAX:
                batch.append(self._waiting.popleft()[1])
            why = self._breaker.why or "the stores failed lately"
            if self._breaker.allows(loop.time()):
                try:
                    newer = await in_own_thread(self._write, pipeline, batch)
                    self._breaker.succeeded(loop.time())
                    metrics.FRESH_WRITES.labels(pipeline, "newer").inc(newer)
                    metrics.FRESH_WRITES.labels(pipeline, "not_newer").inc(len(batch) - newer)
                    continue
                except AlmanacError as error:
                    why = str(error)
                except Exception:
                    logger.exception("fresh predictions of %s could not be written", pipeline)
                    why = "an unforeseen error"
                if self._breaker.failed(why, loop.time()):
                    logger.warning("fresh predictions are not written back: %s", why)
            metrics.FRESH_WRITES.labels(pipeline, "failed").inc(len(batch))
            for record in batch:
                self._known.pop((pipeline, record.entity, record.model), None)

    def _write(self, pipeline: str, batch: Sequence[OverlayRecord]) -> int:
        """The record, then its copy; how many were newer than what the record had."""
        if self._stores is None:
            self._stores = self._open()
        record, copy = self._stores
        newer = record.put_overlays(pipeline, batch)
        try:
            copy.put_overlays(pipeline, batch)
        except AlmanacError as error:
            logger.info("Redis did not take %d fresh predictions, the reconciler will: %s", len(batch), error)
        return newer


def in_own_thread(call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """Run a call in a thread that does not keep the process from ending: a store may hang for a minute."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(found: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(found)  # type: ignore[arg-type]

    def run() -> None:
        found: T | None = None
        error: BaseException | None = None
        try:
            found = call(*arguments)
        except Exception as raised:  # noqa: BLE001 - handed to whoever awaits it
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, found, error)

    Thread(target=run, name="almanac-write-back", daemon=True).start()
    return outcome
