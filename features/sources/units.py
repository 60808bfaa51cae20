"""Whether two texts name one unit: `m s**-1`, `m s-1` and `m/s` do. Pure."""

from __future__ import annotations

import re

_PART = re.compile(r"(?P<name>[^\W\d_]+|[%°]\w*)(?:\*\*|\^)?(?P<power>[+-]?\d+)?")
UNNAMED = frozenset({"", "~", "unknown"})
"""What a file writes that knows no unit."""


def same_unit(one: str, other: str) -> bool:
    """Whether two texts name one unit, however powers are written; who names none contradicts nothing."""
    if UNNAMED & {one.strip(), other.strip()}:
        return True
    return one.strip() == other.strip() or _powers(one) == _powers(other) is not None


def _powers(text: str) -> dict[str, int] | None:
    """Each part of a unit with its power; None where the text is nothing of that kind."""
    found: dict[str, int] = {}
    for place, factor in enumerate(text.split("/")):
        sign = 1 if place == 0 else -1
        rest = _PART.sub("", factor)
        if rest.strip(" .*1"):
            return None
        for part in _PART.finditer(factor):
            found[part["name"]] = found.get(part["name"], 0) + sign * int(part["power"] or 1)
    return found
