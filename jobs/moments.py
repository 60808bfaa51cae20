"""Times that people type: the moment a run speaks for, as in Airflow's partition keys."""

from __future__ import annotations

from datetime import UTC, datetime

from almanac.clock import PARTITION_KEY_FORMAT
from almanac.errors import UsageError

YEAR_MIN = 1900
"""Far before any data, and far from where times end."""


def moment_of(option: str, text: str) -> datetime:
    """What was typed after an option, as a time in UTC.

    Raises:
        UsageError: it is not a time of that form.
    """
    try:
        found = datetime.strptime(text, PARTITION_KEY_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a time such as 2026-03-31T06:00Z: give one, in UTC") from None
    if found.year < YEAR_MIN:
        raise UsageError(f"{option} {text} lies before {YEAR_MIN}, of which nobody has observations: give a later time")
    return found
