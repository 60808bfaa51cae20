"""What an event's fields may hold: numbers within what was declared, and lines of them. Pure.

A line is one of several things that an event says, such as an item of a basket:

    {"item_id": "85123A", "quantity": 6, "price": 2.55}

An event with one line that cannot be believed is refused whole: half a basket would be another basket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from almanac.entity_keys import whole
from almanac.errors import EventError
from almanac.events_declared import Lines, ValueRange
from almanac.ranking_declared import ANY_ITEM

SHOWN_CHARS_MAX = 60
FLOAT32_MAX = 3.4028234663852886e38
"""The greatest number that a Float32 column can hold: beyond it a number would be infinite for whoever reads it."""
ITEM_BYTES_MAX = 256
"""Size of an item's name, as of an entity's."""

Line = dict[str, float | str]
"""The item and the values of one line, by field."""


def shown(what: object) -> str:
    """A value as a message shows it: one line, short, ASCII."""
    try:
        text = ascii(what)
    except RecursionError:  # readers of JSON go a little deeper than whoever writes it
        return "nested too deeply"
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


def need(fields: Mapping[str, Any], name: str, where: str = "") -> Any:
    """A field that must be there.

    Raises:
        EventError: it is not.
    """
    if name not in fields:
        raise EventError("missing-field", f"field {where + name!r} is missing: send {name}")
    return fields[name]


def number(name: str, found: Any, allowed: ValueRange, unit: str = "") -> float:
    """A field's value, finite and within what was declared of it; of a yes or no, that.

    Raises:
        EventError: it is not.
    """
    if allowed is bool:
        if not isinstance(found, bool):
            raise EventError("wrong-type", f"{name} is {shown(found)}: send true or false")
        return found
    remedy = f"send a number{' in' + unit if unit else ''}"
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise EventError("wrong-type", f"{name} is {shown(found)}: {remedy}")
    try:
        value = float(found)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise EventError("not-finite", f"{name} is not finite: {remedy}")
    if abs(value) > FLOAT32_MAX:
        raise EventError("out-of-range", f"{name} is {value:g}, no feature holds more than {FLOAT32_MAX:g}: correct it")
    if isinstance(allowed, tuple) and not allowed[0] <= value <= allowed[1]:
        least, greatest = allowed
        raise EventError("out-of-range", f"{name} is {value:g}{unit}, not within {least:g} to {greatest:g}: correct it")
    return value


def lines_of(fields: Mapping[str, Any], declared: Lines) -> tuple[Line, ...]:
    """The lines of an event, each believed, in their order; an item may stand in several.

    Raises:
        EventError: one of them cannot be, or there are none, or too many.
    """
    found = need(fields, declared.name)
    if not isinstance(found, list):
        raise EventError("wrong-type", f"{declared.name} is {shown(found)}: send a list of lines")
    if not found:
        raise EventError("no-lines", f"{declared.name} is empty: send at least one line")
    if len(found) > declared.most:
        raise EventError(
            "too-many-lines",
            f"{declared.name} has {len(found):,} lines, at most {declared.most:,} are read: send several events",
        )
    return tuple(_line(line, declared, f"{declared.name}[{at}].") for at, line in enumerate(found))


def _line(found: Any, declared: Lines, where: str) -> Line:
    if not isinstance(found, dict):
        raise EventError("wrong-type", f"{where.rstrip('.')} is {shown(found)}: send an object with {declared.item}")
    line: Line = {declared.item: _item(need(found, declared.item, where), where + declared.item)}
    for name, allowed in declared.values.items():
        line[name] = number(where + name, need(found, name, where), allowed)
    return line


def _item(found: Any, name: str) -> str:
    """An item's name: text, or a whole number as text; of a float as entities' keys are."""
    if isinstance(found, float):
        number = whole(found)
        found = found if number is None else number
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise EventError("wrong-type", f"{name} is {shown(found)}: send it as a string")
    try:
        text = str(found)
        size = len(text.encode())
    except ValueError:  # a lone surrogate, or an endless number
        raise EventError("wrong-type", f"{name} cannot be written as text: send a string") from None
    if "\0" in text or text == ANY_ITEM or not 1 <= size <= ITEM_BYTES_MAX:
        raise EventError(
            "bad-item",
            f"{name} is {shown(text)}: send the item's own name, of 1 to {ITEM_BYTES_MAX} bytes, without NUL and "
            f"not {ANY_ITEM!r}",
        )
    return text
