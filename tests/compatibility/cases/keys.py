"""Entities' keys, as callers, producers and files write them."""

from __future__ import annotations

import json

from almanac.entity_keys import WrittenFloat, entity_key
from almanac.partitioning import Buckets, Grid, Partitioning
from tests.compatibility.tables import Case, Converted, Table, Taken, cell

CELLS, NUMBERS, NAMES = Grid(rows=4, cols=5, tile=2), Buckets(count=4, keys="integer"), Buckets(count=4)


def case(written: str, partitions: Partitioning, kind: str) -> Case:
    """A key as JSON has it."""

    def attempt() -> Taken | Converted:
        value = json.loads(written, parse_float=WrittenFloat)
        key = entity_key("key", partitions, value)
        shown = cell(json.dumps(key))
        return Taken(shown) if type(key) is type(value) and key == value else Converted(shown)

    return Case(f"{cell(written)} {kind}", attempt)


TABLE = Table(
    given="key, in JSON",
    cases=(
        *(case(text, CELLS, "of a grid of 20 cells") for text in ("17", '"17"', "17.0", '"17.0"', "20", "-1", "true")),
        *(
            case(text, NUMBERS, "of whole numbers")
            for text in (
                "1234567890123456789", '"1234567890123456789"', "9007199254740993", "9007199254740993.0", "1e15",
                "9223372036854775807", "9223372036854775808", '"-5"', '"+5"', '"007"', '" 5"', '"٣"', "17.5", "null",
                "[1]", '""',
            )
        ),
        *(case(text, NAMES, "of names") for text in ('"basel"', "17", '"Zürich"', '"a\\u0000b"', '"\\ud800"', '""')),
    ),
)  # fmt: skip
