"""How ways of making the weather model do before the held-out week: what docs/model.md chose by.

    ALMANAC_SOURCE_DATA=weather=<file> python -m benchmarks.forecast [--held-out-hours 168 | --quick]

The held-out week is cut off first and never looked at. What is left is
validated in two ways: `forward` trains on what lies before each of four
consecutive spans and is measured on the span; `calm` is measured on the days
whose daily cycle was strongest against the change from day to day, and trained
on the days that are further than a day from them: will it hold when the daily
cycle is stronger than any that training has seen?

Prints, for each way and horizon, the mean absolute error over that of the better
baseline; below 1 is better than both. Features are computed without Feast.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from almanac.declarations import pipeline as declared
from almanac.errors import UsageError
from almanac.manifest import Reference
from almanac.pipeline import Pipeline
from benchmarks.measuring import run
from benchmarks.recorded import quick_training, recording_of, week_options
from features.grid import HISTORY_HOURS, differences, grid_features, observation_names, same_hour_column
from features.sources import grid_of
from features.sources.replay import Recording
from jobs.training.convert import Recipe
from jobs.training.train import boost, reference_for

ROWS_TRAINED = 30_000
ROWS_MEASURED = 60_000
QUICK_SHARE = 10
"""What `--quick` divides both numbers of rows by."""
SPANS = 4
FIRST_SPAN_AT = 0.4  # of the hours before the held-out week: what the first span is trained on
CALM_DAYS = 4
HORIZONS = (1, 6, 12, 24)
SEED = 1

Hours = NDArray[np.int64]
Way = Callable[[str, int], dict[str, float]]


def as_now(variable: str, hours: int) -> dict[str, float]:
    """Weights of the reference: the value now."""
    return {variable: 1.0}


def half_yesterday(variable: str, hours: int) -> dict[str, float]:
    """Weights of the reference: the mean of both baselines."""
    column = same_hour_column(variable, hours)
    return {variable: 1.0} if column in (None, variable) else {variable: 0.5, str(column): 0.5}


def yesterday(variable: str, hours: int) -> dict[str, float]:
    """Weights of the reference: the last known value of the same hour of day."""
    return {same_hour_column(variable, hours) or variable: 1.0}


def chosen(variable: str, hours: int) -> dict[str, float]:
    """Weights of the reference: as `almanac train` takes them."""
    return reference_for(variable, hours).weights


WAYS: dict[str, Way] = {
    "as now": as_now,
    "half yesterday": half_yesterday,
    "yesterday": yesterday,
    "as almanac train": chosen,
}


class History:
    """The hours before the held-out week, with their features; hours count from the first that has them."""

    def __init__(self, pipeline: Pipeline, recording: Recording, held_out_hours: int, share: int = 1) -> None:
        grid, observed = grid_of(pipeline)
        self.rows_trained, self.rows_measured = ROWS_TRAINED // share, ROWS_MEASURED // share
        values = recording.values[: len(recording.values) - held_out_hours]
        columns = grid_features(values, recording.times[: len(values)], grid, observed.variable)
        self.variable = observation_names(observed.variable)[0]
        self.recipe = Recipe(inputs=tuple(columns), differences=differences(observed.variable))
        self.values = values[HISTORY_HOURS:].reshape(len(values) - HISTORY_HOURS, -1)
        self.inputs = np.stack([part.reshape(self.values.shape) for part in columns.values()], axis=-1)

    def draw(self, hours: Hours, size: int) -> tuple[Hours, Hours]:
        """Rows (hour, cell) at the given hours.

        Raises:
            UsageError: there are no hours: the recording is too short.
        """
        if not len(hours):
            raise UsageError(
                f"{len(self.values)} hours with features lie before the held-out ones, too few to train on: "
                "name a longer file in ALMANAC_SOURCE_DATA, or give lesser --held-out-hours"
            )
        cells = self.values.shape[1]
        count = len(hours) * cells
        drawn = np.random.default_rng(SEED).choice(count, size=min(size, count), replace=False)
        return hours[drawn // cells], drawn % cells

    def folds(self, ahead: int) -> Iterator[tuple[str, Hours, Hours]]:
        """Kind, hours to train on, and hours to measure, none of whose truth was trained on."""
        total = len(self.values)
        edges = np.linspace(int(total * FIRST_SPAN_AT), total, SPANS + 1).astype(int)
        for first, end in pairwise(edges):
            yield "forward", np.arange(24, first - 2 * ahead + 1), np.arange(first, end) - ahead
        calm = self._calm()
        near = np.convolve(calm, np.ones(49), "same") > 0
        made = np.arange(24, total - ahead)
        yield "calm", made[~near[made + ahead] & ~calm[made]], made[calm[made + ahead]]

    def _calm(self) -> NDArray[np.bool_]:
        """Hours of the days whose half-day change was greatest against their day-to-day change."""
        days = np.arange(1, len(self.values) // 24)
        strength = []
        for day in days:
            hours = np.arange(day * 24, day * 24 + 24)
            half, whole = (np.abs(self.values[hours] - self.values[hours - back]).mean() for back in (12, 24))
            strength.append(half / whole)
        calm = days[np.argsort(strength)[-CALM_DAYS:]]
        return np.isin(np.arange(len(self.values)) // 24, calm)


def errors(history: History, pipeline: Pipeline, ahead: int) -> dict[str, dict[str, list[float]]]:
    """Mean absolute errors of every way and of the better baseline, by kind of fold."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind, train_hours, measured_hours in history.folds(ahead):
        hours, cells = history.draw(train_hours, history.rows_trained)
        inputs, truth = history.inputs[hours, cells], history.values[hours + ahead, cells]
        hours, cells = history.draw(measured_hours[measured_hours + ahead >= 24], history.rows_measured)
        seen, told = history.inputs[hours, cells], history.values[hours + ahead, cells]
        said = [history.values[hours, cells], history.values[hours + ahead - 24 * -(-ahead // 24), cells]]
        errors_of = found.setdefault(kind, {})
        errors_of.setdefault("better", []).append(min(float(np.abs(told - one).mean()) for one in said))
        columns, seen_columns = history.recipe.apply(inputs), history.recipe.apply(seen)
        damping = reference_for(history.variable, ahead).damping
        for name, way in WAYS.items():
            reference = Reference(weights=way(history.variable, ahead), damping=damping)
            known = history.recipe.reference(inputs, reference)
            booster = boost(pipeline, history.recipe, columns, truth - known)
            change = np.asarray(booster.predict(seen_columns))
            for label, share in ((name, 1.0), (f"{name}, damped", damping)):
                answer = history.recipe.reference(seen, reference) + share * change
                errors_of.setdefault(label, []).append(float(np.abs(told - answer).mean()))
    return found


def main() -> None:
    """Print a line per way, and last one JSON object."""
    given, pipeline = week_options(__doc__), declared("weather")
    if given.quick:
        pipeline = quick_training(pipeline)
    pipeline = replace(pipeline, training=replace(pipeline.training, seed=SEED))
    share = QUICK_SHARE if given.quick else 1
    history = History(pipeline, recording_of(pipeline, quick=given.quick), given.held_out_hours, share)
    ratios: dict[str, dict[str, float]] = {}
    for ahead in HORIZONS:
        for kind, errors_of in errors(history, pipeline, ahead).items():
            better = float(np.mean(errors_of.pop("better")))
            for name, values in errors_of.items():
                ratios.setdefault(name, {})[f"{kind} {ahead} h"] = round(float(np.mean(values)) / better, 3)
    for name, found in ratios.items():
        print(f"{name:<26}", "  ".join(f"{what} {ratio:.3f}" for what, ratio in found.items()))
    print(json.dumps(ratios))


if __name__ == "__main__":
    run(main)
