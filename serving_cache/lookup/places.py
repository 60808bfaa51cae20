"""A place: where a candidate's bytes come from. What one must offer, how long it may take, how it may fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from almanac.ladder import Candidates
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from serving_cache.lookup.breaker import Breaker

logger = logging.getLogger(__name__)
T = TypeVar("T")

SECONDS_PER_ENTITY = 0.0005  # added to a place's limit for each entity after the first
LATE_SHARE = 1.2  # a timer that fires so much later than set shows that the event loop was busy


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
    """The place did not answer; asking again soon is of no use."""


class PlaceUnusable(Exception):
    """The place answered, but not with what it should hold."""


class Place(Protocol):
    """One store, read asynchronously. Raises PlaceDown or PlaceUnusable."""

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
        """Await one call of the place, about so many entities: each of them adds to the time limit.

        Raises:
            PlaceDown: it took too long, failed, or failed so often lately that it was not asked.
            PlaceUnusable: it answered with something else than it should hold.
        """
        loop = asyncio.get_running_loop()
        if not self.breaker.allows(loop.time()):
            if asyncio.iscoroutine(call):
                call.close()
            raise PlaceDown(self.breaker.why)
        task: asyncio.Future[T] = asyncio.ensure_future(call)
        limit = self.place.limit_seconds + (entities - 1) * SECONDS_PER_ENTITY
        began = loop.time()
        # Not `wait_for`: that waits for the cancelled call to end, and a driver's clean-up may hang with its server.
        await asyncio.wait({task}, timeout=limit)
        if not task.done() and loop.time() - began > limit * LATE_SHARE:
            await asyncio.wait({task}, timeout=limit)  # this process was late itself: that is not the place's fault
        if not task.done():
            self._abandon(task)
            raise self._down(f"{self.name} did not answer within {limit * 1000:.0f} ms")
        try:
            found = task.result()
        except PlaceDown as error:
            raise self._down(str(error)) from None
        except PlaceUnusable:
            self._up()
            raise
        except Exception as error:
            # A reader's mistake about one place must not silence the others: the lookup keeps answering.
            logger.exception("%s could not be read", self.name)
            raise PlaceUnusable(f"{self.name} could not be read ({type(error).__name__})") from None
        self._up()
        return found

    def _up(self) -> None:
        if self.breaker.succeeded():
            logger.info("%s answers again", self.name)

    def _down(self, why: str) -> PlaceDown:
        if not self.breaker.why:
            logger.warning("%s", why)
        self.breaker.failed(why, asyncio.get_running_loop().time())
        return PlaceDown(why)

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
