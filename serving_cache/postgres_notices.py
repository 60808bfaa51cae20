"""Hearing of the pointer's moves: Postgres tells whoever listens as soon as one is committed."""

from __future__ import annotations

import contextlib
import logging
import time

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from almanac.closing import Closing
from serving_cache.postgres_client import Connection, described, with_limits
from serving_cache.postgres_moves import CHANNEL

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15
KEEPALIVES_MAX = 3
"""A listener sends nothing by itself: without these it would not notice for hours that its server is gone."""


class Notices(Closing):
    """A connection that listens, opened when first needed and again after it broke.

    Notices only make whoever waits look sooner: one that is lost must not matter.

    Args:
        url: postgresql:// URL.

    Raises:
        UsageError: the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._where = described(url)
        self._conninfo = make_conninfo(
            with_limits(url),
            application_name="almanac notices",
            keepalives_idle=KEEPALIVE_SECONDS,
            keepalives_interval=KEEPALIVE_SECONDS,
            keepalives_count=KEEPALIVES_MAX,
        )
        self._connection: Connection | None = None
        self._deaf = False

    def wait(self, seconds: float) -> bool:
        """Wait until a pointer may have moved, or so long; returns whether one may have.

        A connection that was just opened, or has just broken, may have missed something. While none can be had, time
        passes.
        """
        began = time.monotonic()
        if self._connection is None:
            try:
                self._connection = self._listening()
            except psycopg.Error as error:
                if not self._deaf:
                    why = next(iter(str(error).splitlines()), type(error).__name__)
                    log.warning("postgres at %s cannot tell of moves, they are looked for: %s", self._where, why)
                self._deaf = True
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                return False
            self._deaf = False
            return True
        try:
            return any(True for _ in self._connection.notifies(timeout=seconds, stop_after=1))
        except psycopg.Error:
            self.close()
            return True

    def close(self) -> None:
        """Close the connection; waiting again opens another."""
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection = None

    def _listening(self) -> Connection:
        connection = psycopg.connect(self._conninfo, autocommit=True)
        try:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
        except psycopg.Error:
            connection.close()
            raise
        return connection
