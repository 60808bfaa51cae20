"""One connection to Postgres: opened when first needed, with time limits, its errors turned into ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from almanac.closing import Closing
from almanac.errors import AlmanacError, BlockError, Unavailable, UsageError
from almanac.postgres_url import postgres_address

CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_SECONDS = 60
LOCK_TIMEOUT_SECONDS = 10
IDLE_IN_TRANSACTION_SECONDS = 60
USER_TIMEOUT_SECONDS = 15
PING_AFTER_IDLE_SECONDS = 1.0

Connection = psycopg.Connection[TupleRow]

_UNDEFINED_TABLE = "42P01"
_UNDEFINED_COLUMN = "42703"
_TRANSIENT_CLASSES = ("08", "40", "53", "55", "57", "58", "XX")
_READ_ONLY = "25006"
"""A standby, or a server that its operator set read-only: that passes."""


def described(url: str) -> str:
    """host:port/database of a URL: for messages, without its password.

    Raises:
        UsageError: it is no Postgres URL, or may not say what was meant.
    """
    return postgres_address(url).where


def with_limits(url: str) -> str:
    """A connection string with every time limit set; the URL's own options come after ours.

    Raises:
        UsageError: the URL cannot be read.
    """
    seconds = {
        "statement_timeout": STATEMENT_TIMEOUT_SECONDS,
        "lock_timeout": LOCK_TIMEOUT_SECONDS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_SECONDS,
    }
    options = [f"-c {name}={value}s" for name, value in seconds.items()]
    given = postgres_address(url).parameters.get("options")
    return make_conninfo(
        url,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        tcp_user_timeout=USER_TIMEOUT_SECONDS * 1000,
        application_name="almanac",
        options=" ".join([*options, *([str(given)] if given else []), "-c timezone=UTC"]),
    )


def translated(error: Exception, sqlstate: str | None, where: str) -> AlmanacError:
    """Our error for a driver's: `Unavailable` if a retry may help."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if sqlstate in (_UNDEFINED_TABLE, _UNDEFINED_COLUMN):
        return UsageError(
            f"the database at {where} lacks a table or column ({first}): run `python -m serving_cache.migrate`"
        )
    unsendable = sqlstate is None and isinstance(error, psycopg.DataError)  # such as NUL in text: never sent
    if not unsendable and (sqlstate is None or sqlstate == _READ_ONLY or sqlstate[:2] in _TRANSIENT_CLASSES):
        return Unavailable(f"Postgres at {where} did not answer ({first}): retry, or look at `almanac status`")
    return BlockError(f"Postgres at {where} refused what was written ({first}); nothing of it was stored")


class Client(Closing):
    """One connection for one process; threads take turns.

    A pool would not help: batch steps and sinks write one thing at a time, and
    a pool keeps a caller waiting while it reconnects where this one fails at once.
    """

    def __init__(self, url: str) -> None:
        self.where = described(url)
        self.conninfo = with_limits(url)
        self._connection: Connection | None = None
        self._used = 0.0
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def query(self, statement: Any, parameters: Any = None) -> list[Any]:
        """Run one statement outside a transaction and return its rows.

        A connection that the server ended while it was idle is replaced, once: the
        server says so (57P01) in place of the statement's result, so nothing of it was done.
        """
        with self.session() as connection:
            try:
                cursor = connection.execute(statement, parameters)
            except psycopg.errors.AdminShutdown:
                cursor = self._open().execute(statement, parameters)
            return cursor.fetchall() if cursor.description is not None else []

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """The connection, in autocommit, for this thread alone.

        Raises:
            Unavailable: Postgres does not answer, or not in time.
            UsageError: a table is missing.
        """
        with self._lock:
            try:
                connection = self._open()
                yield connection
            except psycopg.Error as error:
                if self._connection is not None and (
                    self._connection.closed or isinstance(error, psycopg.InterfaceError)
                ):
                    self.close()
                raise translated(error, error.sqlstate, self.where) from error
            finally:
                self._used = time.monotonic()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """The connection in a transaction: committed at the end, rolled back by any error."""
        with self.session() as connection, connection.transaction():
            yield connection

    def _open(self) -> Connection:
        found = self._connection
        if found is not None and not found.closed and time.monotonic() - self._used > PING_AFTER_IDLE_SECONDS:
            try:  # the server may have been restarted meanwhile: notice that before the caller's statement does
                found.execute("SELECT 1")
            except psycopg.Error:
                found.close()
        if found is None or found.closed:
            found = self._connection = psycopg.connect(self.conninfo, autocommit=True)
        return found
