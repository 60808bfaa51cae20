"""What callers write beside keys: positions and durations. Pure; errors are one sentence."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from almanac.entity_keys import shown
from almanac.errors import UsageError
from almanac.partitioning import Grid

MAX_STALE_LIMIT = timedelta(days=3650)
DURATION_TEXT_MAX = 40  # characters

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,30})?"
_SECONDS = re.compile(rf"({_NUMBER})(s|m|min|h|d)?")
_EXPONENT = re.compile(rf"{_NUMBER}[eE][-+]?[0-9]{{1,3}}")  # how programs write 0.00001
_ISO = re.compile(
    rf"[Pp](?=.)(?:({_NUMBER})[Dd])?(?:[Tt](?=.)(?:({_NUMBER})[Hh])?(?:({_NUMBER})[Mm])?(?:({_NUMBER})[Ss])?)?"
)
DURATION_FORMS = tuple(form.pattern for form in (_SECONDS, _EXPONENT, _ISO))
"""Regular expressions of every text that is a duration; JavaScript reads them alike, as JSON Schema asks."""
_DURATION_HELP = "give seconds (5400), 90m, 2h, 1d or ISO 8601 (PT90M)"


def max_stale(value: object) -> timedelta | None:
    """The greatest age a caller accepts, from a query parameter or a JSON value; None if not given.

    Raises:
        UsageError: neither a number of seconds nor a duration, negative, or beyond ten years.
    """
    if value is None:
        return None
    seconds = _seconds(value)
    if not 0 <= seconds <= MAX_STALE_LIMIT.total_seconds():
        raise UsageError(f"max_stale is {shown(value)}: give 0 to {MAX_STALE_LIMIT.days} days")
    return timedelta(seconds=seconds)


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if -1e12 < value < 1e12 else math.inf
    text = value.strip() if isinstance(value, str) else ""
    if len(text) <= DURATION_TEXT_MAX:
        if plain := _SECONDS.fullmatch(text):
            return float(plain[1]) * _UNITS[plain[2] or "s"]
        if _EXPONENT.fullmatch(text):
            return float(text)
        if iso := _ISO.fullmatch(text):
            return sum(
                float(part or 0) * unit for part, unit in zip(iso.groups(), (86400.0, 3600.0, 60.0, 1.0), strict=True)
            )
    raise UsageError(f"max_stale is {shown(value)}: {_DURATION_HELP}")


def position(grid: Grid, lat: str | None, lon: str | None) -> int:
    """The cell nearest to a point given as text in degrees.

    Raises:
        UsageError: a coordinate is absent or not a number of degrees.
        UnknownEntity: the point is outside the grid.
    """
    return grid.snap(_degrees("lat", lat, 90), _degrees("lon", lon, 360))


def _degrees(name: str, text: str | None, limit: int) -> float:
    if text is None:
        raise UsageError(f"{name} is missing: give lat and lon in degrees, such as lat=51.5&lon=-0.1")
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{name} is {shown(text)}: give a number of degrees")
    if abs(value) > limit:
        raise UsageError(f"{name} is {shown(text)}: degrees reach from -{limit} to {limit}")
    return value
