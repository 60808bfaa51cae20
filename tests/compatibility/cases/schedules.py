"""Schedules of a pipeline, of a challenger and of the checks of features."""

from __future__ import annotations

from almanac.schedule import check_schedule
from tests.compatibility.tables import Case, Table, Taken, cell


def case(expression: str) -> Case:
    """`schedule` of a declaration."""

    def attempt() -> Taken:
        check_schedule("schedule", expression)
        return Taken()

    return Case(cell(expression), attempt)


TABLE = Table(
    given="`schedule`, in UTC",
    cases=tuple(
        case(expression)
        for expression in (
            "5 * * * *", "*/5 * * * *", "5/15 * * * *", "0 9,17 * * 1-5", "0 0 * * MON-fri", "0 0 1 jan,JUL *",
            "50-10 * * * *", "0 0 * * fri-mon", "0 0 ? * 1", "0 0 L * *", "0 0 * * L5", "0 0 * * 5#2", "0 0 15W * *",
            "0 0 29 2 *", "0 0 31 2 *", "61 * * * *", "0 24 * * *", "*/90 * * * *", "0 0 * * Sunday", "@hourly",
            "@once", "0 * * *", "0 0 * * * *", "CRON_TZ=Europe/Berlin 0 6 * * *", "H * * * *",
        )
    ),
)  # fmt: skip
