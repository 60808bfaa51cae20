"""A real model for parity: LightGBM's trees on random numbers, as the ONNX graph that serves."""

from __future__ import annotations

from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from almanac.manifest import Reference
from almanac.scoring import Scorer
from jobs.training.convert import Fitted, Recipe, to_onnx

TREES, LEAVES, ROWS = 40, 31, 4_000


def scorer(spread: dict[str, tuple[float, float]], outputs: tuple[str, ...], entity: str) -> Scorer:
    """A scorer of trees that look at every input.

    Args:
        spread: inputs in order, each with the least and greatest value that is worth a split.
    """
    dice = np.random.default_rng(5)
    least, greatest = np.array(list(spread.values())).T
    rows: NDArray[Any] = dice.uniform(least, greatest, (ROWS, len(spread)))
    recipe, fitted = Recipe(inputs=tuple(spread), differences=()), []
    for output in outputs:
        target = (rows - least) / (greatest - least) @ dice.standard_normal(len(spread))
        options = {"num_leaves": LEAVES, "verbosity": -1, "seed": 3, "num_threads": 1, "deterministic": True}
        booster = lgb.train(options, lgb.Dataset(rows, target), num_boost_round=TREES)
        fitted.append(Fitted(output=output, booster=booster, reference=Reference(weights={}, damping=1.0)))
    return Scorer.open(to_onnx(recipe, fitted), "parity-v1", entity=entity)
