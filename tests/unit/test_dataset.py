from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from almanac.clock import parse_time
from almanac.errors import DeclarationError, SourceError
from almanac.pipeline import Output, Training, days, minutes
from jobs.training.dataset import Rows, Truth, every_row, horizon_hours, sample, split
from jobs.training.evaluate import baselines
from pipelines.weather import weather

HORIZONS = (1, 6, 12, 24)
CELLS = weather.partitions.rows * weather.partitions.cols


def test_no_row_learns_what_was_unknown_when_a_measured_forecast_was_made() -> None:
    cut = split(weather, 24, 719)
    assert cut.last - cut.held_out + 1 == 168
    for hours in HORIZONS:
        first, last = cut.measured(hours)
        assert (first + hours, last + hours) == (cut.held_out, cut.last)
        assert cut.training_end(hours) + hours <= first


def test_too_little_history_is_refused_with_how_much_there_is() -> None:
    first = 24
    enough = first + 168 + 48 + 72 - 2
    assert split(weather, first, enough).training_end(24) - first + 1 == 72
    with pytest.raises(SourceError, match="71 are left for the longest horizon and 72 are needed"):
        split(weather, first, enough - 1)
    with pytest.raises(SourceError, match="0 are left"):
        split(weather, first, first - 1)


def test_the_sample_is_drawn_by_the_seed_before_the_held_out_window() -> None:
    cut = split(weather, 24, 719)
    rows = sample(weather, cut)
    assert len(rows) == weather.training.rows_max
    assert len(set(zip(rows.hours.tolist(), rows.cells.tolist(), strict=True))) == len(rows)
    assert rows.hours.min() >= cut.first
    assert rows.hours.max() <= cut.training_end(1)
    assert rows.cells.min() >= 0 and rows.cells.max() < CELLS  # noqa: PT018
    again = sample(weather, cut)
    np.testing.assert_array_equal(again.hours, rows.hours)
    other = sample(replace(weather, training=replace(weather.training, seed=8)), cut)
    assert not np.array_equal(other.cells, rows.cells)
    small = replace(weather, training=Training(rows_max=10**9))
    assert len(sample(small, cut)) == (cut.training_end(1) - cut.first + 1) * CELLS


def test_every_row_comes_once() -> None:
    chunks = list(every_row(weather, 100, 500))
    assert len(chunks) > 1
    pairs = np.concatenate([rows.hours * CELLS + rows.cells for rows in chunks])
    np.testing.assert_array_equal(pairs, np.arange(100 * CELLS, 501 * CELLS))


def test_baselines_are_the_value_now_and_the_last_known_one_of_that_hour() -> None:
    values = np.arange(100, dtype=np.float32)[:, None] + np.array([[0, 1000]], dtype=np.float32)
    truth = Truth(first=parse_time("2026-03-01T00:00:00Z"), values=values)
    rows = Rows(hours=np.array([50, 60]), cells=np.array([0, 1]))
    for hours, valid in ((1, 51), (6, 56), (12, 62), (24, 74), (30, 80), (48, 98)):
        said = baselines(truth, rows.pick(np.array([0])), hours)
        assert said["as_now"].tolist() == [50]
        yesterday = said["same_hour_yesterday"].item()
        assert (valid - yesterday) % 24 == 0
        assert 50 - 24 < yesterday <= 50
    assert truth.at(rows, 6).tolist() == [56, 1066]


@pytest.mark.parametrize("horizon", [None, minutes(90)])
def test_outputs_without_whole_hours_are_refused(horizon) -> None:  # type: ignore[no-untyped-def]
    output = Output(name="t2m_x", horizon=horizon)
    with pytest.raises(DeclarationError, match="declare outputs with horizons"):
        horizon_hours(weather, output)
    assert horizon_hours(weather, Output(name="t2m_2d", horizon=days(2))) == 48
