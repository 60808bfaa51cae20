"""When a generation is late: by examples of a person's kind, and by properties over schedules and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.errors import DeclarationError
from almanac.lateness import ALLOWANCE_MIN, allowance, decide_lateness, due_ticks

HOURLY = "0 * * * *"
FRESH = timedelta(minutes=90)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-10T{text}:00+00:00")


@pytest.mark.parametrize(
    ("cutoff", "now", "since"),
    [
        (at("12:00"), at("12:59"), None),
        (at("12:00"), at("13:29"), None),  # the run of 13:00 has until what 12:00 made turns stale
        (at("12:00"), at("13:30"), at("13:30")),
        (at("12:00"), at("16:10"), at("13:30")),  # since the first one that is missing
        (at("13:07"), at("13:45"), None),  # a run by hand after the tick does as well
        (at("14:00"), at("13:45"), None),
    ],
)
def test_an_hourly_pipeline(cutoff: datetime, now: datetime, since: datetime | None) -> None:
    found = decide_lateness(HOURLY, FRESH, cutoff=cutoff, expected_since=LONG_AGO, now=now)
    assert found.since == since
    assert found.late is (since is not None)
    assert found.late_for(now) == (timedelta(0) if since is None else now - since)


def test_the_reason_names_the_generation_that_is_missing_and_the_one_there_is() -> None:
    found = decide_lateness(HOURLY, FRESH, cutoff=at("12:00"), expected_since=LONG_AGO, now=at("15:45"))
    assert found.reason == (
        "the generation for 2026-03-10T15:00:00Z was due at 2026-03-10T15:30:00Z; "
        "the current one is for 2026-03-10T12:00:00Z"
    )


def test_nothing_published_is_late_only_for_ticks_that_were_watched() -> None:
    early = decide_lateness(HOURLY, FRESH, cutoff=None, expected_since=at("13:05"), now=at("14:29"))
    assert not early.late
    late = decide_lateness(HOURLY, FRESH, cutoff=None, expected_since=at("13:05"), now=at("14:31"))
    assert late.since == at("14:30")
    assert "nothing is published" in late.reason


def test_first_triggered_between_two_ticks_nothing_is_late_before_the_next_one() -> None:
    """Triggered first at 20:40 for the last full hour: nobody was there at 20:05 to make a generation for it."""
    hourly, begun = "5 * * * *", at("20:40")
    for now, since in ((at("20:41"), None), (at("21:34"), None), (at("21:36"), at("21:35"))):
        found = decide_lateness(hourly, FRESH, cutoff=at("20:00"), expected_since=begun, now=now)
        assert found.since == since
    restarted = decide_lateness(hourly, FRESH, cutoff=at("20:00"), expected_since=at("20:00"), now=at("20:41"))
    assert restarted.since == at("20:35")  # somebody was there: it was late


@pytest.mark.parametrize(
    ("interval", "fresh_for", "expected"),
    [
        (timedelta(hours=1), timedelta(minutes=90), timedelta(minutes=30)),
        (timedelta(hours=1), timedelta(minutes=20), ALLOWANCE_MIN),  # stale for a part of each hour, as declared
        (timedelta(hours=1), timedelta(hours=24), timedelta(hours=1)),  # never more than an interval
        (timedelta(minutes=1), timedelta(seconds=30), timedelta(seconds=30)),
    ],
)
def test_the_allowance(interval: timedelta, fresh_for: timedelta, expected: timedelta) -> None:
    assert allowance(interval, fresh_for) == expected


def test_a_schedule_that_is_none_is_named() -> None:
    with pytest.raises(DeclarationError, match="99"):
        decide_lateness("99 * * * *", FRESH, cutoff=None, expected_since=LONG_AGO, now=at("12:00"))


def test_a_schedule_that_never_comes_makes_nothing_late() -> None:
    assert not decide_lateness("0 0 31 2 *", FRESH, cutoff=None, expected_since=LONG_AGO, now=at("12:00")).late


schedules = st.sampled_from(
    [HOURLY, "*/5 * * * *", "0 */6 * * *", "30 2 * * *", "0 9,17 * * 1-5", "15 4 1 * *", "* * * * *", "0 0 * * 0"]
)
year = (datetime(2026, 1, 1), datetime(2026, 12, 31))  # noqa: DTZ001 - Hypothesis adds the zone
moments = st.datetimes(*year, timezones=st.just(UTC))
durations = st.timedeltas(timedelta(minutes=1), timedelta(days=10))
few = settings(max_examples=60, deadline=None)


@few
@given(schedules, durations, moments, st.none() | durations, durations)
def test_what_is_late_stays_late_until_a_newer_generation_comes(
    schedule: str, fresh_for: timedelta, now: datetime, old: timedelta | None, later: timedelta
) -> None:
    cutoff = None if old is None else now - old
    first = decide_lateness(schedule, fresh_for, cutoff=cutoff, expected_since=LONG_AGO, now=now)
    after = decide_lateness(schedule, fresh_for, cutoff=cutoff, expected_since=LONG_AGO, now=now + later)
    if first.late:
        assert after.late
        assert first.since is not None
        assert first.since <= now


@few
@given(schedules, durations, moments)
def test_a_generation_for_the_newest_due_tick_or_later_is_never_late(
    schedule: str, fresh_for: timedelta, now: datetime
) -> None:
    newest = next(due_ticks(schedule, fresh_for, now), None)
    if newest is not None:
        assert newest.due_at <= now
        for cutoff in (newest.at, now):
            assert not decide_lateness(schedule, fresh_for, cutoff=cutoff, expected_since=LONG_AGO, now=now).late
        just_before = newest.at - timedelta(seconds=1)
        assert decide_lateness(schedule, fresh_for, cutoff=just_before, expected_since=LONG_AGO, now=now).late


@few
@given(schedules, durations, moments)
def test_ticks_are_due_after_them_and_within_an_interval(schedule: str, fresh_for: timedelta, now: datetime) -> None:
    ticks = [tick for tick, _ in zip(due_ticks(schedule, fresh_for, now), range(20), strict=False)]
    assert [tick.at for tick in ticks] == sorted({tick.at for tick in ticks}, reverse=True)
    for tick in ticks:
        assert tick.at < tick.due_at <= now
