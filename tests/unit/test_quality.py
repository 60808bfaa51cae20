"""Sampling, due moments, interpolation and the report of outcomes: the pure parts."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.clock import HOUR
from almanac.errors import UsageError
from almanac.quality import (
    HASHES,
    SAMPLED_ENTITIES_MAX,
    Sums,
    at_moment,
    has_outcomes,
    horizons,
    hours_around,
    is_sampled,
    next_span,
    sample_threshold,
)
from jobs.quality_report import bars, draw, nothing_yet, paired_rows, since, source_rows
from pipelines.weather import weather
from serving_cache.prediction_log import Progress

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MOMENTS = st.integers(0, 72 * 60).map(lambda minutes: NOON + timedelta(minutes=minutes))
AHEAD = horizons(weather)


def test_all_of_few_entities_are_sampled_and_about_ten_thousand_of_many() -> None:
    assert sample_threshold(SAMPLED_ENTITIES_MAX) == HASHES
    assert all(is_sampled(str(cell), HASHES) for cell in range(2_000))
    threshold = sample_threshold(100_000)
    chosen = sum(is_sampled(f"user-{n}", threshold) for n in range(100_000))
    assert 0.95 * SAMPLED_ENTITIES_MAX < chosen < 1.05 * SAMPLED_ENTITIES_MAX


@given(few=st.integers(1, 10**7), more=st.integers(1, 10**7), key=st.text(max_size=20))
def test_a_growing_pipeline_only_ever_lets_go_of_entities(few: int, more: int, key: str) -> None:
    small, large = sample_threshold(few), sample_threshold(few + more)
    assert large <= small
    assert is_sampled(key, small) or not is_sampled(key, large)


@given(settled=st.none() | MOMENTS, earliest=MOMENTS, observed=MOMENTS)
def test_spans_cover_every_due_moment_once_and_nothing_unobserved(
    settled: datetime | None, earliest: datetime, observed: datetime
) -> None:
    at, end, end_before, first = settled, None, None, None
    for _ in range(100):
        span = next_span(at, earliest, observed)
        if span is None:
            break
        start, end = span
        first = first or start
        assert end_before is None or start == end_before
        end_before = end
        assert start < end <= observed
        assert end - start <= HOUR
        at = end
    else:
        pytest.fail("never done")
    if first is not None:
        assert end == observed
        assert first <= max(earliest, settled or earliest)


def test_with_an_empty_log_nothing_is_due() -> None:
    assert next_span(None, None, NOON) is None
    assert next_span(NOON, None, NOON + HOUR) is None
    assert next_span(NOON, NOON - HOUR, NOON) is None


def test_between_the_hours_observations_lie_on_the_line() -> None:
    assert hours_around(NOON) == (NOON, NOON, 0.0)
    assert hours_around(NOON + timedelta(minutes=15)) == (NOON, NOON + HOUR, 0.25)


@given(minutes=st.integers(0, 26 * 60), slope=st.floats(-5, 5))
def test_an_older_answer_is_brought_to_the_moment_on_the_line_and_never_beyond(minutes: int, slope: float) -> None:
    values = {name: 280 + slope * (horizon / HOUR) for name, horizon in AHEAD}
    found = at_moment(NOON, values, AHEAD, NOON + timedelta(minutes=minutes))
    if minutes < 60 or minutes > 24 * 60:
        assert found is None
    else:
        assert found == pytest.approx(280 + slope * minutes / 60)


def test_an_answer_without_an_output_is_read_between_the_others() -> None:
    assert at_moment(NOON, {"t2m_1h": 1.0, "t2m_12h": 12.0}, AHEAD, NOON + 6 * HOUR) == pytest.approx(6.0)
    assert at_moment(NOON, {"t2m_6h": 6.0}, AHEAD, NOON + 6 * HOUR) == 6.0
    assert at_moment(NOON, {"t2m_6h": 6.0}, AHEAD, NOON + 5 * HOUR) is None
    assert at_moment(NOON, {}, AHEAD, NOON + 5 * HOUR) is None


def errors() -> dict[tuple[str, str], Sums]:
    stream, batch = Sums(), Sums()
    for off in (-1.0, 2.0):
        stream.add(280 + off, 280, HOUR, 283)
        stream.add_pair(280 + off, 280, HOUR, 284, 2 * HOUR)
    batch.add(284, 280, 2 * HOUR, None)
    return {("t2m_1h", "stream"): stream, ("t2m_1h", "batch"): batch}


def test_the_report_has_what_was_summed() -> None:
    (pair,) = paired_rows(weather, errors())
    assert (pair["mae"], pair["beside_mae"], pair["ratio"], pair["n"]) == (1.5, 4.0, 0.375, 2)
    assert (pair["age_seconds"], pair["beside_age_seconds"]) == (3600, 7200)
    stream, batch = source_rows(weather, errors())
    assert (stream["source"], stream["bias"], stream["as_now_mae"]) == ("stream", 0.5, 3.0)
    assert stream["rmse"] == pytest.approx(2.5**0.5)
    assert (batch["source"], batch["mae"], batch["as_now_mae"]) == ("batch", 4.0, None)


def test_bars_are_to_scale_and_none_is_drawn_for_nothing() -> None:
    long, short = bars([("a", 2.0), ("b", 1.0)], "K").splitlines()
    assert long.count("█") == 2 * short.count("█") > 0
    assert "█" not in bars([("a", 0.0)], "K")
    assert bars([], "K") == ""


def test_the_drawing_is_sound_and_has_a_bar_for_each_error(tmp_path: Path) -> None:
    draw(tmp_path / "quality.svg", weather, errors())
    widths = [
        float(found) for found in re.findall(r'<rect [^>]*width="([0-9.]+)"', (tmp_path / "quality.svg").read_text())
    ]
    assert len(widths) == 2
    assert widths[0] / widths[1] == pytest.approx(1.5 / 4.0, abs=0.01)


def test_without_outcomes_it_says_when_the_first_is_due() -> None:
    waiting = Progress(settled=NOON, next_due=NOON + HOUR, logged=99)
    assert "99 predictions wait, the first is about 2026-03-01T13:00:00" in nothing_yet(weather, waiting)
    done = Progress(settled=NOON, next_due=None, logged=99)
    assert "settled up to 2026-03-01T12:00:00" in nothing_yet(weather, done)
    assert "almanac trigger weather" in nothing_yet(weather, Progress(settled=None, next_due=None, logged=0))


def test_since_is_a_time_or_so_long_ago() -> None:
    assert since("", NOON) is None
    assert since("90m", NOON) == NOON - timedelta(minutes=90)
    assert since("7d", NOON) == NOON - timedelta(days=7)
    assert since("2026-02-28T00:00:00Z", NOON) == datetime(2026, 2, 28, tzinfo=UTC)
    for wrong in ("yesterday", "h", "-3h", "999999999999d"):
        with pytest.raises(UsageError, match="--since"):
            since(wrong, NOON)


def test_only_forecasts_of_what_is_observed_have_outcomes() -> None:
    assert has_outcomes(weather)
    assert not has_outcomes(replace(weather, outputs=tuple(replace(o, horizon=None) for o in weather.outputs)))
