"""Redrive: send dead letters again, as the events that they still are.

A dead letter that is sent again stands at a new place of the events' topic, but
a header says where it first stood, a worker's proof that this is so, and by that the stream and its sinks know
it: one that was counted already, by an earlier redrive, is not counted again.
One that fails again becomes a dead letter again, with its first place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from streaming.dead_letters import Listed, newest_letters
from streaming.events import REASONS
from streaming.guarding import FORWARDED_TOO_OFTEN, HANDLING_FAILED, HEADERS_UNREADABLE
from streaming.handle import (
    FEATURES_EXPIRED,
    FEATURES_MISSING,
    HISTORY_LOST,
    PREDICTION_INVALID,
    RETURN_WITHOUT_PURCHASE,
)
from streaming.publish import Outgoing, publish
from streaming.records import HEADER_INCARNATION, HEADER_ORIGIN, HEADER_PROOF, RESERVED_HEADERS

LIMIT_DEFAULT = 1_000
LIMIT_MAX = 40_000
"""Dead letters sent again at once; also as many as are looked at, from the newest back."""
HANDLING_REASONS = (
    FEATURES_MISSING,
    FEATURES_EXPIRED,
    PREDICTION_INVALID,
    RETURN_WITHOUT_PURCHASE,
    HISTORY_LOST,
    HEADERS_UNREADABLE,
    HANDLING_FAILED,
    FORWARDED_TOO_OFTEN,
)
ALL_REASONS = (*REASONS, *HANDLING_REASONS)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which dead letters are to be sent again.

    Args:
        reason: only those with this reason.
        since: only those written at or after this time.
        limit: at most so many, the oldest first.
    """

    reason: str | None = None
    since: datetime | None = None
    limit: int = LIMIT_DEFAULT

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in ALL_REASONS:
            raise UsageError(f"no dead letter has the reason {self.reason!r}: give one of {', '.join(ALL_REASONS)}")

    def takes(self, found: Listed) -> bool:
        """Whether it has the reason and the time that are asked for."""
        return self.reason in (None, found.letter.reason) and (self.since is None or found.at >= self.since)


def choose(listed: Sequence[Listed], choice: Choice) -> list[Listed]:
    """The dead letters to send again, oldest first; of several of one event the newest; none that is not whole.

    One that somebody else wrote takes no other's place: of one event are those that would be sent alike, proof and all.
    """
    latest = {outgoing(found): found for found in listed if found.letter.whole}
    return sorted((found for found in latest.values() if choice.takes(found)), key=lambda found: found.at)[
        : choice.limit
    ]


@dataclass(frozen=True, kw_only=True)
class Redrivable:
    """What of the dead letters can be sent again.

    Args:
        chosen: these, the oldest first.
        cut: how many others were chosen and are not all of their events, or do not say where those stood.
        unread: how many older ones were not looked at, for they are too large to be read at once.
    """

    chosen: Sequence[Listed]
    cut: int = 0
    unread: int = 0


def find(pipeline: Pipeline, settings: Settings, choice: Choice) -> Redrivable:
    """The dead letters of a pipeline to send again.

    Raises:
        Unavailable: no broker answered.
        UsageError: there is no dead-letter topic yet.
    """
    newest = newest_letters(pipeline, settings, LIMIT_MAX)
    listed = newest.listed()
    cut = sum(not found.letter.whole and choice.takes(found) for found in listed)
    return Redrivable(chosen=choose(listed, choice), cut=cut, unread=newest.let_go_for_size)


def redrive(pipeline: Pipeline, settings: Settings, chosen: Sequence[Listed]) -> int:
    """Send dead letters to the events' topic again; returns how many the broker confirmed.

    Raises:
        Unavailable: not all were confirmed; says how many were. Sending all of them again counts none twice.
        UsageError: some no longer fit the topic, by their names; all others are sent.
    """
    return publish((outgoing(found) for found in chosen), pipeline, settings)


def outgoing(found: Listed) -> Outgoing:
    """A dead letter as an event: raw bytes, key and its own headers, where it first stood, and the proof of that."""
    letter = found.letter
    origin = f"{letter.topic}/{letter.partition}/{letter.offset}".encode()
    own = tuple(header for header in letter.headers if header[0] not in RESERVED_HEADERS)
    of = ((HEADER_INCARNATION, str(letter.incarnation).encode()),) if letter.incarnation else ()
    proof = tuple(header for header in letter.headers if header[0] == HEADER_PROOF)[-1:]
    name = f"the event of {letter.topic}/{letter.partition}@{letter.offset}"
    return Outgoing(value=letter.raw, key=letter.key, headers=(*own, (HEADER_ORIGIN, origin), *of, *proof), name=name)


def unproved(chosen: Sequence[Listed]) -> int:
    """How many of them carry no proof of where they first stood, as those from before workers signed them."""
    return sum(all(name != HEADER_PROOF for name, _ in found.letter.headers) for found in chosen)
