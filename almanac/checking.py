"""Checks of a declaration's fields: each refusal names the field, shows what it is and says what to give.

All raise `DeclarationError`, in one line, so that Python's own words about
types never reach whoever writes a declaration.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta

from almanac.errors import DeclarationError

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def need_number(what: str, value: object, least: float, greatest: float, *, whole: bool = False) -> None:
    """Refuse what is not a number of the wanted kind, with the field's name and a remedy.

    Raises:
        DeclarationError: `value` is no number, not whole where it must be, or out of range.
    """
    right = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not right or not least <= value <= greatest:  # type: ignore[operator]
        bounds = f" of at least {least:,}" if greatest == math.inf else f" from {least:,} to {greatest:,}"
        bounds = "" if least == -math.inf else bounds
        raise DeclarationError(f"{what} is {value!r}: give a {'whole ' if whole else ''}number{bounds}")


def need_name(what: str, value: str, pattern: re.Pattern[str] = NAME) -> None:
    """Refuse what does not match a pattern."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise DeclarationError(f"{what} is {value!r}: it must match {pattern.pattern}")


def need_duration(what: str, value: object) -> None:
    """Refuse what is not a timedelta."""
    if not isinstance(value, timedelta):
        raise DeclarationError(f"{what} is {value!r}: give a duration such as minutes(90), hours(24) or days(7)")


def need_a(what: str, value: object, kind: type | tuple[type, ...], remedy: str) -> None:
    """Refuse what is not of a kind."""
    if not isinstance(value, kind):
        raise DeclarationError(f"{what} is {value!r}: {remedy}")


def need_all(what: str, values: object, kind: type, remedy: str) -> None:
    """Refuse what is not a tuple of one kind."""
    if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
        raise DeclarationError(f"{what} is {values!r}: {remedy}")


def need_pair(what: str, value: object, wanted: str) -> None:
    """Refuse what is not two texts, neither of them empty."""
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, str) and each for each in value)):
        raise DeclarationError(f"{what} is {value!r}: give {wanted}")


def need_range(what: str, value: object) -> None:
    """Refuse what is not two numbers, the least first."""
    numbers = value if isinstance(value, tuple) and len(value) == 2 else ()
    right = [n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and not math.isnan(n)]
    if len(right) != 2 or not right[0] < right[1]:
        raise DeclarationError(f"{what} is {value!r}: give (least, greatest)")
