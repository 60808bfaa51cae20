"""Times to whole microseconds and back, exactly; a time without a zone is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.clock import DAY_MICROSECONDS, EPOCH, at_micros, format_time, micros_of, need_utc, parse_time

ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES | st.just(UTC))  # noqa: DTZ001
MICROS_MIN, MICROS_MAX = micros_of(datetime.min.replace(tzinfo=UTC)), micros_of(datetime.max.replace(tzinfo=UTC))


@given(MOMENTS)
def test_a_moment_comes_back_from_its_microseconds(moment: datetime) -> None:
    assert at_micros(micros_of(moment)) == moment
    assert at_micros(micros_of(moment)).tzinfo is UTC
    assert parse_time(format_time(moment)) == moment


@given(st.integers(MICROS_MIN, MICROS_MAX))
def test_microseconds_come_back_from_their_moment(micros: int) -> None:
    assert micros_of(at_micros(micros)) == micros
    assert at_micros(np.int64(micros)) == at_micros(micros)


@given(st.integers(MICROS_MIN, MICROS_MAX - 1))
def test_a_microsecond_later_is_one_more(micros: int) -> None:
    assert at_micros(micros + 1) - at_micros(micros) == timedelta(microseconds=1)


def test_they_are_counted_from_1970() -> None:
    assert (micros_of(EPOCH), at_micros(0)) == (0, EPOCH)
    assert micros_of(datetime(1970, 1, 2, tzinfo=UTC)) == DAY_MICROSECONDS == 86_400_000_000
    assert at_micros(-1) == datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


def test_nanoseconds_are_rounded_down_and_subclasses_counted_alike() -> None:
    assert micros_of(pd.Timestamp("1970-01-01T00:00:00.000001999Z")) == 1
    assert micros_of(pd.Timestamp("1969-12-31T23:59:59.999999999Z")) == -1
    assert type(need_utc(pd.Timestamp("2026-03-01T12:00+02:00"))) is datetime


@pytest.mark.parametrize("micros", [MICROS_MIN - 1, MICROS_MAX + 1, -(2**63), 2**63 - 1, 2**80])
def test_what_no_datetime_names_is_refused(micros: int) -> None:
    with pytest.raises(OverflowError):
        at_micros(micros)


def test_a_time_without_a_zone_and_a_number_that_is_not_whole_are_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        micros_of(datetime(2026, 3, 1))  # noqa: DTZ001
    with pytest.raises(TypeError):
        at_micros(1.0)  # type: ignore[arg-type]
