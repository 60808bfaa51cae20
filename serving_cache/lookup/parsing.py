"""What callers write: entities, positions and durations. Pure; errors are one sentence."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from almanac.errors import UnknownEntity, UsageError
from almanac.partitioning import EntityKey, Grid
from almanac.pipeline import Pipeline

MAX_STALE_LIMIT = timedelta(days=3650)
TEXT_SHOWN_MAX = 60  # characters of a caller's text repeated in an error
DURATION_TEXT_MAX = 40  # characters
WHOLE_DIGITS_MAX = 18  # more digits than any entity number has

NO_KEYS = "\0\ufffd"
"""What no key holds: a zero, which no store takes, and what stands for bytes of an address that are not UTF-8."""

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"\d{1,12}(?:\.\d{1,30})?"
_SECONDS = re.compile(rf"({_NUMBER})(s|m|min|h|d)?", re.ASCII)
_EXPONENT = re.compile(r"\d{1,12}(?:\.\d{1,30})?[eE][-+]?\d{1,3}", re.ASCII)  # how programs write 0.00001
_ISO = re.compile(rf"P(?=.)(?:({_NUMBER})D)?(?:T(?=.)(?:({_NUMBER})H)?(?:({_NUMBER})M)?(?:({_NUMBER})S)?)?", re.ASCII)
_WHOLE = re.compile(r"-?[0-9]+", re.ASCII)
_DURATION_HELP = "give seconds (5400), 90m, 2h, 1d or ISO 8601 (PT90M)"


def shown(value: object) -> str:
    """A caller's text as an error may repeat it: quoted, short, printable."""
    if isinstance(value, int) and abs(value) >= 10**TEXT_SHOWN_MAX:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= TEXT_SHOWN_MAX else text[:TEXT_SHOWN_MAX] + "…"


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
        return value if -1e12 < value < 1e12 else math.inf
    text = value.strip() if isinstance(value, str) else ""
    if len(text) <= DURATION_TEXT_MAX:
        if plain := _SECONDS.fullmatch(text):
            return float(plain[1]) * _UNITS[plain[2] or "s"]
        if _EXPONENT.fullmatch(text):
            return float(text)
        if iso := _ISO.fullmatch(text.upper()):
            return sum(
                float(part or 0) * unit for part, unit in zip(iso.groups(), (86400.0, 3600.0, 60.0, 1.0), strict=True)
            )
    raise UsageError(f"max_stale is {shown(value)}: {_DURATION_HELP}")


def entity(pipeline: Pipeline, value: object) -> EntityKey:
    """The entity's key from a path segment or a JSON value, checked against the partitioning.

    Raises:
        UnknownEntity: not a key of this pipeline.
    """
    if pipeline.partitions.key_type is str:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UnknownEntity(f"{pipeline.entity} {shown(value)} is not a key: give a string or a whole number")
        if isinstance(value, str) and any(0xD800 <= ord(one) <= 0xDFFF or one in NO_KEYS for one in value):
            raise UnknownEntity(f"{pipeline.entity} {shown(value)} is not Unicode text: give the entity's own key")
        return pipeline.partitions.check(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) <= WHOLE_DIGITS_MAX:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON does not tell 17.0 from 17
    if isinstance(value, bool) or not isinstance(value, int):
        if not isinstance(pipeline.partitions, Grid):
            raise UnknownEntity(f"{pipeline.entity} {shown(value)} is not a key: give a whole number")
        last = pipeline.partitions.cells - 1
        raise UnknownEntity(
            f"{pipeline.entity} {shown(value)} is not on the grid: cells are the whole numbers 0 to {last}"
        )
    if abs(value) >= 10**WHOLE_DIGITS_MAX:
        where = "not on the grid" if isinstance(pipeline.partitions, Grid) else "not a key"
        raise UnknownEntity(f"{pipeline.entity} {shown(value)} is {where}: the number is too large")
    return pipeline.partitions.check(value)


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
