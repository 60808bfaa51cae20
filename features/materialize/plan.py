"""What a materialization reads: a pure decision from watermarks, files and what is asked. No I/O.

A watermark says: the view's rows up to `through`, of its files as they were at
`files_at`, are in the online store, while that still holds `token`. So two
things are left to read of a partition: rows later than `through`, and all rows
of files that changed since, for a file may bring rows of the past. Without a
watermark, of another definition, or where the token is gone (Redis was emptied,
or came back with an older copy), everything is read that has not expired.
So it is where Redis forgets rows after a while (`key_ttl_seconds`) and all of them were last sent half that time ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

import msgspec

SHARD_ENTITIES_MAX = 1_000_000
"""Entities that are aimed at for one shard: what a killed run has to write again."""
SHARDS_MAX = 1_000
"""Shards of one run; Airflow maps at most 1,024 tasks. Shards grow where this does not suffice."""
BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
"""Rows of views without a TTL are read from here on."""


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """How far one partition of a view has been materialized.

    Args:
        definition: fingerprint of the view that was materialized.
        through: event time up to which rows are online.
        files_at: change time of the newest file that was read.
        token: what the online store holds as long as it has these rows.
        sent_at: when all of its rows were last sent, changed or not; None where that is not known.
    """

    definition: str
    through: datetime
    files_at: datetime
    token: str
    sent_at: datetime | None = None


class File(msgspec.Struct, frozen=True):
    """A Parquet file and when the file system last changed it: written, replaced or moved."""

    path: str
    changed_at: datetime


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Files of which the rows of a time are read, ends included."""

    files: tuple[str, ...]
    start: datetime
    end: datetime


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbouring partitions of one view that are read together; their watermarks move together.

    Args:
        definition: fingerprint of the view as it was planned.
        first, last: partitions, both included.
        until: the newest event time that is read.
        since: rows up to here are online already; None: none is known to be.
        files_at: files that changed later are read whole; None if `since` is.
        sent_at: when the rows up to `since` were last sent; None if `since` is, or where that is not known.
        start: the oldest event time that is read, given by hand: then no watermark moves.
        entities: about how many there are to write.
    """

    view: str
    definition: str
    first: int
    last: int
    until: datetime
    since: datetime | None = None
    files_at: datetime | None = None
    sent_at: datetime | None = None
    start: datetime | None = None
    entities: int = 0

    @property
    def partitions(self) -> range:
        """The partitions."""
        return range(self.first, self.last + 1)


def start_of(until: datetime, ttl: timedelta | None) -> datetime:
    """The oldest event time that can still be used at `until`."""
    return max(until - ttl, BEGINNING) if ttl else BEGINNING


def readings(shard: Shard, files: Sequence[File], ttl: timedelta | None) -> list[Reading]:
    """What is to be read for a shard, in this order; nothing if it is all online.

    Of rows that are alike in entity, event time and creation the one that comes last in the files counts, as offline:
    so the files after a changed one are read with it, and what changed is sent last.

    Args:
        files: those of the view that there are, in their order.
        ttl: the view's.
    """
    oldest = start_of(shard.until, ttl) if shard.start is None else shard.start
    if shard.since is None or shard.files_at is None:
        return [_reading(files, oldest, shard.until)] if files else []
    first = next((at for at, file in enumerate(files) if file.changed_at > shard.files_at), len(files))
    found = []
    if first and shard.until > shard.since:
        found.append(_reading(files[:first], max(oldest, shard.since), shard.until))
    if first < len(files):
        found.append(_reading(files[first:], oldest, shard.until))
    return found


def _reading(files: Iterable[File], start: datetime, end: datetime) -> Reading:
    return Reading(files=tuple(file.path for file in files), start=start, end=end)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked for.

    Args:
        until: the newest event time to bring.
        since: the oldest; given by hand, it bypasses watermarks and leaves them as they are. None: by the watermark.
        full: read everything that has not expired, whatever the watermarks say.
    """

    until: datetime
    since: datetime | None = None
    full: bool = False


def due(
    asked: Asked,
    view: str,
    definition: str,
    partitions: int,
    held: Mapping[int, Watermark],
    tokens: Mapping[int, str],
    sent_before: datetime | None = None,
) -> list[Shard]:
    """What is to be done for a view: runs of neighbouring partitions that are in the same state.

    Args:
        definition: the view's fingerprint now.
        partitions: how many there are.
        held: watermarks that there are, by partition.
        tokens: what the online store holds, by partition.
        sent_before: partitions whose rows were all sent before this are sent whole again; None: none of them.
    """
    known = {
        number: mark
        for number, mark in held.items()
        if sent_before is None or (mark.sent_at is not None and mark.sent_at >= sent_before)
    }
    states = [_state(asked, definition, known.get(number), tokens.get(number)) for number in range(partitions)]
    found = []
    for state, run in groupby(range(partitions), key=states.__getitem__):
        numbers = list(run)
        if state is not None:
            found.append(
                Shard(
                    view=view,
                    definition=definition,
                    first=numbers[0],
                    last=numbers[-1],
                    until=asked.until,
                    since=state[0],
                    files_at=state[1],
                    sent_at=state[2],
                    start=asked.since,
                )
            )
    return found


_State = tuple[datetime | None, datetime | None, datetime | None]


def _state(asked: Asked, definition: str, held: Watermark | None, token: str | None) -> _State | None:
    """Since when rows are missing; None if a later run has brought more than is asked."""
    if asked.full or asked.since is not None or held is None:
        return (None, None, None)
    if held.definition != definition or held.token != token:
        return (None, None, None)
    return (held.through, held.files_at, held.sent_at) if held.through <= asked.until else None


def cut(
    shard: Shard, entities: int, *, most: int = SHARD_ENTITIES_MAX, shards_max: int = SHARDS_MAX
) -> Iterator[Shard]:
    """A shard cut into several of about equally many partitions, so that none has more entities than `most`.

    Args:
        entities: about how many the shard has.
    """
    count = len(shard.partitions)
    pieces = max(1, min(-(-entities // most), count, shards_max))
    for piece in range(pieces):
        first = shard.first + count * piece // pieces
        last = shard.first + count * (piece + 1) // pieces - 1
        yield msgspec.structs.replace(
            shard, first=first, last=last, entities=-(-entities * (last - first + 1) // count)
        )


def bundled(shards: Iterable[Shard], *, most: int = SHARD_ENTITIES_MAX) -> list[list[Shard]]:
    """Neighbouring shards that one task takes, so that few tasks start for small views; more than `most` only alone."""
    found: list[list[Shard]] = []
    held = 0
    for shard in shards:
        if not found or held + shard.entities > most:
            found.append([])
            held = 0
        found[-1].append(shard)
        held += shard.entities
    return found
