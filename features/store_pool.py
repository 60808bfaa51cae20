"""Connections of Feast's registry: none is kept, for each is one less for others; but opening it takes one, not many.

Feast asks for each kind of object by a connection of its own, some twenty to open a registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy.pool import NullPool

_sparing: ContextVar[list[SparingPool] | None] = ContextVar("sparing", default=None)


class SparingPool(NullPool):
    """A connection for each question; inside `one_connection` one for all that are asked one after the other."""

    _idle: Any = None

    def _do_get(self) -> Any:
        found, self._idle = self._idle, None
        return found or super()._do_get()

    def _do_return_conn(self, record: Any) -> None:
        pools = _sparing.get()
        if pools is None or self._idle is not None:
            super()._do_return_conn(record)
            return
        self._idle = record
        if self not in pools:
            pools.append(self)

    def let_go(self) -> None:
        """Close the connection that is kept."""
        found, self._idle = self._idle, None
        if found is not None:
            super()._do_return_conn(found)


@contextmanager
def one_connection() -> Iterator[None]:
    """Inside, a registry's connection waits for the next question; at the end, of the outermost, it is closed."""
    if _sparing.get() is not None:
        yield
        return
    pools: list[SparingPool] = []
    token = _sparing.set(pools)
    try:
        yield
    finally:
        _sparing.reset(token)
        for pool in pools:
            pool.let_go()
