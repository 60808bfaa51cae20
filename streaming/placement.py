"""Placement: the home partition of an entity, and the incarnation of a topic. Pure, no I/O.

A producer places a key by its hash modulo the number of partitions. Where partitions are added, a key's next events
come in another partition, while its history, and the events before, stay. So the partitions that the workers first
read remain the home partitions. An event that stands anywhere else is written again to its entity's home partition,
behind all that wait there, in the transaction that commits it where it stood.

Offsets of a topic that was deleted and made again begin anew. So each incarnation of a topic has a number, which grows,
and what is made of its events carries the number: of two overlays of one as_of the later incarnation's wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from almanac.clock import micros_of
from almanac.partitioning import EntityKey

_SEED, _FACTOR, _BITS = 0x9747B28C, 0x5BD1E995, 0xFFFFFFFF
FORWARDS_MAX = 3
"""Times that one event is written again; more say that workers do not agree on home partitions."""


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is committed beside an offset.

    Args:
        topic_id: of which topic the offset is; a topic that was deleted and made again has another.
        homes: number of home partitions, counted from the first; 0 where there are no histories.
        incarnation: of the topic; 0 of one whose first workers counted none.
    """

    topic_id: str = ""
    homes: int = 0
    incarnation: int = 0

    def text(self) -> str:
        """As it is committed."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def of(cls, text: str | None) -> Mark:
        """Read what was committed; empty where nothing was, or somebody else's word."""
        try:
            return msgspec.json.decode(text or "{}", type=cls)
        except msgspec.MsgspecError:
            return cls()


def incarnation_of(marks: Sequence[Mark], topic_id: str, before: int, now: datetime) -> int:
    """The incarnation of a topic: what was committed of it; else the moment, later than any other that is known.

    Workers that see a new topic at once may find two numbers. All take the greater one as soon as they read each
    other's marks, and a partition's number is committed with what is made of its events: so it only grows.

    Args:
        marks: of every partition.
        before: an incarnation that this worker knows; 0 if none.
        now: aware time.
    """
    same = [mark.incarnation for mark in marks if mark.topic_id == topic_id]
    return max(same) if same else max([micros_of(now), before + 1, *(mark.incarnation + 1 for mark in marks)])


def partition_of(entity: EntityKey, partitions: int) -> int:
    """Where `almanac publish` and Java's clients place an entity's key among so many partitions."""
    return (_murmur2(str(entity).encode()) & 0x7FFFFFFF) % partitions


def _murmur2(key: bytes) -> int:
    """The hash of Kafka's own partitioner, as 32 bits without a sign."""
    found = (_SEED ^ len(key)) & _BITS
    whole = len(key) - len(key) % 4
    for at in range(0, whole, 4):
        part = int.from_bytes(key[at : at + 4], "little") * _FACTOR & _BITS
        part = (part ^ (part >> 24)) * _FACTOR & _BITS
        found = (found * _FACTOR & _BITS) ^ part
    if rest := key[whole:]:
        found = (found ^ int.from_bytes(rest, "little")) * _FACTOR & _BITS
    found = (found ^ (found >> 13)) * _FACTOR & _BITS
    return found ^ (found >> 15)


def homes_of(marks: list[Mark], topic_id: str, partitions: int, declared: int, *, grown: bool) -> int:
    """How many home partitions there are: what was committed of this topic; else all its partitions.

    Args:
        marks: of every partition.
        declared: how many partitions the topic is made with.
        grown: whether there are events, and none was handled in a partition beyond the declared ones: the others
            may have been added while events waited.
    """
    known = [mark.homes for mark in marks if mark.topic_id == topic_id and mark.homes]
    if known:
        return min([*known, partitions])
    return min(declared, partitions) if grown else partitions
