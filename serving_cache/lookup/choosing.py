"""What of a list a caller wants: how many items, which ones not, and which by their attributes. Pure.

    limit=5&exclude=85123A,"RED, WHITE AND BLUE"&filter=price<3,price>=0.5

A comma stands between items and between conditions; an item that holds one stands in double quotes. A list keeps more
items than it answers with, so that enough are left; where they are not, the answer is shorter.
"""

from __future__ import annotations

import csv
import ctypes
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from almanac.entity_keys import shown, whole
from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.ranked import RankedList

EXCLUDED_MAX = 1_000  # items
CONDITIONS_MAX = 16

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]{0,62})\s*(<=|>=|!=|<|>|=)\s*(\S{1,40})\s*", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)


class NoLists(UsageError):
    """Something is wanted of lists that a pipeline does not have."""


@dataclass(frozen=True)
class Condition:
    """What must hold of an attribute: `price < 3`; the number as a float32, as attributes are."""

    attribute: str
    operator: str
    number: float

    def holds(self, value: float) -> bool:
        """Whether it does."""
        return _OPERATORS[self.operator](value, self.number)


@dataclass(frozen=True)
class Choice:
    """What of a list is answered."""

    limit: int
    exclude: frozenset[str] = frozenset()
    conditions: tuple[Condition, ...] = ()

    def of(self, found: RankedList) -> RankedList:
        """The list without what is not wanted, in its order, at most `limit` items."""
        if not self.exclude and not self.conditions:
            return found.first(self.limit)
        places = [
            place
            for place, item in enumerate(found.items)
            if item not in self.exclude
            and all(c.attribute in found.attributes and c.holds(found.attributes[c.attribute][place])
                    for c in self.conditions)
        ][: self.limit]  # fmt: skip
        return RankedList(
            items=tuple(found.items[place] for place in places),
            scores=tuple(found.scores[place] for place in places),
            attributes={name: tuple(values[place] for place in places) for name, values in found.attributes.items()},
        )


def choice(pipeline: Pipeline, limit: object, exclude: object, conditions: object) -> Choice | None:
    """What a caller wants of the pipeline's lists; None of a pipeline that has none.

    Args:
        limit: a number, or its digits; `exclude` and `conditions`: text, or a list of texts; None where not given.

    Raises:
        NoLists: the pipeline has none.
        UsageError: one of them cannot be understood; says what to give.
    """
    ranking = pipeline.ranking
    given = [
        name for name, value in (("limit", limit), ("exclude", exclude), ("filter", conditions)) if value is not None
    ]
    if ranking is None:
        if given:
            raise NoLists(f"{pipeline.name} answers numbers, not lists: leave {given[0]} out")
        return None
    return Choice(
        ranking.length if limit is None else _limit(limit, ranking.kept),
        frozenset(_texts("exclude", exclude, EXCLUDED_MAX)),
        tuple(_condition(text, ranking.attributes) for text in _texts("filter", conditions, CONDITIONS_MAX)),
    )


def _limit(value: object, kept: int) -> int:
    number = int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value
    if isinstance(number, float):
        number = whole(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= kept:
        raise UsageError(f"limit is {shown(value)}: give 1 to {kept}, the items that a list keeps")
    return number


def _texts(name: str, value: object, most: int) -> list[str]:
    """One text with commas between its parts, or a list of parts."""
    if value is None:
        return []
    found: Sequence[object] = value if isinstance(value, list) else _parts(name, value)
    if len(found) > most:
        raise UsageError(f"{name} has {len(found):,} parts: give at most {most:,}")
    if not all(isinstance(part, str) and part for part in found):
        raise UsageError(f"{name} is {shown(value)}: give texts that are not empty, with commas between them")
    return [str(part) for part in found]


def _parts(name: str, value: object) -> list[str]:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {shown(value)}: give text, or a list of texts")
    try:
        rows = list(csv.reader([value], strict=True, skipinitialspace=True))
    except csv.Error:
        raise UsageError(f"{name} is {shown(value)}: close its double quotes") from None
    return [part for row in rows for part in row]


def _condition(text: str, attributes: tuple[str, ...]) -> Condition:
    known = ", ".join(attributes) or "none"
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(f"filter {shown(text)} is no condition: give one such as price<3, of {known}")
    name, sign, digits = found.groups()
    if name not in attributes:
        raise UsageError(f"filter names {name}, which answers do not carry (declared: {known}): correct it")
    try:
        number = float(digits) if digits.isascii() and "_" not in digits else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"filter {shown(text)} compares with {shown(digits)}: give a number")
    # Attributes are float32: 2.95 means the number that answers show as 2.95.
    return Condition(name, sign, ctypes.c_float(number).value)
