"""Train a pipeline's model: historical features, LightGBM, ONNX, proof, registry.

1. ingest: offline features up to now;
2. rows: cells x hours before the held-out window, features through Feast, truth from the source;
3. fit: one LightGBM per output, on the change against a reference;
4. convert to one ONNX graph, and prove on golden rows that it answers as LightGBM does;
5. measure on every cell and hour of the held-out window, beside both baselines;
6. register the version, and let the declared alias name it; where a challenger is declared, only past its gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.clock import HOUR
from almanac.errors import FeatureError, FilesChanged, UsageError
from almanac.manifest import Description, Metric, Reference, Window
from almanac.pipeline import GridObservations, Output, Pipeline
from almanac.registry import ModelVersion
from almanac.settings import Settings
from features.grid import CARRIED, differences, same_hour_column
from jobs.training import fitting
from jobs.training.convert import Fitted, Floats, Recipe
from jobs.training.dataset import Rows, Split, Truth, features, horizon_hours, read_truth, sample, split
from jobs.training.declared import as_read, doubles_of
from jobs.training.evaluate import as_matrix, measure
from jobs.training.fitting import Made, Progress, inputs_of, libraries, make
from jobs.training.promotion import champion, judged, register

if TYPE_CHECKING:
    import lightgbm
    import pyarrow as pa

LEAF_SHARE = 400
"""A leaf holds at least one in so many training rows: neighbouring cells and hours are near copies of each other."""
LEAF_ROWS_MIN = 20
AS_NOW_HOURS = 3
PERSISTING_SHARE = 0.3
BEGINNINGS_MAX = 3
"""How often features that change while they are read let a training begin."""
DAMPING_A_DAY = 0.5
"""A change predicted a day ahead is believed by half, and by so much more or less as it is nearer or further."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is made from: rows with their features and the truth, cut by time."""

    truth: Truth
    cut: Split
    rows: Rows
    table: pa.Table
    recipe: Recipe
    variable: str
    source: str


def train(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> ModelVersion:
    """Make, prove, measure and register a new version; the pipeline's alias names it afterwards.

    Args:
        pipeline: declares source, features, outputs and `Training`.
        settings: where sources, features and models are.
        now: history up to this moment is used.
        progress: told each step in a few words.

    Raises:
        UsageError: the pipeline has neither a source of observations nor labels.
        SourceError: observations are unusable, or too few.
        FeatureError: features are missing.
        FilesChanged: another run wrote them anew each of `BEGINNINGS_MAX` times that they were read.
        ModelError: ONNX Runtime does not agree with LightGBM.
    """
    for beginning in range(1, BEGINNINGS_MAX + 1):
        try:
            return _train(pipeline, settings, now=now, progress=progress)
        except FilesChanged as error:  # nothing is registered before the end
            if beginning == BEGINNINGS_MAX:
                raise
            progress(f"beginning again, for a batch run brought features up meanwhile ({error})")
    raise AssertionError("unreachable: the last beginning returns or raises")


def _train(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> ModelVersion:
    if pipeline.ranking is not None:
        from jobs.training.ranker import train_ranking

        return train_ranking(pipeline, settings, now=now, progress=progress)
    if not isinstance(pipeline.source, GridObservations):
        from jobs.training.labelled import train_on_labels

        return train_on_labels(pipeline, settings, now=now, progress=progress)
    data = prepare(pipeline, settings, now=now, progress=progress)
    matrix = as_matrix(data.table, data.recipe.dtype)
    fitted = []
    for output in pipeline.outputs:
        progress(f"fitting {output.name}")
        fitted.append(_fit(pipeline, output, data, matrix))
    progress("converting to ONNX, proving it on golden rows")
    made = make(pipeline, data.recipe, fitted, data.table)
    progress("measuring on every cell and hour of the held-out window")
    made_here, rival = made.scorer, champion(pipeline, settings, data.table.column_names)
    found = measure(pipeline, settings, (made_here, *rival.scorers), data.truth, data.cut)
    description = _describe(pipeline, data, fitted, made, found[0])
    description = judged(pipeline, description, rival, found[1:])
    return register(pipeline, settings, made, description, now=now, progress=progress)


def prepare(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> Data:
    """Steps 1 and 2: everything that is learned from; raises as `train` does."""
    from features.ingest import refresh
    from features.store import apply

    if not isinstance(pipeline.source, GridObservations):
        raise UsageError(f"pipeline {pipeline.name} has no source to train on: declare one")
    progress("reading observations")
    truth, first, source = read_truth(pipeline, settings, now)
    last = len(truth.values) - 1
    cut = split(pipeline, first, last)
    progress("registering the feature definitions")
    apply(settings)  # so that a changed Feast file counts from the next model on
    progress(f"making features of {last - first + 1} hours")
    refresh(pipeline, settings, truth.first + last * HOUR, window=timedelta(hours=last - first))
    rows = sample(pipeline, cut)
    progress(f"retrieving {len(rows):,} training rows through Feast")
    table = features(pipeline, settings, truth, rows)
    table = table.drop_columns([name for name in CARRIED if name in table.column_names])
    variable = pipeline.source.variable
    pairs = differences(variable)
    absent = sorted({name for pair in pairs for name in pair} - set(table.column_names))
    if absent:
        raise FeatureError(
            f"FeatureService {pipeline.features} lacks {', '.join(absent[:5])}: give it every view of features/grid.py"
        )
    inputs = tuple(table.column_names)
    recipe = Recipe(inputs=inputs, differences=pairs, doubles=doubles_of(pipeline, settings, inputs))
    table = as_read(table, recipe.doubles)
    return Data(truth=truth, cut=cut, rows=rows, table=table, recipe=recipe, variable=variable, source=source)


def _fit(pipeline: Pipeline, output: Output, data: Data, matrix: Floats) -> Fitted:
    """Step 3 for one output: trees for the change against its reference."""
    hours = horizon_hours(pipeline, output)
    chosen = np.flatnonzero(data.rows.hours <= data.cut.training_end(hours))
    rows, inputs = data.rows.pick(chosen), matrix[chosen]
    truth = data.truth.at(rows, hours).astype(np.float64)
    reference = reference_for(data.variable, hours)
    change = truth - data.recipe.reference(inputs, reference)
    booster = boost(pipeline, data.recipe, data.recipe.apply(inputs), change)
    return Fitted(output=output.name, booster=booster, reference=reference)


def reference_for(variable: str, hours: int) -> Reference:
    """What a forecast that many hours ahead is a change against, and how much of the change is believed.

    Up to `AS_NOW_HOURS` the value now; beyond, the last known value of the hour
    of day that it speaks about, moved by the share of the difference between now
    and 24 hours ago that tends to persist. So the daily cycle's strength is
    yesterday's own, and need not be one that training has seen.
    """
    damping = DAMPING_A_DAY ** (hours / 24)
    column = same_hour_column(variable, hours)
    if hours <= AS_NOW_HOURS or column is None or column == variable:
        return Reference(weights={variable: 1.0}, damping=damping)
    return Reference(weights={column: 1.0, variable: PERSISTING_SHARE, "lag_24h": -PERSISTING_SHARE}, damping=damping)


def boost(pipeline: Pipeline, recipe: Recipe, columns: Floats, change: NDArray[np.float64]) -> lightgbm.Booster:
    """LightGBM on the absolute error, deterministic, strongly regularised: a month of one sky is few cases."""
    return fitting.boost(
        pipeline.training,
        columns,
        change,
        [f"column_{index}" for index in range(len(recipe.columns))],
        objective="regression_l1",
        min_child_samples=max(LEAF_ROWS_MIN, len(columns) // LEAF_SHARE),
        extra_trees=True,
        feature_fraction=0.3,
        bagging_fraction=0.5,
        lambda_l2=10.0,
        max_bin=63,
    )


def _describe(
    pipeline: Pipeline, data: Data, fitted: Sequence[Fitted], made: Made, metrics: dict[str, Metric]
) -> Description:
    def hour(index: int) -> datetime:
        return data.truth.first + index * HOUR

    shortest = min(horizon_hours(pipeline, output) for output in pipeline.outputs)
    return Description(
        features=pipeline.features,
        inputs=inputs_of(made.scorer),
        outputs=pipeline.output_names,
        training=Window(start=hour(data.cut.first), end=hour(data.cut.training_end(shortest) + shortest)),
        held_out=Window(start=hour(data.cut.held_out), end=hour(data.cut.last)),
        rows=len(data.rows),
        seed=pipeline.training.seed,
        parity=made.parity,
        metrics=metrics,
        references={one.output: one.reference for one in fitted},
        libraries=libraries(),
        data=data.source,
    )
