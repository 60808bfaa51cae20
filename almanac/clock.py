"""Aware UTC times: the only place that reads the wall clock, and how times are written."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from operator import index
from typing import SupportsIndex

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""What whole numbers of microseconds are counted from."""
MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
DAY_MICROSECONDS = DAY // MICROSECOND
_WRITTEN = re.compile(
    r"(?:\d{4}-\d\d-\d\d|\d{8}|\d{4}-W\d\d-\d|\d{4}W\d{3})[Tt ]"
    r"(?P<clock>\d\d(?::\d\d(?::\d\d(?:[.,]\d{1,30})?)?|\d\d(?:\d\d(?:[.,]\d{1,30})?)?)?)"
    r"(?P<offset>[Zz]|[+-]\d\d(?::?[0-5]\d)?)?",
    re.ASCII,
)
"""A day, one letter or space, a time, an offset: `datetime.fromisoformat` takes any sign between day and time."""
PARTITION_KEY_FORMAT = "%Y-%m-%dT%H:%MZ"
"""How an Airflow run's partition key names its moment, in UTC."""


def utc_now() -> datetime:
    """The current time, aware, in UTC. Decisions take `now` as an argument instead."""
    return datetime.now(UTC)


def need_utc(when: datetime) -> datetime:
    """Return the same moment in UTC, as the standard library's `datetime`; refuse a naive time.

    Subclasses (Airflow hands out pendulum's) give other results from `replace` and subtraction.

    Raises:
        ValueError: the time has no zone, so it names no moment.
    """
    if when.tzinfo is None:
        raise ValueError(f"{when.isoformat()} has no time zone: give one, such as +00:00")
    moment = when.astimezone(UTC)
    return datetime.combine(moment.date(), moment.time(), tzinfo=UTC)


def micros_of(when: datetime) -> int:
    """Whole microseconds since 1970, exactly; what is finer, as in pandas' times, is rounded down.

    Raises:
        ValueError: the time has no zone, so it names no moment.
    """
    return (need_utc(when) - EPOCH) // MICROSECOND


def at_micros(micros: SupportsIndex) -> datetime:
    """The moment so many whole microseconds after 1970 began, exactly: the inverse of `micros_of`.

    Raises:
        OverflowError: it lies outside the years 1 to 9999, so no `datetime` names it.
    """
    return EPOCH + timedelta(microseconds=index(micros))


def parse_time(text: str) -> datetime:
    """Parse ISO 8601 (RFC 3339) with an offset, its letters of either case; refuses a naive time.

    What is finer than a microsecond is cut.

    Raises:
        ValueError: not a time, or without an offset; the message says which, in a few words.
    """
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise ValueError("is no time")
    if written["offset"] is None:
        raise ValueError("has no offset from UTC")
    digits = re.sub(r"\D", "", written["clock"])
    if digits[:2] == "24" or digits[4:6] == "60":
        raise ValueError("names the end of a day, or a leap second, which most clocks and stores do not have")
    try:
        return need_utc(datetime.fromisoformat(text.upper()))
    except (ValueError, OverflowError):
        raise ValueError("is no time of any calendar") from None


def format_time(when: datetime) -> str:
    """RFC 3339 in UTC with a `Z`, to the microsecond where there is one."""
    return need_utc(when).isoformat().replace("+00:00", "Z")


def floor_hour(when: datetime) -> datetime:
    """The hour that has begun."""
    return need_utc(when).replace(minute=0, second=0, microsecond=0)
