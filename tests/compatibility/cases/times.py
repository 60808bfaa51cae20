"""Times of events."""

from __future__ import annotations

import json

from almanac.clock import format_time
from streaming.events import parse
from tests.compatibility.cases.events import NOW, TINY
from tests.compatibility.tables import Case, Converted, Table, Taken, cell


def case(written: str) -> Case:
    """`observed_at` of an event, as JSON has it."""

    def attempt() -> Taken | Converted:
        value = f'{{"cell_id": 17, "observed_at": {written}, "t2m": 281.3}}'.encode()
        moment = format_time(parse(value, None, None, TINY, NOW).observed_at)
        return Taken() if json.loads(written) == moment else Converted(cell(moment))

    return Case(cell(written), attempt)


TABLE = Table(
    given="`observed_at`, received at 2026-11-21T13:30:00Z",
    cases=tuple(
        case(text)
        for text in (
            '"2026-11-21T13:20:00Z"', '"2026-11-21T13:20:00z"', '"2026-11-21t13:20:00z"',
            '"2026-11-21T13:20:00+00:00"', '"2026-11-21 13:20:00Z"', '"2026-11-21T14:20:00+01:00"',
            '"2026-11-21T14:20:00+0100"', '"2026-11-21T13:20:00-00:00"', '"2026-11-21T13:20:00,5Z"',
            '"2026-11-21_13:20:00Z"', '"2026-11-21T13:20:00 Z"', '"2026-11-21T13:20:00+24:00"',
            '"2026-11-21T13:20:00.123456Z"', '"2026-11-21T13:20:00.123456789Z"', '"20261121T132000Z"',
            '"2026-11-21T13:20Z"', '"2026-W47-6T13:20:00Z"', '"2026-11-21T13:20:60Z"', '"2026-11-21T24:00:00Z"',
            '"2026-11-21T13:20:00"', '"2026-11-21"', '"1969-12-31T23:59:59Z"', '"2026-11-21T13:34:59Z"',
            '"2026-11-21T13:35:01Z"', '"２０２６-11-21T13:20:00Z"', '"yesterday"', "1763731200", "1763731200.5",
            "null",
        )
    ),
)  # fmt: skip
