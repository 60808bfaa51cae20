"""A place: where a candidate's bytes come from. What one must offer, how long it may take, how it may fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from almanac.ladder import Candidates
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from serving_cache.lookup.breaker import Breaker

logger = logging.getLogger(__name__)
T = TypeVar("T")

SECONDS_PER_ENTITY = 0.0005  # added to a place's limit for each entity after the first
OWN_SECONDS_MAX = 2.0  # of one call, in this process's own queue
OK, BUSY = "ok", "busy: "
"""A place's state, and what a state begins with in which only this process is at its limit."""
ROUNDS_HEARD = 20  # rounds of the event loop in which late answers are read before a store is called silent
TRIPS_MAX = 4  # of one call to its store, each of which has the place's limit


@dataclass(frozen=True, kw_only=True)
class EntityReading:
    """One entity as a place knows it.

    Args:
        candidates: for the ladder.
        gap: what the place should hold of the current generation for this entity but does not; None if whole.
        previous_gap: the same for the previous generation.
        covered: whether the current generation has the entity's partition at all.
    """

    candidates: Candidates
    gap: str | None = None
    previous_gap: str | None = None
    covered: bool = True


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a place knows of some entities at one epoch: the pointer was read once for all of them.

    Args:
        epoch: the pointer's; 0 when no generation is published.
        clock_shifts: generation to seconds by which its replayed observations were moved; only where not 0.
    """

    epoch: int
    entities: Mapping[EntityKey, EntityReading]
    clock_shifts: Mapping[int, float] = field(default_factory=dict)


class PlaceDown(Exception):
    """The place did not answer; asking again soon is of no use.

    Args:
        why: for answers.
        detail: for the log, where more is known.
    """

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(why)
        self.detail = detail


class PlaceBusy(PlaceDown):
    """This process had too much to do to ask the place, or to hear its answer: nothing is wrong with the place."""


class PlaceUnusable(Exception):
    """The place answered, but not with what it should hold."""


class Place(Protocol):
    """One store, read asynchronously. Raises PlaceDown, PlaceBusy or PlaceUnusable; a caller may be cancelled.

    `limit_seconds` is how long its store may go without an answer. The place counts it from when the store was asked:
    time that a call waits in this process is not the store's.
    """

    name: str
    limit_seconds: float

    async def read(self, pipeline: Pipeline, entities: Sequence[EntityKey]) -> Reading:
        """Everything known about these entities, of one epoch."""

    async def current(self, pipeline: Pipeline) -> dict[str, object] | None:
        """The current generation's record as JSON values, with its epoch; None while none is published."""

    async def check(self) -> None:
        """Return if the place answers."""

    async def close(self) -> None:
        """Give connections back."""


class Limited(Protocol):
    """What `Guarded` needs to know."""

    name: str
    limit_seconds: float


PlaceT = TypeVar("PlaceT", bound=Limited)


async def caught_up(task: asyncio.Future[Any]) -> bool:
    """Whether a call that is late ends once the event loop has read what came while it was busy elsewhere."""
    for _ in range(ROUNDS_HEARD):
        if task.done():
            break
        await asyncio.sleep(0)
    return task.done()


class Guarded(Generic[PlaceT]):
    """A place (or what is read like one) behind its time limit and its circuit breaker."""

    def __init__(self, place: PlaceT) -> None:
        self.place = place
        self.breaker = Breaker()
        self._abandoned: set[asyncio.Task[object]] = set()

    @property
    def name(self) -> str:
        """The place's name."""
        return self.place.name

    async def ask(self, call: Awaitable[T], entities: int = 1) -> T:
        """Await one call of the place, about so many entities. The caller may be cancelled at any moment.

        Raises:
            PlaceDown: the store did not answer, or failed so often lately that it was not asked.
            PlaceBusy: this process had too much to do.
            PlaceUnusable: it answered with something else than it should hold.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        if not self.breaker.allows(began):
            if asyncio.iscoroutine(call):
                call.close()
            raise PlaceDown(self.breaker.why)
        try:
            found = await self._patiently(call, entities)
        except PlaceBusy:  # which says nothing of the place
            raise
        except PlaceDown as error:
            if self.breaker.failed(str(error), loop.time(), began):
                logger.warning("%s%s", error, f" ({error.detail})" if error.detail else "")
            raise PlaceDown(str(error)) from None
        except PlaceUnusable:
            self._up()
            raise
        except Exception as error:
            # A reader's mistake about one place must not silence the others: the lookup keeps answering.
            logger.exception("%s could not be read", self.name)
            raise PlaceUnusable(f"{self.name} could not be read ({type(error).__name__})") from None
        self._up()
        return found

    async def state(self, call: Awaitable[object]) -> str:
        """`ok`, `busy: …`, or what is wrong, by one call of the place: whether the breaker is open or not."""
        try:
            await self._patiently(call, 1)
        except PlaceBusy as error:
            return f"{BUSY}{error}"
        except (PlaceDown, PlaceUnusable) as error:
            return str(error)
        return OK

    async def _patiently(self, call: Awaitable[T], entities: int) -> T:
        """Await a call, which is cut off with its caller.

        The place itself keeps its store to the time limit, for it knows when the store was asked. Here is only the
        end of all patience, which says nothing against the store.
        """
        task: asyncio.Future[T] = asyncio.ensure_future(call)
        limit = OWN_SECONDS_MAX + TRIPS_MAX * (self.place.limit_seconds + (entities - 1) * SECONDS_PER_ENTITY)
        try:
            # Not `wait_for`: that waits for the cancelled call to end, and a driver may hang with its server.
            await asyncio.wait({task}, timeout=limit)
        finally:
            if not task.done():
                self._abandon(task)
            elif not task.cancelled():
                task.exception()  # or it is logged as never looked at, where the caller is cancelled just now
        if not task.done():
            raise PlaceBusy(f"this process had too much to do to read {self.name} within {limit * 1000:.0f} ms")
        return task.result()

    def _up(self) -> None:
        if self.breaker.succeeded(asyncio.get_running_loop().time()):
            logger.info("%s answers again", self.name)

    def _abandon(self, task: asyncio.Future[T]) -> None:
        """Cancel a late call without waiting for it; its outcome no longer matters."""
        task.cancel()
        kept: asyncio.Task[object] = task  # type: ignore[assignment]
        self._abandoned.add(kept)
        kept.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()
