"""Schedules: what a declaration may give, and that each refusal says what to write instead."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.challenger import Challenger
from almanac.clock import parse_time
from almanac.errors import DeclarationError
from almanac.integrity import Integrity
from almanac.schedule import PRESETS, check_schedule, partition_key_of, tick_before, ticks_back, ticks_between
from pipelines.weather import weather

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
TAKEN = (
    "0 * * * *", "5 * * * *", "*/5 * * * *", "0 9,17 * * 1-5", "0 0 * * MON-fri", "0 0 1 jan,JUL *", "0 0 * * 7",
    "0 0 L * *", "0 0 * * L5", "0 0 * * 5#2", "0 0 15W * *", "50-10 * * * *", "0 20-4 * * *", "0 0 * * fri-mon",
    "0 0 ? * 1", "5/15 * * * *", "0 0 29 2 *", "0\t*  * * *",
)  # fmt: skip


@pytest.mark.parametrize("expression", TAKEN)
def test_what_airflow_takes_is_taken(expression: str) -> None:
    assert replace(weather, schedule=expression).schedule == expression
    ticks = list(islice(ticks_back(expression, NOON), 3))
    assert ticks == sorted(ticks, reverse=True)
    assert list(ticks_between(expression, ticks[-1], ticks[0])) == ticks[::-1]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("61 * * * *", "it is no cron expression .*out of range"),
        ("0 24 * * *", "out of range"),
        ("0 0 0 * *", "out of range"),
        ("0 0 * 13 *", "out of range"),
        ("0 0 * * 8", "out of range"),
        ("59-61 * * * *", "out of bands"),
        ("*/0 * * * *", "step '0'"),
        ("1,,2 * * * *", "no cron expression"),
        ("0 0 * * Sunday", "no cron expression"),
        ("0 0 * * 1#6", "Invalid day_of_week value"),
        ("5- * * * *", "no cron expression"),
        ("\u0665 * * * *", "no cron expression"),
        ("0 0 LW * *", "no cron expression"),
        ("@hourly", "write the five fields that it stands for, '0 [*] [*] [*] [*]'"),
        ("@Daily", "write the five fields that it stands for, '0 0 [*] [*] [*]'"),
        ("@once", "cron expression of five fields"),
        ("", "cron expression of five fields"),
        ("0 * * *", "cron expression of five fields"),
        ("0 0 * * * *", "five fields, in UTC, such as '0 [*] [*] [*] [*]', not of 6"),
        ("0 0 0 1 1 * 2030", "not of 7"),
        ("CRON_TZ=Europe/Berlin 0 6 * * *", "a time zone cannot be named"),
        ("0 6 * * * UTC", "a time zone cannot be named"),
        ("0 0 31 2 *", "no such day ever comes: give a day that the month has"),
        ("0 0 31 4,6,9,11 *", "no such day ever comes"),
        ("H * * * *", "drawn anew each time"),
        ("R(0-10) * * * *", "drawn anew each time"),
        ("0 r,5 * * *", "drawn anew each time"),
        ("*/90 * * * *", "a step of 90 comes once in each round of the field for the minute, which has 60 values"),
        ("0 */36 * * *", "a step of 36 comes once in each round of the field for the hour"),
        ("0 0 1-31/40 * *", "a step of 40 .* day of the month"),
    ],
)
def test_what_is_no_schedule_is_refused_with_what_to_write(expression: str, says: str) -> None:
    with pytest.raises(DeclarationError, match=f"pipeline weather: schedule is .*{says}"):
        replace(weather, schedule=expression)
    with pytest.raises(DeclarationError, match=f"Integrity.schedule is .*{says}"):
        Integrity(schedule=expression)
    with pytest.raises(DeclarationError, match=f"Challenger.schedule is .*{says}"):
        Challenger(schedule=expression)


@pytest.mark.parametrize("given", [60, None, timedelta(hours=1), ("0 * * * *",)])
def test_what_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(DeclarationError, match=r"schedule is .*: give text; give a cron expression of five fields"):
        check_schedule("schedule", given)


def test_each_of_airflows_names_stands_for_a_schedule() -> None:
    for expression in PRESETS.values():
        check_schedule("schedule", expression)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TAKEN),
    st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001 - the zone is added
)
def test_the_newest_tick_is_at_or_before_the_moment_and_none_is_between(expression: str, moment: datetime) -> None:
    tick = tick_before(expression, moment)
    assert tick is not None
    assert tick <= moment
    assert tick_before(expression, tick) == tick
    assert list(ticks_between(expression, tick, moment)) == [tick]


@pytest.mark.parametrize(
    ("schedule", "moment", "key"),
    [
        ("0 * * * *", "2026-03-31T06:00:00Z", "2026-03-31T06:00Z"),
        ("0 * * * *", "2026-03-31T06:59:59.9Z", "2026-03-31T06:00Z"),
        ("5 * * * *", "2026-03-31T06:04:00Z", "2026-03-31T05:05Z"),
        ("0 3 * * *", "2026-03-31T02:00:00Z", "2026-03-30T03:00Z"),
    ],
)
def test_a_run_by_hand_counts_for_the_latest_tick_at_or_before_it(schedule: str, moment: str, key: str) -> None:
    assert partition_key_of(schedule, parse_time(moment)) == key
