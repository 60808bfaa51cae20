"""What a pipeline's events are, as its declaration says: their topic, and what each of them carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from almanac.checking import need_a, need_duration, need_name, need_number, need_range
from almanac.errors import DeclarationError

TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
LINES_MAX = 2_000
"""Lines that an event may be declared to have: what fits into a record with them."""

ValueRange = tuple[float, float] | type[bool] | None
"""What may be true of a value: least and greatest, yes or no, or any number."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Events that carry a list of lines, such as the basket of a purchase: each an item and what is said of it.

    An entity's state is then what all its events amount to, in the order of their times; the pushed view holds it.

    Args:
        item: field of a line that names the item.
        values: fields of a line that are numbers, each with what may be true of it, as in `Stream.values`.
        most: lines that one event may have.
        name: field of the event that holds them.
    """

    item: str
    values: Mapping[str, ValueRange]
    most: int = 1_000
    name: str = "lines"

    def __post_init__(self) -> None:
        need_name("Lines.item", self.item, COLUMN)
        need_name("Lines.name", self.name, COLUMN)
        need_values("Lines.values", self.values)
        need_number("Lines.most", self.most, 1, LINES_MAX, whole=True)
        if self.item in self.values:
            raise DeclarationError(f"Lines.values has {self.item!r}, which names the item: rename one of them")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The Kafka topic of a pipeline's events; the other topics are named after the pipeline.

    Args:
        topic: the events' topic.
        future_tolerance: how far ahead of our clock an event's time may lie. Such an event is one of the moment at
            which it arrives; where events carry lines and it is more than 5 s ahead, it is archived and not predicted.
        values: for a pipeline without a source: the columns of the pushed feature view that every event
            carries, each with what is true of it: `(least, greatest)`, `bool`, or None for any number.
        lines: for a pipeline whose entities' state is what their events amount to: what a line of an event carries.
    """

    topic: str
    future_tolerance: timedelta = timedelta(minutes=5)
    values: Mapping[str, ValueRange] = field(default_factory=dict)
    lines: Lines | None = None

    def __post_init__(self) -> None:
        need_name("Stream.topic", self.topic, TOPIC)
        need_duration("Stream.future_tolerance", self.future_tolerance)
        need_values("Stream.values", self.values)
        need_a("Stream.lines", self.lines, (Lines, type(None)), "give Lines(item=…, values={…}), or leave it out")
        if self.lines is not None and self.values:
            raise DeclarationError("Stream has values and lines: give what a line carries in Lines.values")
        if self.future_tolerance < timedelta(0):
            raise DeclarationError(f"Stream.future_tolerance is {self.future_tolerance}: give 0 or more")


def need_values(what: str, values: object) -> None:
    """Refuse what is no dictionary of columns, each with what may be true of it.

    Raises:
        DeclarationError: says which column, and what to give.
    """
    need_a(what, values, Mapping, "give a dictionary such as {'rides': (0, 500)}")
    for name, allowed in values.items():  # type: ignore[attr-defined]
        need_name(f"a column of {what}", name, COLUMN)
        if allowed is not None and allowed is not bool:
            need_range(f"{what}[{name!r}]", allowed)
