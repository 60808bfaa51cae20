"""Train a model of a pipeline whose features and truth somebody else keeps up, in Feast views over Parquet.

The labels view has a row per truth: entity, the moment that the features must
speak as of, and a column per output. The last `Training.holdout` of these
moments is held out. A row is trained on only if its truth was known before the
held-out window began: its moment lies an output's horizon before it.

1. definitions and files are found sound;
2. labels of the training window, and their features point in time, through Feast;
3. fit: one LightGBM per output, with the declared objective;
4. convert to one ONNX graph, and prove on golden rows that it answers as LightGBM does;
5. measure on the held-out rows, beside the best constants;
6. register the version, and let the declared alias name it; where a challenger is declared, only past its gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.clock import MICROSECOND, at_micros, format_time
from almanac.errors import FeatureError, UsageError
from almanac.manifest import Description, Metric, Reference, Window
from almanac.pipeline import Output, Pipeline
from almanac.registry import ModelVersion
from almanac.scoring import Scorer
from almanac.settings import Settings
from jobs.training.convert import Fitted, Floats, Recipe
from jobs.training.declared import as_read, doubles_of
from jobs.training.evaluate import as_matrix
from jobs.training.fitting import Made, Progress, boost, inputs_of, libraries, make
from jobs.training.promotion import champion, judged, register

if TYPE_CHECKING:
    import pyarrow as pa

LABELS_MAX = 5_000_000
"""Labels read into memory: some hundred MB."""
ROWS_AT_ONCE_MAX = 500_000
"""Rows retrieved at once: each retrieval reads the keys and times of the files anew."""
MEASURED_ROWS_MAX = 200_000
TRAINING_ROWS_MIN = 50
MEASURED_ROWS_MIN = 10
LEAF_ROWS_MIN = 20
LEAF_SHARE = 2_000
"""A leaf holds at least one in so many training rows."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Rows with features and truth, in time order.

    Args:
        moments: microseconds since 1970, int64 (rows,).
        inputs: (rows, features), every number finite; float64 if a feature's declared type needs it.
        truth: float64 (rows,) by output.
        table: the features again, as Arrow.
    """

    moments: NDArray[np.int64]
    inputs: Floats
    truth: dict[str, Numbers]
    table: pa.Table

    def __len__(self) -> int:
        return len(self.moments)


def train_on_labels(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> ModelVersion:
    """Make, prove, measure and register a new version; the pipeline's alias names it afterwards.

    Raises:
        UsageError: the pipeline declares no labels.
        FeatureError: definitions, files or labels do not fit, or too few rows are left; says what to change.
        ModelError: ONNX Runtime does not agree with LightGBM.
    """
    training, held_out, told = prepare(pipeline, settings, now=now, progress=progress)
    inputs = tuple(training.table.column_names)
    recipe = Recipe(inputs=inputs, differences=(), doubles=doubles_of(pipeline, settings, inputs))
    fitted, baselines = [], {}
    for output in pipeline.outputs:
        progress(f"fitting {output.name}")
        chosen = training.moments <= _last_known(held_out, output)
        if chosen.sum() < TRAINING_ROWS_MIN:
            raise FeatureError(
                f"{int(chosen.sum())} labels of {output.name} were known before the held-out window, "
                f"{TRAINING_ROWS_MIN} are needed: give more history, or shorten Training.holdout"
            )
        truth = training.truth[output.name][chosen]
        baselines[output.name] = {"mean": float(truth.mean()), "median": float(np.median(truth))}
        fitted.append(_fit(pipeline, output, recipe, training.inputs[chosen], truth))
    progress("converting to ONNX, proving it on golden rows")
    made = make(pipeline, recipe, fitted, training.table)
    progress(f"measuring on {len(held_out):,} held-out rows")
    rival = champion(pipeline, settings, held_out.table.column_names)
    found = [measure(pipeline, scorer, held_out, baselines) for scorer in (made.scorer, *rival.scorers)]
    description = _describe(pipeline, training, held_out, made, found[0], told)
    description = judged(pipeline, description, rival, found[1:])
    return register(pipeline, settings, made, description, now=now, progress=progress)


def prepare(
    pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress
) -> tuple[Labelled, Labelled, str]:
    """Steps 1 and 2: rows to train on, rows held out, and what they are in a few words; raises as above."""
    from features.store import apply
    from features.tables import check, labels_of, tables_of, watermark

    name = pipeline.training.labels
    if name is None:
        raise UsageError(
            f"pipeline {pipeline.name} has nothing to train on: declare Training(labels='<a Feast view>'), or bring a "
            f"model along with `almanac models add {pipeline.name}`"
        )
    progress("registering the feature definitions")
    apply(settings)  # so that a changed Feast file counts from the next model on
    labels = labels_of(pipeline, settings, name)
    check((*tables_of(pipeline, settings), labels), pipeline)
    progress(f"reading labels of {name}")
    newest = watermark((labels,), pipeline, now)
    found = labels.rows(
        pipeline.output_names, since=newest - pipeline.training.window, until=newest, rows_max=LABELS_MAX
    )
    if not len(found):
        raise FeatureError(
            f"labels view {name} has no row with every output in the {pipeline.training.window} before "
            f"{format_time(newest)}: write labels, or lengthen Training.window"
        )
    moments = _micros(found)
    last = int(moments[-1])
    first_held_out = last - pipeline.training.holdout // MICROSECOND
    draw = np.random.default_rng(pipeline.training.seed)
    parts = []
    for what, chosen, most in (
        ("training", moments <= first_held_out, pipeline.training.rows_max),
        ("held-out", moments > first_held_out, MEASURED_ROWS_MAX),
    ):
        rows = np.flatnonzero(chosen)
        if len(rows) > most:
            rows = np.sort(draw.choice(rows, size=most, replace=False))
        progress(f"retrieving {len(rows):,} {what} rows through Feast")
        parts.append(_with_features(pipeline, settings, found.take(rows)))
    training, held_out = parts
    _need_enough(pipeline, training, held_out, len(found))
    without = len(found) - len(training) - len(held_out)
    told = f"labels of {name}, features of {pipeline.features}"
    return training, held_out, f"{told}; {without:,} labels without features or beyond the limit" if without else told


def _need_enough(pipeline: Pipeline, training: Labelled, held_out: Labelled, labels: int) -> None:
    if len(training) >= TRAINING_ROWS_MIN and len(held_out) >= MEASURED_ROWS_MIN:
        return
    raise FeatureError(
        f"of {labels:,} labels of {pipeline.name}, {len(training):,} rows to train on and {len(held_out):,} held out "
        f"have all their features, {TRAINING_ROWS_MIN} and {MEASURED_ROWS_MIN} are needed: give more labels, features "
        "with event times at or before the labels' (and within the views' ttl), or change Training.window and holdout"
    )


def _with_features(pipeline: Pipeline, settings: Settings, labels: pa.Table) -> Labelled:
    """The labels that have every feature at their moment, with these."""
    import pyarrow as pa

    from features.offline.reading import historical

    asked = labels.select([pipeline.entity, "event_timestamp"])
    parts = [
        historical(pipeline, settings, asked.slice(start, ROWS_AT_ONCE_MAX)).drop_columns(asked.column_names)
        for start in range(0, len(asked), ROWS_AT_ONCE_MAX)
    ]
    if not parts:
        return Labelled(moments=np.empty(0, np.int64), inputs=np.empty((0, 0), np.float32), truth={}, table=labels)
    table = pa.concat_tables(parts)
    doubles = doubles_of(pipeline, settings, table.column_names)
    table = as_read(table, doubles)
    inputs = as_matrix(table, np.float64 if doubles else np.float32)
    whole = np.flatnonzero(np.isfinite(inputs).all(axis=1))
    kept = labels.take(whole)
    return Labelled(
        moments=_micros(kept),
        inputs=inputs[whole],
        truth={name: kept[name].to_numpy().astype(np.float64) for name in pipeline.output_names},
        table=table.take(whole).combine_chunks(),
    )


def _last_known(held_out: Labelled, output: Output) -> int:
    """The last moment whose truth was known when the held-out window began."""
    return int(held_out.moments[0]) - (output.horizon // MICROSECOND if output.horizon else 1)


def _fit(pipeline: Pipeline, output: Output, recipe: Recipe, inputs: Floats, truth: Numbers) -> Fitted:
    """Step 3 for one output: LightGBM with the declared objective, deterministic."""
    size = pipeline.training
    if size.objective == "binary" and set(np.unique(truth)) - {0.0, 1.0}:
        raise FeatureError(f"labels of {output.name} are not 0 or 1, as the objective binary needs: write 0 or 1")
    booster = boost(
        size,
        inputs,
        truth,
        recipe.inputs,
        objective=size.objective,
        min_child_samples=max(min(LEAF_ROWS_MIN, len(truth) // 4), len(truth) // LEAF_SHARE),
        feature_fraction=0.8,
        bagging_fraction=0.8,
        lambda_l2=1.0,
    )
    link: Any = "sigmoid" if size.objective == "binary" else "identity"
    return Fitted(output=output.name, booster=booster, reference=Reference(weights={}, damping=1.0), link=link)


def measure(
    pipeline: Pipeline, scorer: Scorer, held_out: Labelled, constants: dict[str, dict[str, float]]
) -> dict[str, Metric]:
    """Errors on the held-out rows, beside constants known from training. The scorer answers, as it will serve."""
    predicted = scorer.score(held_out.table)
    found = {}
    for name in pipeline.output_names:
        truth = held_out.truth[name]
        answers: dict[str, Any] = {"model": predicted[name], **constants[name]}
        absolute = {who: float(np.abs(truth - said).mean()) for who, said in answers.items()}
        squared = {who: float(np.sqrt(np.square(truth - said).mean())) for who, said in answers.items()}
        found[name] = Metric(
            mae=absolute.pop("model"),
            baselines=absolute,
            rows=len(truth),
            rmse=squared.pop("model"),
            rmse_baselines=squared,
            judged_by="mae" if pipeline.training.objective == "regression_l1" else "rmse",
        )
    return found


def _describe(
    pipeline: Pipeline,
    training: Labelled,
    held_out: Labelled,
    made: Made,
    metrics: dict[str, Metric],
    told: str,
) -> Description:
    return Description(
        features=pipeline.features,
        inputs=inputs_of(made.scorer),
        outputs=pipeline.output_names,
        training=_window(training),
        held_out=_window(held_out),
        rows=len(training),
        seed=pipeline.training.seed,
        parity=made.parity,
        metrics=metrics,
        references={},
        libraries=libraries(),
        data=told,
    )


def _window(rows: Labelled) -> Window:
    return Window(start=at_micros(rows.moments[0]), end=at_micros(rows.moments[-1]))


def _micros(labels: pa.Table) -> NDArray[np.int64]:
    import pyarrow as pa

    moments = labels["event_timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return np.asarray(moments.to_numpy(), dtype=np.int64)
