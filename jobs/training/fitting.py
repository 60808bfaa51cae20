"""From fitted trees to a registered version: what every way of making a model has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from almanac.manifest import Input, Parity
from almanac.pipeline import Pipeline
from almanac.registry import GOLDEN_FILE, MODEL_FILE
from almanac.scoring import Scorer
from almanac.training import Training
from jobs.training.convert import Fitted, Recipe, to_onnx
from jobs.training.evaluate import golden_rows, prove

if TYPE_CHECKING:
    import lightgbm
    import pyarrow as pa

THREADS = 2
LIBRARIES = ("lightgbm", "onnx", "onnxruntime", "feast", "numpy")

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model in the form that it is registered in.

    Args:
        files: contents by name: the ONNX graph, golden rows, LightGBM's texts.
        scorer: the graph, opened as it will serve.
        parity: how closely it answered the golden rows.
    """

    files: Mapping[str, bytes]
    scorer: Scorer
    parity: Parity


def boost(
    training: Training, columns: Any, truth: Any, names: Sequence[str], *, group: Any = None, **parameters: Any
) -> lightgbm.Booster:
    """Fit LightGBM so that the same rows give the same trees.

    Args:
        training: size and seed.
        columns: (rows, columns), float32 or float64.
        truth: float64 (rows,).
        names: of the columns.
        group: for a ranking: rows of each list, one list after the other.
        parameters: LightGBM's, beside size and seed.
    """
    import lightgbm

    every: dict[str, Any] = {
        "num_leaves": training.leaves,
        "learning_rate": training.learning_rate,
        "bagging_freq": 1,
        "use_missing": False,
        "seed": training.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": THREADS,
        "verbosity": -1,
        **parameters,
    }
    data = lightgbm.Dataset(columns, truth, group=group, feature_name=list(names), params=every)
    return lightgbm.train(every, data, num_boost_round=training.trees)


def make(pipeline: Pipeline, recipe: Recipe, fitted: Sequence[Fitted], rows: pa.Table) -> Made:
    """One ONNX graph of all outputs, proved on golden rows to answer as LightGBM does.

    Args:
        rows: real ones, as the model reads them; some of them become golden rows.

    Raises:
        ModelError: the trees ask what cannot be said exactly, or ONNX Runtime does not agree with LightGBM.
    """
    files = {
        MODEL_FILE: to_onnx(recipe, fitted),
        GOLDEN_FILE: golden_rows(recipe, fitted, rows, pipeline.training.seed),
        **{f"model-{one.output}.txt": one.booster.model_to_string().encode() for one in fitted},
    }
    return proved(pipeline, files)


def proved(pipeline: Pipeline, files: Mapping[str, bytes]) -> Made:
    """The model of these files, proved on their golden rows; raises as `make` does."""
    scorer = Scorer.open(files[MODEL_FILE], pipeline.model_name, entity=pipeline.entity, threads=THREADS)
    return Made(files=files, scorer=scorer, parity=prove(scorer, files[GOLDEN_FILE]))


def libraries() -> dict[str, str]:
    """The versions that a model was made with."""
    return {name: version(name) for name in LIBRARIES}


def inputs_of(scorer: Scorer) -> tuple[Input, ...]:
    """The input columns as the manifest has them."""
    return tuple(Input(name=name, dtype=dtype) for name, dtype in zip(scorer.inputs, scorer.dtypes, strict=True))
