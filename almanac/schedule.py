"""Schedules: cron expressions of five fields in UTC. The one module that reads them, as Airflow does, with croniter.

What a declaration gives is refused where it is written if Airflow would refuse it, if it never comes, or if it means
something else than whoever wrote it will think.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from almanac.clock import PARTITION_KEY_FORMAT, need_utc
from almanac.errors import DeclarationError

PRESETS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@quarterly": "0 0 1 */3 *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""Airflow's names, and what each stands for."""
FIELDS = (("minute", 60), ("hour", 24), ("day of the month", 31), ("month", 12), ("day of the week", 7))
"""Each field with how many values it has: a step of as many or more comes once in each round."""
WANTED = "give a cron expression of five fields, in UTC, such as '0 * * * *'"
_STEP = re.compile(r"/([0-9]+)")
_DRAWN = re.compile(r"(?:[HR])(?:\([^)]*\))?", re.IGNORECASE)
_LOOKED_FROM = datetime(2000, 1, 1, tzinfo=UTC)
SCHEDULES_KEPT = 1_000
"""Expressions that a process has looked at and need not look at again."""


def check_schedule(what: str, expression: object) -> None:
    """Refuse what is no schedule, with the field's name and what to write.

    Args:
        what: the field of the declaration.

    Raises:
        DeclarationError: `expression` is no text, not of five fields, out of range, drawn at random, or never comes.
    """
    if not isinstance(expression, str):
        raise DeclarationError(f"{what} is {expression!r}: give text; {WANTED}")
    if why := _why_not(expression):
        raise DeclarationError(f"{what} is {expression!r}: {why}")


@lru_cache(SCHEDULES_KEPT)
def _why_not(expression: str) -> str | None:
    from croniter import croniter
    from croniter.croniter import CroniterBadDateError, CroniterError

    if preset := PRESETS.get(expression.strip().lower()):
        return f"write the five fields that it stands for, {preset!r}"
    fields = expression.split()
    if len(fields) != 5:
        zone = any("=" in field or field.upper() in {"UTC", "Z"} for field in fields)
        more = "; a time zone cannot be named" if zone else f", not of {len(fields)}" if len(fields) in {6, 7} else ""
        return WANTED + more
    if any(_DRAWN.fullmatch(part.split("/")[0]) for field in fields for part in field.split(",")):
        return f"H and R stand for a number that is drawn anew each time it is read: {WANTED}"
    for field, (name, count) in zip(fields, FIELDS, strict=True):
        if any(int(step) >= count for step in _STEP.findall(field)):
            return (
                f"a step of {field.rpartition('/')[2]} comes once in each round of the field for the {name}, which has "
                f"{count} values: name the value itself, or give a smaller step"
            )
    try:
        croniter(expression, _LOOKED_FROM).get_next(datetime)
    except CroniterBadDateError:
        return "no such day ever comes: give a day that the month has"
    except CroniterError as error:
        return f"it is no cron expression ({error}): {WANTED}"
    except (ValueError, TypeError, KeyError, IndexError) as error:  # of its parser, which raises them for odd text
        return f"it is no cron expression ({type(error).__name__}): {WANTED}"
    return None


def ticks_back(schedule: str, now: datetime) -> Iterator[datetime]:
    """The ticks at or before a moment, newest first, as far back as the schedule goes.

    Raises:
        DeclarationError: the schedule is no cron expression.
    """
    from croniter import croniter
    from croniter.croniter import CroniterBadDateError, CroniterError

    moment = need_utc(now)
    try:
        # What croniter goes back from is left out, so a tick at this very second must lie before it.
        ticks: Any = croniter(schedule, moment + timedelta(seconds=1))
        while True:
            tick = need_utc(ticks.get_prev(datetime))
            if tick <= moment:
                yield tick
    except CroniterBadDateError:
        return
    except CroniterError as error:
        raise _none(schedule, error) from None


def tick_before(schedule: str, moment: datetime) -> datetime | None:
    """The newest tick at or before a moment; None if none ever came.

    Raises:
        DeclarationError: the schedule is no cron expression.
    """
    return next(ticks_back(schedule, moment), None)


def partition_key_of(schedule: str, moment: datetime) -> str:
    """The partition key of the latest tick at or before a moment; of the moment where there was no tick before."""
    return (tick_before(schedule, moment) or need_utc(moment)).strftime(PARTITION_KEY_FORMAT)


def ticks_between(schedule: str, first: datetime, last: datetime) -> Iterator[datetime]:
    """The ticks from one moment to another, both included, oldest first.

    Raises:
        DeclarationError: the schedule is no cron expression.
    """
    from croniter import croniter_range
    from croniter.croniter import CroniterError

    try:
        yield from croniter_range(need_utc(first), need_utc(last), schedule)
    except CroniterError as error:
        raise _none(schedule, error) from None


def _none(schedule: str, error: Exception) -> DeclarationError:
    return DeclarationError(f"schedule {schedule!r} is no cron expression ({error}): {WANTED}")
