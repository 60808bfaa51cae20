"""Work done ahead of who takes it, in a thread: batches are read and packed while those before them are written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD_MAX = 2
"""Batches that are ready and wait, beside the one that is being made and the one that is being written."""
POLL_SECONDS = 0.1
_END = object()


class Ahead(Generic[T]):
    """An iterable whose items are made in a thread of its own, at most `AHEAD_MAX` before they are asked for.

    What the making raises is raised where the next item would have come. When it is closed, the
    making stops after the item in hand.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._ready: queue.Queue[object] = queue.Queue(AHEAD_MAX)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, name="ahead", daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._taken()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _make(self) -> None:
        end: object = _END
        try:
            items = iter(self._items)
            for item in items:
                if not self._put(item):
                    break
            if hasattr(items, "close"):  # a generator gives back here, in its own thread, what it holds
                items.close()
        except BaseException as error:  # noqa: BLE001 - raised again by who takes
            end = _Raised(error)
        self._put(end)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def _taken(self) -> Iterator[T]:
        while (item := self._ready.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error
