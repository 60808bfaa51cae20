"""`almanac trigger --as-of`: what is typed wrong never becomes a run."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from almanac.errors import UsageError
from jobs.cli import partition_key

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)


HOURLY = "0 * * * *"


def test_the_default_is_the_last_full_hour_or_a_later_tick() -> None:
    assert partition_key("", HOURLY, NOW) == "2026-03-10T12:00Z"
    assert partition_key("", "5 * * * *", NOW) == "2026-03-10T12:05Z"
    assert partition_key("", "35 * * * *", NOW) == "2026-03-10T12:00Z"
    assert partition_key("", "0 3 * * *", NOW) == "2026-03-10T12:00Z"
    assert partition_key("2026-03-09T06:00Z", "5 * * * *", NOW) == "2026-03-09T06:00Z"


@pytest.mark.parametrize("typed", ["yesterday", "2026-03-09", "2026-03-09T06:00", "2026-13-09T06:00Z"])
def test_what_is_no_time_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="is not a time such as"):
        partition_key(typed, HOURLY, NOW)


def test_the_future_is_refused() -> None:
    with pytest.raises(UsageError, match="lies in the future"):
        partition_key("2026-03-10T12:31Z", HOURLY, NOW)
