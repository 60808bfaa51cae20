"""What an event is worth: stream answers beside batch ones about the same moments, over the held-out week.

    ALMANAC_SOURCE_DATA=weather=<file> python -m benchmarks.event [--held-out-hours 168 | --quick]

A model is made as `almanac train` makes it, on the hours before the held-out
ones. Then every cell and hour T of these is an event, scored from features of
T - 1 h: as they are, and brought forward (`features/forward.py`). Beside them
what batch says as of T - 1 h, brought to the same moment on the line between
its outputs, and what it would say as of T. Features are computed without Feast.

Prints mean absolute errors, and last one JSON object.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import HOUR
from almanac.declarations import pipeline as declared
from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from almanac.quality import horizons
from almanac.scoring import Scorer
from benchmarks.measuring import run
from benchmarks.recorded import quick_training, recording_of, week_options
from features.forward import bring_forward
from features.grid import CARRIED, HISTORY_HOUR, HISTORY_HOURS, differences, grid_features, observation_names
from features.sources import grid_of
from features.sources.replay import Recording
from jobs.training.convert import Fitted, Recipe, to_onnx
from jobs.training.dataset import Split, sample
from jobs.training.train import boost, reference_for

TRAINED_HOURS_MIN = 72
"""Hours with features before the held-out ones: more than the longest horizon twice."""

Fields = dict[str, NDArray[np.float32]]


class Week:
    """All hours that have features; the last of them are held out. Fields are (hours, cells)."""

    def __init__(self, pipeline: Pipeline, recording: Recording, held_out_hours: int) -> None:
        grid, observed = grid_of(pipeline)
        self.pipeline, self.variable = pipeline, observed.variable
        found = grid_features(recording.values, recording.times, grid, observed.variable)
        self.columns: Fields = {name: part.reshape(len(part), -1) for name, part in found.items()}
        self.values = recording.values[HISTORY_HOURS:].reshape(len(recording.values) - HISTORY_HOURS, -1)
        if not 0 < held_out_hours < len(self.values) - TRAINED_HOURS_MIN:
            raise UsageError(
                f"{held_out_hours} of {len(self.values)} hours with features cannot be held out: give --held-out-hours "
                f"from 1 on, and leave at least {TRAINED_HOURS_MIN} hours to train on"
            )
        self.cut = Split(first=0, held_out=len(self.values) - held_out_hours, last=len(self.values) - 1)

    def model(self) -> Scorer:
        """One trained on the hours before the held-out ones."""
        rows = sample(self.pipeline, self.cut)
        names = tuple(name for name in self.columns if name not in CARRIED)
        recipe = Recipe(inputs=names, differences=differences(self.variable))
        fitted = []
        for output, horizon in horizons(self.pipeline):
            ahead = horizon // HOUR
            some = rows.pick(np.flatnonzero(rows.hours <= self.cut.training_end(ahead)))
            inputs = np.stack([self.columns[name][some.hours, some.cells] for name in names], axis=-1)
            reference = reference_for(self.variable, ahead)
            truth = self.values[some.hours + ahead, some.cells].astype(np.float64)
            change = truth - recipe.reference(inputs, reference)
            booster = boost(self.pipeline, recipe, recipe.apply(inputs), change)
            fitted.append(Fitted(output=output, booster=booster, reference=reference))
        return Scorer.open(to_onnx(recipe, fitted), "event", entity=self.pipeline.entity, threads=2)

    def at(self, hours: NDArray[np.int64]) -> Fields:
        """The columns at these hours, every cell in a row."""
        return {name: part[hours].ravel() for name, part in self.columns.items()}


def errors(week: Week) -> dict[str, dict[str, float]]:
    """Mean absolute error of each answer, by output."""
    scorer = week.model()
    ahead = {output: horizon // HOUR for output, horizon in horizons(week.pipeline)}
    events = np.arange(week.cut.held_out, len(week.values) - max(ahead.values()))
    before, now = week.at(events - 1), week.at(events)
    stale = before | {name: now[name] for name in observation_names(week.variable)}
    hours = stale[HISTORY_HOUR].astype(np.float64) + 1.0
    said = {
        "stream, an hour old": scorer.score(stale),
        "stream, brought forward": scorer.score(stale | bring_forward(stale, hours, week.variable)),
        "batch as of T": scorer.score(now),
    }
    truth = {output: week.values[events + hour].ravel() for output, hour in ahead.items()}
    batch = brought_to_moments(scorer.score(before), ahead)
    found = {"batch as of T - 1 h": {name: _error(batch[name], truth[name]) for name in batch}}
    return found | {who: {name: _error(values[name], truth[name]) for name in ahead} for who, values in said.items()}


def brought_to_moments(values: dict[str, Any], ahead: dict[str, int]) -> dict[str, Any]:
    """Outputs of an hour before, on the line to those moments that lie between two of them."""
    names = list(ahead)
    found = {}
    for first, second in pairwise(names):
        share = 1 / (ahead[second] - ahead[first])
        moment = values[first] * (1 - share) + values[second] * share
        found[first] = moment  # an hour after the first, which is its horizon counted from T
    return found


def _error(values: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    return round(float(np.abs(values - truth).mean(dtype=np.float64)), 4)


def main() -> None:
    """Print a line per answer, and last one JSON object."""
    given, pipeline = week_options(__doc__), declared("weather")
    if given.quick:
        pipeline = quick_training(pipeline)
    found = errors(Week(pipeline, recording_of(pipeline, quick=given.quick), given.held_out_hours))
    for name, by_output in found.items():
        print(f"{name:<24}", "  ".join(f"{output} {error:.3f}" for output, error in by_output.items()))
    print(json.dumps({"name": "event", "unit": "K", "errors": found}))


if __name__ == "__main__":
    run(main)
