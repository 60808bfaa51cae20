"""Duplicates: a bounded memory of the events that were handled lately. Pure, no I/O.

It spares work and is counted; it is not what keeps answers right. That is the
stores' put-if-newer, so that a duplicate that is no longer remembered (after a
restart, after a rebalance) is handled again and changes no answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from datetime import datetime
from typing import TypeVar

from almanac.partitioning import EntityKey
from streaming.events import Event, Observed
from streaming.values import Line

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

REMEMBERED_MAX = 50_000
"""Identities and entities remembered, each."""


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
        self._latest: OrderedDict[EntityKey, tuple[datetime, Observed | tuple[Line, ...]]] = OrderedDict()

    def knows(self, event: Event) -> bool:
        """Whether the event is a duplicate."""
        if event.event_id is not None:
            return event.event_id in self._ids or (self._base is not None and self._base.knows(event))
        if event.entity in self._latest or self._base is None:
            return self._latest.get(event.entity) == event.said
        return self._base.knows(event)

    def remember(self, event: Event) -> None:
        """Take note of an event; the oldest note goes when there are too many."""
        if event.event_id is not None:
            _put(self._ids, event.event_id, None)
        _put(self._latest, event.entity, event.said)

    def forget(self, event: Event) -> None:
        """Take back a note: the event was not handled after all, and may come again."""
        if event.event_id is not None:
            self._ids.pop(event.event_id, None)
        if self._latest.get(event.entity) == event.said:
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


def _put(notes: OrderedDict[K, V], key: K, value: V) -> None:
    notes[key] = value
    notes.move_to_end(key)
    if len(notes) > REMEMBERED_MAX:
        notes.popitem(last=False)
