"""What a value is as an entity's key, or why it is none: one decision for whoever takes keys from outside. Pure.

Callers write a key into a path or a JSON body, producers into an event, files into a column. A whole number may come as
17, as "17", or as 17.0, which many JSON writers make of it; a name as text.
"""

from __future__ import annotations

import re
import reprlib
from decimal import Decimal, InvalidOperation

from almanac.errors import UnknownEntity
from almanac.partitioning import NO_TEXT, EntityKey, Grid, Partitioning

FLOAT_KEYS_BELOW = 2**53
"""From here on neighbouring whole numbers are one float: …995 and …996 cannot be told apart."""
TEXT_SHOWN_MAX = 60
"""Characters of a value from outside that an error repeats."""
WHOLE_TEXT_MAX = 64
"""Characters of a whole number as text; leading zeros count."""
_WHOLE = re.compile(r"-?[0-9]+", re.ASCII)


class NotAKey(UnknownEntity):
    """The value can be no key of this kind, whichever entities there are."""


class WrittenFloat(float):
    """A JSON number with a point or an exponent, and how it was written.

    Parsers take it in place of `float`: 4503599627370497.5 has no float of its own, and its neighbour is whole.
    """

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        """Read a number as JSON has it."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __repr__(self) -> str:
        return self.text


class _Shown(reprlib.Repr):
    """Looks at a few levels and parts of a value alone: whatever was sent, it costs the same."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = TEXT_SHOWN_MAX // 3

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: TEXT_SHOWN_MAX + 1])

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[: TEXT_SHOWN_MAX + 1])

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**TEXT_SHOWN_MAX else "a number of too many digits"

    def repr_instance(self, x: object, level: int) -> str:
        return repr(x)[: TEXT_SHOWN_MAX + 1]


_shown = _Shown()


def shown(value: object) -> str:
    """A value from outside as an error may repeat it: quoted if it is text, short, printable; however deep it is."""
    text = _shown.repr(value)
    return text if len(text) <= TEXT_SHOWN_MAX else text[:TEXT_SHOWN_MAX] + "…"


def whole(value: float) -> int | None:
    """The whole number that a float was written as; None if it is not whole, or so large that it may be another's."""
    try:
        exact = Decimal(value.text if isinstance(value, WrittenFloat) else value)
        return int(value) if exact.copy_abs() < FLOAT_KEYS_BELOW and exact == exact.to_integral_value() else None
    except InvalidOperation:  # NaN, or an exponent of twenty digits
        return None


def entity_key(name: str, partitions: Partitioning, value: object) -> EntityKey:
    """The key that a value from outside names.

    Args:
        name: what the declaration calls the entity, as errors shall.
        value: text, a whole number, or a float (of JSON a `WrittenFloat`) that is whole and below 2**53.

    Raises:
        NotAKey: it is of another kind, such as 17.5 or True.
        UnknownEntity: it is a key, and of no entity that these partitions can have.
    """
    if isinstance(value, float):
        number = whole(value)
        if number is None:
            raise NotAKey(
                f"{name} {shown(value)} is not a whole number below 2**53, as a key with a point or an "
                "exponent must be: send it as a string"
            )
        value = number
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _no_key(name, partitions, value)
    if partitions.key_type is str:
        return _named(name, partitions, value)
    if isinstance(value, str):
        if not _WHOLE.fullmatch(value) or len(value) > WHOLE_TEXT_MAX:
            raise _no_key(name, partitions, value)
        value = int(value)
    if abs(value) >= 10**TEXT_SHOWN_MAX:  # errors repeat numbers whole
        raise _no_key(name, partitions, value)
    return partitions.check(value)


def _named(name: str, partitions: Partitioning, value: int | str) -> EntityKey:
    if isinstance(value, str) and NO_TEXT.search(value):  # one step, however long it is
        raise NotAKey(f"{name} {shown(value)} is not Unicode text: give the entity's own key")
    return partitions.check(value)


def _no_key(name: str, partitions: Partitioning, value: object) -> NotAKey:
    if partitions.key_type is str:
        return NotAKey(f"{name} {shown(value)} is not a key: give a string or a whole number")
    if isinstance(partitions, Grid):
        last = partitions.cells - 1
        return NotAKey(f"{name} {shown(value)} is not on the grid: cells are the whole numbers 0 to {last}")
    return NotAKey(f"{name} {shown(value)} is not a key: give a whole number")
