"""Connections to Postgres for readers that give up: a bounded number, none of which is ever lost.

`psycopg_pool` takes a connection back by awaiting a lock in the task that borrowed it; a task that is cancelled there
leaves the connection counted as lent for ever. Here no caller's task holds a connection: a read runs in a task of its
own, which ends by itself, and a caller who goes away only stops waiting for it.

A pooled connection tells only when it is used that its server has gone. One that is found dead speaks for all that were
opened before it: they are closed, and the read is tried again on a new one while its time lasts. That is safe, for the
connections are read-only. One that stays silent speaks for all that are idle, too: a firewall that forgot one of them
forgot the others, and each would cost a caller the whole limit.

Time in this process's own queue is not Postgres's: the wait for a free connection has a limit of its own, and a
statement whose answer has come but was not read yet is waited for again.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from serving_cache.lookup.places import PlaceBusy, PlaceDown, caught_up

CONNECTIONS_MAX = 8
WAITING_MAX = 256  # reads that may queue for a connection
QUEUE_SECONDS_MAX = 1.0  # of one read, for a free connection
IDLE_SECONDS_MAX = 60.0  # a connection unused for longer is replaced: a firewall may have dropped it without a word
RETRY_SECONDS = 0.05  # between two attempts
ATTEMPTS_MIN = 3  # however late this process is: a dead connection, its replacement, and one more
LATE_SHARE = 0.1  # of the limit, by which this process may wake up late and still believe that Postgres was silent
LATE_ROUNDS_MAX = 5  # times that a statement is waited for again because its answer lies unread
CUT_OFF_SECONDS_MAX = 1.0  # for a call that was given up to end

T = TypeVar("T")
Statement = LiteralString | sql.Composed

_STALE = (
    psycopg.errors.AdminShutdown,
    psycopg.errors.CrashShutdown,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.IdleSessionTimeout,
    psycopg.errors.InvalidSqlStatementName,  # a prepared statement that the server no longer knows
    psycopg.errors.FeatureNotSupported,  # one whose columns a migration changed
)
"""What a connection says that is of no further use, though Postgres is."""


class _Dead(Exception):
    """A connection that is of no further use."""


class _Silent(PlaceDown):
    """Postgres said nothing for as long as it may, and this process was not late to listen."""


class Lent:
    """A connection while one read has it.

    Args:
        limit_seconds: how long a statement may go without an answer.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], limit_seconds: float) -> None:
        self._connection = connection
        self._limit = limit_seconds

    async def rows(self, statement: Statement, values: Mapping[str, object] | None = None) -> list[Any]:
        """The rows of one statement.

        Raises:
            PlaceDown: no answer came in time; the connection is closed.
            psycopg.Error: the answer is an error.
        """
        task = asyncio.ensure_future(self._rows(statement, values))
        for _ in range(LATE_ROUNDS_MAX):
            await asyncio.wait({task}, timeout=self._limit)
            if await caught_up(task) or not self._unread():
                break
        if not task.done():
            await _cut_off(task)
            await self._connection.close()
            raise _Silent(f"postgres did not answer within {self._limit * 1000:.0f} ms")
        return task.result()

    async def _rows(self, statement: Statement, values: Mapping[str, object] | None) -> list[Any]:
        cursor = await self._connection.execute(statement, values)
        return await cursor.fetchall()

    def _unread(self) -> bool:
        """Whether bytes have come that this process did not read yet: then the time was lost here, not there."""
        poller = select.poll()
        try:
            poller.register(self._connection.fileno(), select.POLLIN)
        except psycopg.OperationalError:  # it is closed
            return False
        return bool(poller.poll(0))


Ask = Callable[[Lent], Awaitable[T]]


@dataclass
class _Pooled:
    """A connection, and when it was opened and last used, by the event loop's clock."""

    connection: psycopg.AsyncConnection[Any]
    opened_at: float
    used_at: float


@dataclass
class _Loan:
    """One read, and whether it has its connection: until then it can be cancelled with its caller."""

    begun: bool = False


class Connections:
    """At most `CONNECTIONS_MAX` connections, each lent to one read at a time, the last used first.

    Args:
        conninfo: of libpq; should make sessions read-only.
        limit_seconds: how long a statement may go without an answer, and for how long a read is tried again.
    """

    def __init__(self, conninfo: str, limit_seconds: float) -> None:
        self._conninfo = conninfo
        self._limit = limit_seconds
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        self._queued = 0
        self._idle: list[_Pooled] = []
        self._expired_at = 0.0  # what was opened before is not used again
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run(self, ask: Ask[T], extra_seconds: float = 0.0) -> T:
        """What `ask` returns of a connection. The caller may be cancelled at any moment.

        Args:
            extra_seconds: allowed to each statement above the limit.

        Raises:
            PlaceBusy: no connection came free in time.
            PlaceDown: Postgres cannot be reached, or did not answer in time.
            psycopg.Error: it answered with an error that another attempt does not mend.
        """
        loan = _Loan()
        task = asyncio.get_running_loop().create_task(self._queue(ask, loan, self._limit + extra_seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not loan.begun:
                task.cancel()
            raise

    async def close(self) -> None:
        """Close all connections; what is being read ends without an answer."""
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_OFF_SECONDS_MAX)
        await self._expire(asyncio.get_running_loop().time())

    async def _queue(self, ask: Ask[T], loan: _Loan, limit: float) -> T:
        """Wait for a slot, then read."""
        if self._closed:
            raise PlaceDown("postgres is not asked any more: this process is stopping")
        if self._queued >= WAITING_MAX:
            raise PlaceBusy(f"{WAITING_MAX} requests wait for a connection to postgres")
        self._queued += 1
        try:
            async with asyncio.timeout(QUEUE_SECONDS_MAX):
                await self._slots.acquire()
        except TimeoutError:
            raise PlaceBusy(
                f"none of {CONNECTIONS_MAX} connections to postgres came free within {QUEUE_SECONDS_MAX * 1000:.0f} ms"
            ) from None
        finally:
            self._queued -= 1
        loan.begun = True
        try:
            return await self._tried(ask, limit)
        finally:
            self._slots.release()

    async def _tried(self, ask: Ask[T], limit: float) -> T:
        """Read; on a new connection where one is found dead, until the time is up."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._limit
        attempts = 0
        while True:
            attempts += 1
            pause = 0.0
            try:
                return await self._used(await self._taken(), ask, limit)
            except _Dead as error:
                why = str(error)
            except psycopg.errors.QueryCanceled:
                raise PlaceDown("postgres did not answer in time") from None
            except psycopg.OperationalError as error:
                why, pause = _first_line(error), RETRY_SECONDS
            if attempts > 1:
                pause = RETRY_SECONDS  # nobody opens connections as fast as they are ended
            if attempts >= ATTEMPTS_MIN and loop.time() + pause > give_up_at:
                raise PlaceDown("postgres cannot be reached", why)
            await asyncio.sleep(pause)

    async def _used(self, pooled: _Pooled, ask: Ask[T], limit: float) -> T:
        """Read on this connection, and keep it for the next one unless it is of no further use."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await ask(Lent(pooled.connection, limit))
        except psycopg.Error as error:
            if isinstance(error, _STALE) or pooled.connection.closed:
                await pooled.connection.close()
                await self._expire(began)
                raise _Dead(_first_line(error)) from None
            raise
        except _Silent:
            await self._expire(began)
            raise
        finally:
            pooled.used_at = loop.time()
            idle = pooled.connection.info.transaction_status is TransactionStatus.IDLE
            if not idle or self._closed or pooled.opened_at <= self._expired_at:
                await pooled.connection.close()
            else:
                self._idle.append(pooled)

    async def _taken(self) -> _Pooled:
        """The connection that was used last, or a new one."""
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS_MAX
        while self._idle and self._idle[0].used_at < oldest:
            await self._idle.pop(0).connection.close()
        while self._idle:
            pooled = self._idle.pop()
            if not pooled.connection.closed:
                return pooled
        return await self._opened()

    async def _opened(self) -> _Pooled:
        """A new connection.

        Raises:
            psycopg.OperationalError: Postgres refuses it, or this process was too late to hear its answer.
            PlaceDown: Postgres did not answer, so that the limit is used up.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        task = loop.create_task(psycopg.AsyncConnection.connect(self._conninfo, autocommit=True))
        await asyncio.wait({task}, timeout=self._limit)
        if not await caught_up(task):
            task.add_done_callback(_close_late)
            late = loop.time() - began - self._limit
            await _cut_off(task)
            why = f"no connection within {self._limit * 1000:.0f} ms"
            if late > self._limit * LATE_SHARE:
                raise psycopg.OperationalError(why)
            raise PlaceDown("postgres cannot be reached", why)
        return _Pooled(task.result(), began, began)

    async def _expire(self, before: float) -> None:
        """Close connections that were opened before: those at hand now, those that are lent when they come back."""
        self._expired_at = max(self._expired_at, before)
        idle, self._idle = self._idle, []
        for pooled in idle:
            if pooled.opened_at <= before:
                await pooled.connection.close()
            else:
                self._idle.append(pooled)


async def _cut_off(task: asyncio.Future[Any]) -> None:
    """Cancel a call of the driver and wait for its end.

    The driver answers the first cancellation by asking the server to end the statement, which may hang with the
    server; a second one makes it close the connection at once.
    """
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.wait({task}, timeout=CUT_OFF_SECONDS_MAX)
    if task.done() and not task.cancelled():
        task.exception()  # it is of no interest any more


def _close_late(task: asyncio.Task[psycopg.AsyncConnection[Any]]) -> None:
    """Close a connection that opened after it was given up."""
    if not task.cancelled() and task.exception() is None:
        task.result().pgconn.finish()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
