"""One connection to Redis that all readers of a process share: commands go out together, answers come back in order.

Redis answers the commands of a connection in their order, so that each answer is known by its place in the line. A
caller who goes away leaves his place in it: his answer is read and dropped, and the next one gets his own.

Whether Redis is silent is seen here, from the moment that a command was written: time that a command waits for its
turn is not counted, and before Redis is called silent this process reads what came while it was busy elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections import deque
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import AbstractConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from almanac.redis_url import redis_address
from serving_cache.lookup.places import ROUNDS_HEARD, SECONDS_PER_ENTITY, PlaceBusy, PlaceDown, caught_up

CONNECT_SECONDS_MAX = 0.5  # with TLS, the password and the database's number
IDLE_SECONDS_MAX = 60.0  # an older connection is replaced: a firewall may have dropped it without a word
WAITING_MAX = 2_048  # exchanges that wait for their turn
WINDOW_ENTITIES = 500  # asked about and not answered yet; further exchanges wait, but one may be larger by itself
TRIES_MAX = 2  # of one exchange: its connection may have died with the server that it was made to
KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}  # seconds, seconds, probes

Command = tuple[Any, ...]
_CLASSES: dict[str, type[AbstractConnection]] = {
    "tcp": Connection,
    "tls": SSLConnection,
    "unix": UnixDomainSocketConnection,
}
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Exchange:
    """Some commands of one caller and their answers so far.

    Args:
        packed: the commands' bytes; `commands`: their number; `entities`: the number that they are about.
        allowed: seconds that Redis may take; `due`: when they are over, by the event loop's clock.
    """

    packed: list[bytes]
    commands: int
    entities: int
    outcome: asyncio.Future[list[Any]]
    answers: list[Any] = field(default_factory=list)
    tries: int = 0
    allowed: float = 0.0
    due: float = math.inf


class _Ended(Exception):
    """The connection is of no further use, though Redis may be: what was asked is asked again on another.

    Args:
        why: what ended it, for the log.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)


class RedisLink:
    """Asks Redis for all callers of one event loop; connects when first asked, and again when need be.

    Args:
        url: redis:// URL.
        limit_seconds: how long Redis may take to answer one exchange.

    Raises:
        UsageError: the URL cannot be read.
    """

    def __init__(self, url: str, *, limit_seconds: float) -> None:
        address = redis_address(url).need_files()
        self._kind = _CLASSES[address.kind]
        self._options = {
            **address.connection(),
            "protocol": 2,
            "client_name": "almanac-lookup",
            "socket_connect_timeout": CONNECT_SECONDS_MAX,
            "socket_timeout": None,  # `_watch` tells silence from idleness
            "retry": Retry(NoBackoff(), 0),
        }
        if issubclass(self._kind, Connection):  # not over a socket in the file system
            self._options |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
        self._packer = self._kind(**self._options)
        self._limit = limit_seconds
        self._unsent: deque[_Exchange] = deque()
        self._sent: deque[_Exchange] = deque()
        self._asked_about = 0  # entities in `_sent`
        self._room = asyncio.Event()  # something may be sent
        self._some_sent = asyncio.Event()
        self._answered_at = 0.0
        self._life: asyncio.Task[None] | None = None
        self._closed = False

    async def ask(self, *commands: Command, entities: int = 1) -> list[Any]:
        """Redis's answers in the commands' order. The caller may be cancelled at any moment.

        Raises:
            PlaceDown: Redis cannot be reached, or did not answer in time.
            PlaceBusy: too much waits in this process already.
            ResponseError: an answer is an error.
        """
        if self._closed:
            raise PlaceDown("redis is not asked any more: this process is stopping")
        if len(self._unsent) >= WAITING_MAX:
            raise PlaceBusy(f"{WAITING_MAX} requests wait to ask redis")
        loop = asyncio.get_running_loop()
        packed = self._packer.pack_commands(commands)  # here, so that a mistake in it is this caller's alone
        exchange = _Exchange(packed, len(commands), entities, loop.create_future())
        self._unsent.append(exchange)
        self._room.set()
        if self._life is None or self._life.done():
            self._life = loop.create_task(self._live())
        answers = await exchange.outcome
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return answers

    async def close(self) -> None:
        """Close the connection; what is being asked ends without an answer."""
        self._closed = True
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})

    async def _live(self) -> None:
        """Connections one after the other, for as long as somebody waits for an answer."""
        why = PlaceDown("redis is not asked any more: this process is stopping")
        try:
            while True:
                try:
                    await self._connection()
                except _Ended as error:
                    self._sent_again(str(error))
                except PlaceDown as error:
                    why = error
                    return
                except Exception as error:
                    logger.exception("redis could not be read")
                    why = PlaceDown(f"redis could not be read ({type(error).__name__})")
                    return
                if not self._unsent:
                    return
        finally:
            self._fail(why)

    async def _connection(self) -> None:
        """One connection from its opening to its end, which always comes as an exception.

        Raises:
            PlaceDown: Redis cannot be reached, or is silent.
            _Ended: it was closed, or was idle for so long that it is not trusted.
        """
        connection = self._kind(**self._options)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._open(connection)
            loop = asyncio.get_running_loop()
            self._answered_at = loop.time()
            parts = (self._send(connection), self._receive(connection), self._watch())
            tasks = [loop.create_task(part) for part in parts]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (RedisError, OSError) as error:
            raise _Ended(" ".join(str(error).split()) or type(error).__name__) from error
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # also when cancelled once more meanwhile, as by a loop that ends
                await connection.disconnect(nowait=True)

    async def _open(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        opening = loop.create_task(connection.connect())  # type: ignore[no-untyped-call]
        try:
            await asyncio.wait({opening}, timeout=CONNECT_SECONDS_MAX)
            if not await caught_up(opening):
                raise PlaceDown("redis cannot be reached", f"no connection within {CONNECT_SECONDS_MAX * 1000:.0f} ms")
            opening.result()
        except (RedisError, OSError) as error:
            raise PlaceDown("redis cannot be reached", str(error)) from None
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)

    async def _send(self, connection: AbstractConnection) -> None:
        """Write what waits, everything of one round of the event loop at once, as far as the window has room."""
        loop = asyncio.get_running_loop()
        while True:
            await self._room.wait()
            self._room.clear()
            if not self._sent and loop.time() - self._answered_at > IDLE_SECONDS_MAX:
                raise _Ended("it was idle for long")
            while batch := self._next():
                packed = list(chain.from_iterable(exchange.packed for exchange in batch))
                self._count_from(loop.time(), batch)
                await connection.send_packed_command(packed, check_health=False)
                await asyncio.sleep(0)  # uvloop hands bytes to the socket at the end of its round
                self._count_from(loop.time(), batch)

    def _count_from(self, now: float, batch: list[_Exchange]) -> None:
        for exchange in batch:
            exchange.due = now + exchange.allowed
        self._some_sent.set()

    def _next(self) -> list[_Exchange]:
        """What is sent next; it stands in `_sent` already."""
        batch: list[_Exchange] = []
        while self._unsent:
            exchange = self._unsent[0]
            if exchange.outcome.done():  # its caller went away
                self._unsent.popleft()
                continue
            if self._sent and self._asked_about + exchange.entities > WINDOW_ENTITIES:
                break
            self._unsent.popleft()
            exchange.tries += 1
            exchange.answers.clear()
            self._asked_about += exchange.entities
            exchange.allowed = self._limit + (self._asked_about - 1) * SECONDS_PER_ENTITY
            exchange.due = math.inf  # until it is written
            self._sent.append(exchange)
            batch.append(exchange)
        return batch

    async def _receive(self, connection: AbstractConnection) -> None:
        """Give each answer to the exchange whose turn it is."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                answer = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except ResponseError as error:
                answer = error
            if not self._sent:
                raise _Ended("it answered though nothing was asked")  # the answers' order is not known any more
            self._answered_at = loop.time()
            exchange = self._sent[0]
            exchange.answers.append(answer)
            if len(exchange.answers) == exchange.commands:
                self._sent.popleft()
                self._asked_about -= exchange.entities
                self._room.set()
                if not exchange.outcome.done():
                    exchange.outcome.set_result(exchange.answers)

    async def _watch(self) -> None:
        """Notice that Redis is silent.

        Raises:
            PlaceDown: it is.
        """
        loop = asyncio.get_running_loop()
        while True:
            if not self._sent:
                self._some_sent.clear()
                await self._some_sent.wait()
                continue
            first = self._sent[0]
            pause = first.due - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
                continue
            for _ in range(ROUNDS_HEARD):  # what came while this process was busy elsewhere is read now
                await asyncio.sleep(0)
            if self._sent and self._sent[0] is first:
                raise PlaceDown(f"redis did not answer within {self._limit * 1000:.0f} ms")

    def _sent_again(self, why: str) -> None:
        """Put what was sent before what waits, but what has had its tries."""
        while self._sent:
            exchange = self._sent.pop()
            if exchange.tries < TRIES_MAX:
                self._unsent.appendleft(exchange)
            elif not exchange.outcome.done():
                exchange.outcome.set_exception(
                    PlaceDown("redis cannot be reached", f"the connection ended twice: {why}")
                )
        self._asked_about = 0
        self._room.set()

    def _fail(self, why: PlaceDown) -> None:
        """Tell everybody who waits."""
        for exchange in chain(self._sent, self._unsent):
            if not exchange.outcome.done():
                exchange.outcome.set_exception(PlaceDown(str(why), why.detail))
        self._sent.clear()
        self._unsent.clear()
        self._asked_about = 0
