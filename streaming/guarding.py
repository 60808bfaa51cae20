"""Guarding: whatever one record does to the code that handles it, the others go on.

What a record may do is known for most: it cannot be believed, and is refused with a reason. But the code may also fail
with a record in a way that nobody foresaw, and would fail again each time that it is read. So where a batch fails like
that, its halves are tried, down to each record alone; one that fails alone is given up by itself, and said.

Not so where a server does not answer, where the machine refuses, as with a full disk, or where a table, a model or a
setting is wrong: that is no record's fault.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from confluent_kafka import KafkaException

from almanac.errors import AlmanacError, BlockError, DataError, EventError, FeatureError, UnknownEntity
from almanac.partitioning import EntityKey
from almanac.pipeline import Pipeline
from streaming.events import Event, parse
from streaming.pause import Stopped
from streaming.placement import FORWARDS_MAX
from streaming.records import PROOF_ROOM, Consumed, Produced, forwarded_record
from streaming.sizes import RECORD_BYTES_MAX, record_bytes
from streaming.values import shown

HEADERS_UNREADABLE = "headers-unreadable"
HANDLING_FAILED = "handling-failed"
FORWARDED_TOO_OFTEN = "forwarded-too-often"

PART_BYTES_MAX = 16 * 1024 * 1024
"""Size of the records that are handled and committed at once, in bytes: as much as is fetched ahead."""
ERRNO_OF_A_RECORD = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.E2BIG})
"""What the system says of a name or an argument that was made of a record's content."""
Home = Callable[[EntityKey], int]


def parts(records: Sequence[Consumed]) -> Iterator[list[Consumed]]:
    """Records in their order, in parts of at most `PART_BYTES_MAX`, or of one record."""
    part, size = list[Consumed](), 0
    for record in records:
        if part and size + record.bytes > PART_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(record)
        size += record.bytes
    if part:
        yield part


def guarded(
    records: Sequence[Consumed],
    work: Callable[[Sequence[Consumed]], None],
    alone: Callable[[Consumed, Exception], None],
) -> None:
    """Do work with records, in their order; where it fails as nobody foresaw, with fewer of them.

    Args:
        alone: is told of a record with which alone the work failed, before the work goes on with what follows it.

    Raises:
        Exception: what is no record's fault, and what `alone` raises.
    """
    pending = [list(records)]
    while pending:
        part = pending.pop(0)
        try:
            work(part)
        except Exception as error:
            if not may_be_of_a_record(error):
                raise
            if len(part) == 1:
                alone(part[0], error)
            else:
                half = len(part) // 2
                pending[:0] = [part[:half], part[half:]]


def may_be_of_a_record(error: Exception) -> bool:
    """Whether a record may be what the code failed with, and not a server, a model, a setting."""
    if isinstance(error, AlmanacError):
        foreseen = isinstance(error, FeatureError)
        return isinstance(error, DataError | BlockError | UnknownEntity) and not foreseen
    return not isinstance(error, KafkaException | Stopped) and not is_of_the_machine(error)


def is_of_the_machine(error: Exception) -> bool:
    """Whether the machine refuses: a full disk, too many open files, a connection that ends. Waiting may mend it."""
    return isinstance(error, OSError) and error.errno not in ERRNO_OF_A_RECORD


def failed(error: Exception) -> EventError:
    """Why an event is refused with which the code failed in a way that nobody foresaw."""
    return EventError(
        HANDLING_FAILED,
        f"the code that handles events failed with this one ({type(error).__name__}: {shown(str(error))}): report it "
        "with the event; once that is mended, send the event again",
    )


def read_event(record: Consumed, pipeline: Pipeline, now: datetime, home: Home | None) -> tuple[Event, Produced | None]:
    """The event of a record, and what is written where it stands outside its entity's home partition.

    Raises:
        EventError: it cannot be believed, or not be written again.
    """
    if record.unreadable:
        raise EventError(HEADERS_UNREADABLE, record.unreadable)
    event = parse(record.value, record.key, record.headers, pipeline, now)
    if home is not None and (partition := home(event.entity)) != record.partition:
        return event, _forwarded(record, partition)
    if record.redriven:  # known by where it first stood, for it may have been sent again before
        place = (record.incarnation, *record.origin, event.entity, event.said[0].isoformat())
        event = replace(event, event_id=place)
    return event, None


def _forwarded(record: Consumed, partition: int) -> Produced:
    if record.forwards >= FORWARDS_MAX:  # by workers that do not agree, or so says a header, which anybody may send
        raise EventError(
            FORWARDED_TOO_OFTEN,
            f"the event was written again {record.forwards} times: stop all stream workers of the pipeline, then "
            "start them, so that they agree on home partitions, and send the event again",
        )
    forward = forwarded_record(record, partition)
    if (size := record_bytes(forward.key, forward.value, (*forward.headers, PROOF_ROOM))) > RECORD_BYTES_MAX:
        raise EventError(
            "too-large",
            f"the event would have {size:,} bytes in its home partition, {RECORD_BYTES_MAX:,} are taken: send less",
        )
    return forward
