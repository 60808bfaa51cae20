"""Train a pipeline's model: historical features, LightGBM, ONNX, proof, registry.

1. ingest: offline features up to now;
2. rows: cells x hours before the held-out window, features through Feast, truth from the source;
3. fit: one LightGBM per output, on the change against a reference;
4. convert to one ONNX graph, and prove on golden rows that it answers as LightGBM does;
5. measure on every cell and hour of the held-out window, beside both baselines;
6. register the version, and let the declared alias name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version as library_version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import HOUR
from almanac.errors import FeatureError, UsageError
from almanac.manifest import Description, Input, Metric, Parity, Reference, Window
from almanac.pipeline import Output, Pipeline
from almanac.registry import GOLDEN_FILE, MODEL_FILE, ModelVersion, Registry
from almanac.scoring import Scorer
from almanac.settings import Settings
from jobs.convert import Fitted, Floats, Recipe, exact_thresholds, to_onnx
from jobs.dataset import Split, Truth, features, horizon_hours, read_truth, sample, split
from jobs.evaluate import AS_NOW, YESTERDAY, as_matrix, baselines, golden_rows, measure, prove

if TYPE_CHECKING:
    import lightgbm
    import pyarrow as pa

    from jobs.dataset import Rows

LIBRARIES = ("lightgbm", "onnx", "onnxmltools", "onnxruntime", "feast", "numpy")
LEAF_SHARE = 400
"""A leaf holds at least one in so many training rows: neighbouring cells and hours are near copies of each other."""
LEAF_ROWS_MIN = 20
DAMPING_PER_DAY = 0.35
"""How much less of a predicted change is believed for every day ahead: weather forgets. See docs/model.md."""
DAMPING_MIN = 0.5
WEIGHTS = np.linspace(0, 1, 21)
THREADS = 2

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is made from: rows with their features and the truth, cut by time."""

    truth: Truth
    cut: Split
    rows: Rows
    table: pa.Table
    recipe: Recipe
    source: str


def train(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> ModelVersion:
    """Make, prove, measure and register a new version; the pipeline's alias names it afterwards.

    Args:
        pipeline: declares source, features, outputs and `Training`.
        settings: where sources, features and models are.
        now: history up to this moment is used.
        progress: told each step in a few words.

    Raises:
        UsageError: the pipeline has no source of observations.
        SourceError: observations are unusable, or too few.
        FeatureError: features are missing.
        ModelError: ONNX Runtime does not agree with LightGBM.
    """
    data = prepare(pipeline, settings, now=now, progress=progress)
    matrix = as_matrix(data.table)
    fitted = []
    for output in pipeline.outputs:
        progress(f"fitting {output.name}")
        fitted.append(_fit(pipeline, output, data, matrix))
    progress("converting to ONNX, proving it on golden rows")
    golden = golden_rows(data.recipe, fitted, data.table, pipeline.training.seed)
    files = {MODEL_FILE: to_onnx(data.recipe, fitted), GOLDEN_FILE: golden}
    files |= {f"model-{one.output}.txt": one.booster.model_to_string().encode() for one in fitted}
    scorer = Scorer.open(files[MODEL_FILE], pipeline.model_name, entity=pipeline.entity, threads=THREADS)
    parity = prove(scorer, golden)
    progress("measuring on every cell and hour of the held-out window")
    metrics = measure(pipeline, settings, scorer, data.truth, data.cut)
    description = _describe(pipeline, data, fitted, parity, metrics)
    registry = Registry(settings.models_dir)
    registered = registry.register(pipeline.model_name, files, description, now=now)
    registry.set_alias(pipeline.model_name, pipeline.model_alias, registered.version)
    progress(f"registered {registered.id}; {pipeline.model} names it")
    return registered


def prepare(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> Data:
    """Steps 1 and 2: everything that is learned from; raises as `train` does."""
    from features.grid import differences
    from features.ingest import refresh
    from features.store import apply

    if pipeline.source is None:
        raise UsageError(f"pipeline {pipeline.name} has no source to train on: declare one")
    apply(settings)  # so that a changed Feast file counts from the next model on
    progress("reading observations")
    truth, first, source = read_truth(pipeline, settings, now)
    last = len(truth.values) - 1
    cut = split(pipeline, first, last)
    progress(f"making features of {last - first + 1} hours")
    refresh(pipeline, settings, truth.first + last * HOUR, window=timedelta(hours=last - first))
    rows = sample(pipeline, cut)
    progress(f"retrieving {len(rows):,} training rows through Feast")
    table = features(pipeline, settings, truth, rows)
    variable = pipeline.source.variable
    pairs = differences(variable)
    absent = sorted({name for pair in pairs for name in pair} - set(table.column_names))
    if absent:
        raise FeatureError(
            f"FeatureService {pipeline.features} lacks {', '.join(absent[:5])}: give it every view of features/grid.py"
        )
    recipe = Recipe(inputs=tuple(table.column_names), now=variable, differences=pairs)
    return Data(truth=truth, cut=cut, rows=rows, table=table, recipe=recipe, source=source)


def _fit(pipeline: Pipeline, output: Output, data: Data, matrix: Floats) -> Fitted:
    """Step 3 for one output: its reference, and trees for the change against it."""
    hours = horizon_hours(pipeline, output)
    chosen = np.flatnonzero(data.rows.hours <= data.cut.training_end(hours))
    rows, inputs = data.rows.pick(chosen), matrix[chosen]
    truth = data.truth.at(rows, hours).astype(np.float64)
    reference = _reference(data, rows, truth, hours)
    change = truth - data.recipe.reference(inputs, reference)
    booster = _boost(pipeline, data.recipe, data.recipe.apply(inputs), change)
    return Fitted(output=output.name, booster=booster, reference=reference)


def _reference(data: Data, rows: Rows, truth: NDArray[np.float64], hours: int) -> Reference:
    """The blend of both baselines that was nearest to the truth in training."""
    from features.grid import same_hour_column

    damping = max(DAMPING_MIN, 1 - DAMPING_PER_DAY * hours / 24)
    column = same_hour_column(data.recipe.now, hours)
    if column is None or column == data.recipe.now:
        return Reference(column=data.recipe.now, weight=0.0, damping=damping)
    said = baselines(data.truth, rows, hours)
    now, other = said[AS_NOW].astype(np.float64), said[YESTERDAY].astype(np.float64)
    errors = [np.abs(truth - now - weight * (other - now)).mean() for weight in WEIGHTS]
    return Reference(column=column, weight=float(np.round(WEIGHTS[int(np.argmin(errors))], 2)), damping=damping)


def _boost(pipeline: Pipeline, recipe: Recipe, columns: Floats, change: NDArray[np.float64]) -> lightgbm.Booster:
    """LightGBM on the absolute error, deterministic, strongly regularised: a month of weather is few cases."""
    import lightgbm

    size = pipeline.training
    parameters: dict[str, Any] = {
        "objective": "regression_l1",
        "num_leaves": size.leaves,
        "learning_rate": size.learning_rate,
        "min_child_samples": max(LEAF_ROWS_MIN, len(columns) // LEAF_SHARE),
        "feature_fraction": 0.4,
        "bagging_fraction": 0.5,
        "bagging_freq": 1,
        "lambda_l2": 10.0,
        "max_bin": 127,
        "use_missing": False,
        "seed": size.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": THREADS,
        "verbosity": -1,
    }
    names = [f"column_{index}" for index in range(len(recipe.columns))]
    data = lightgbm.Dataset(columns, change, feature_name=names, params=parameters)
    return exact_thresholds(lightgbm.train(parameters, data, num_boost_round=size.trees))


def _describe(
    pipeline: Pipeline, data: Data, fitted: Sequence[Fitted], parity: Parity, metrics: dict[str, Metric]
) -> Description:
    def hour(index: int) -> datetime:
        return data.truth.first + index * HOUR

    shortest = min(horizon_hours(pipeline, output) for output in pipeline.outputs)
    return Description(
        features=pipeline.features,
        inputs=tuple(Input(name=name) for name in data.recipe.inputs),
        outputs=pipeline.output_names,
        training=Window(start=hour(data.cut.first), end=hour(data.cut.training_end(shortest) + shortest)),
        held_out=Window(start=hour(data.cut.held_out), end=hour(data.cut.last)),
        rows=len(data.rows),
        seed=pipeline.training.seed,
        parity=parity,
        metrics=metrics,
        references={one.output: one.reference for one in fitted},
        libraries={name: library_version(name) for name in LIBRARIES},
        data=data.source,
    )
