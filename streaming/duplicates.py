"""Duplicates: a bounded memory of the events that were handled lately. Pure, no I/O.

It spares work and is counted; it is not what keeps answers right. That is the
stores' put-if-newer, so that a duplicate that is no longer remembered (after a
restart, after a rebalance) is handled again and changes no answer.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

from almanac.partitioning import EntityKey
from streaming.events import Event, Identity

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

REMEMBERED_MAX = 50_000
"""Identities and entities remembered, each."""
NOTE_CHARS_MAX = 128
"""Length of an identity that is remembered as it is, in characters."""


class Duplicates:
    """What was handled lately.

    A CloudEvent is a duplicate if its source and id were seen. A plain event is
    one if it says what the last event of its entity said: a value, a correction
    and the value again are three events.

    Args:
        base: what is remembered besides; this memory's own word comes first.
    """

    def __init__(self, base: Duplicates | None = None) -> None:
        self._base = base
        self._ids: OrderedDict[Hashable, None] = OrderedDict()
        self._latest: OrderedDict[EntityKey, object] = OrderedDict()

    def knows(self, event: Event) -> bool:
        """Whether the event is a duplicate."""
        if event.event_id is not None:
            return _identity(event.event_id) in self._ids or (self._base is not None and self._base.knows(event))
        if event.entity in self._latest or self._base is None:
            return self._latest.get(event.entity) == _said(event)
        return self._base.knows(event)

    def remember(self, event: Event) -> None:
        """Take note of an event; the oldest note goes when there are too many."""
        if event.event_id is not None:
            _put(self._ids, _identity(event.event_id), None)
        _put(self._latest, event.entity, _said(event))

    def forget(self, event: Event) -> None:
        """Take back a note: the event was not handled after all, and may come again."""
        if event.event_id is not None:
            self._ids.pop(_identity(event.event_id), None)
        if self._latest.get(event.entity) == _said(event):
            del self._latest[event.entity]

    def branch(self) -> Duplicates:
        """A memory on top of this one, for a batch that may yet be thrown away."""
        return Duplicates(self)

    def merge(self, branch: Duplicates) -> None:
        """Take over what a branch noted, once its batch is committed."""
        for identity in branch._ids:
            _put(self._ids, identity, None)
        for entity, said in branch._latest.items():
            _put(self._latest, entity, said)


def _identity(event_id: Identity) -> Hashable:
    """An identity, or what stands for one that is long: it may have 60 KB, and many are remembered."""
    chars = sum(len(part) for part in event_id if isinstance(part, str))
    return event_id if chars <= NOTE_CHARS_MAX else _digest(event_id)


def _said(event: Event) -> Hashable:
    """What an event says, or what stands for its lines: they may have 128 KB."""
    return (event.observed_at, _digest(event.lines)) if event.lines else event.said


def _digest(what: object) -> bytes:
    return hashlib.blake2b(repr(what).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _put(notes: OrderedDict[K, V], key: K, value: V) -> None:
    notes[key] = value
    notes.move_to_end(key)
    if len(notes) > REMEMBERED_MAX:
        notes.popitem(last=False)
