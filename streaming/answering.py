"""Which generation answers: its model, followed in Postgres and in Redis while the worker runs.

Of both pointers the one with the greater epoch counts, as it does for lookups: Redis is behind for a moment after
each move, and ahead where Postgres lost commits. While one does not answer the other's counts, but Redis's not if it
is further back than what is known. While neither answers, what was last known goes on to count, and that is said. A
move is heard of at once by Postgres's own notice; one whose notice was lost is seen within `LOOK_SECONDS`. While a
server hangs, a look takes as long as its connection may: see `serving_cache.postgres_client`, `serving_cache.redis`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from almanac import metrics
from almanac.errors import AlmanacError
from serving_cache.records import Pointer
from streaming.report import Report

LOOK_SECONDS = 1.0
"""Time between two looks at the pointer, unless Postgres tells of a move before."""
FIRST_LOOK_SECONDS_MAX = 15.0
"""Time that the worker waits for the first look before its first event."""


class Pointers(Protocol):
    """What is needed of a store: both the Postgres and the Redis one are such."""

    def pointer(self, pipeline: str) -> Pointer | None:
        """What readers read now; None if nothing is published, or the store knows nothing of the pipeline."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class Moves(Protocol):
    """Who tells of moves: `serving_cache.postgres_notices.Notices` does."""

    def wait(self, seconds: float) -> bool:
        """Wait until a pointer may have moved, or so long."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


@dataclass(frozen=True)
class Standing:
    """What is known of the generation that answers.

    Args:
        model: its model, such as `bikes-v3`; None while none is published, or that was never known.
        epoch: of the pointer; 0 while none is published, or that was never known.
        why: empty, or why this is only what was known last.
    """

    model: str | None = None
    epoch: int = 0
    why: str = ""


class Answering:
    """Follows one pipeline's pointer, in a thread of its own.

    Args:
        record, copy: Postgres and Redis; closed at the end of `run`.
        moves: opens what tells of moves; called in the thread.
    """

    def __init__(
        self, pipeline: str, record: Pointers, copy: Pointers, moves: Callable[[], Moves], report: Report
    ) -> None:
        self._pipeline = pipeline
        self._record, self._copy = record, copy
        self._moves = moves
        self._report = report
        self._standing = Standing()
        self._looked = threading.Event()

    def standing(self) -> Standing:
        """What is known now; returns at once."""
        return self._standing

    def first(self) -> Standing:
        """The same, after the first look, which is waited for up to `FIRST_LOOK_SECONDS_MAX`."""
        self._looked.wait(FIRST_LOOK_SECONDS_MAX)
        return self._standing

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        with closing(self._record), closing(self._copy), closing(self._moves()) as moves:
            while not stop.is_set():
                self.look()
                moves.wait(LOOK_SECONDS)

    def look(self) -> None:
        """Ask the record, then its copy."""
        before, why, found = self._standing, "", None
        try:
            found = _standing(self._record.pointer(self._pipeline))
            self._standing = max(found, before, key=lambda known: known.epoch)  # before Redis is waited for
        except AlmanacError as error:
            why = str(error)
        try:
            copied = _standing(self._copy.pointer(self._pipeline))
            why = f"{why}; Redis is at epoch {copied.epoch}, known is {before.epoch}"
        except AlmanacError as error:
            copied, why = Standing(), f"{why}; {error}"
        if found is not None:
            now = copied if copied.epoch > found.epoch else found
        elif copied.epoch and copied.epoch >= before.epoch:
            now = copied
        else:  # an emptied Redis does not say that nothing is published
            now = replace(before, why=why)
        self._standing = now
        self._say(before, now)
        self._looked.set()

    def _say(self, before: Standing, now: Standing) -> None:
        metrics.STREAM_POINTER_KNOWN.labels(self._pipeline).set(0 if now.why else 1)
        if now.why and not before.why:
            known = f"it goes on with {now.model}'s" if now.epoch else "none is known yet"
            self._report.warn(f"which generation answers cannot be read, {known}: {now.why}")
        elif before.why and not now.why:
            self._report.warn(f"which generation answers can be read again: one by {now.model or 'none'}")


def _standing(pointer: Pointer | None) -> Standing:
    return Standing() if pointer is None else Standing(pointer.generation.model, pointer.epoch)
