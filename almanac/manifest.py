"""manifest.json of a registered model: what it reads and answers, how it was made, how well it did."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal

import msgspec

from almanac.challenger import Judged

MANIFEST_FORMAT = 1


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the input schema, and what it is rounded to before the model looks at it: float32 or float64."""

    name: str
    dtype: str = "float32"


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A span of time in UTC, both ends included."""

    start: datetime
    end: datetime


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """How one output did on the held-out window, in the output's unit, beside its baselines.

    Args:
        mae: mean absolute error, and that of each baseline.
        rows: how many rows it was measured on.
        rmse: root of the mean squared error, and that of each baseline; None where nobody asked for it.
        judged_by: which of the two the model was trained for.
    """

    mae: float
    baselines: dict[str, float]
    rows: int
    rmse: float | None = None
    rmse_baselines: dict[str, float] = {}
    judged_by: Literal["mae", "rmse"] = "mae"

    @property
    def judged(self) -> tuple[float, dict[str, float]]:
        """The error that the model was trained for, and that of each baseline."""
        if self.judged_by == "rmse" and self.rmse is not None:
            return self.rmse, self.rmse_baselines
        return self.mae, self.baselines

    @property
    def ratio(self) -> float:
        """The error over that of the better baseline: below 1 is better than both, infinite if a baseline has none."""
        error, baselines = self.judged
        least = min(baselines.values())
        return error / least if least else math.inf

    def against(self, other: Measure) -> float:
        """The error over another model's of the same output: below 1 is better."""
        if not isinstance(other, Metric):
            return math.inf
        mine, theirs = self.judged[0], other.judged[0]
        return mine / theirs if theirs else math.inf


class ListMetric(msgspec.Struct, frozen=True, kw_only=True):
    """How good ranked lists were, beside other lists for the same entities and moments.

    Args:
        recall, ndcg: of the first `length` items, the mean over the lists; and of each baseline.
        rows: how many lists were measured.
    """

    length: int
    recall: float
    ndcg: float
    recall_baselines: dict[str, float]
    ndcg_baselines: dict[str, float]
    rows: int

    @property
    def ratio(self) -> float:
        """The better baseline's NDCG over this one's: below 1 is better than both."""
        return max(self.ndcg_baselines.values()) / self.ndcg if self.ndcg else math.inf

    def against(self, other: Measure) -> float:
        """Another model's NDCG over this one's: below 1 is better."""
        if not isinstance(other, ListMetric) or not self.ndcg:
            return math.inf
        return other.ndcg / self.ndcg


Measure = Metric | ListMetric


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How closely ONNX Runtime agreed with LightGBM on the golden rows, in the output's unit.

    Args:
        rows: golden rows that features really had.
        difference_max: the largest difference on any golden row.
        tolerance: the largest that was allowed on any.
        boundary_rows: golden rows that were made to reach the cuts of the trees' splits; 0 before there were any.
        splits: of all trees.
        splits_reached: those that boundary rows reach on both of their sides.
    """

    rows: int
    difference_max: float
    tolerance: float
    boundary_rows: int = 0
    splits: int = 0
    splits_reached: int = 0


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What an output's trees predict a change against: a weighted sum of input columns.

    `damping` is the share of the predicted change that is believed.
    """

    weights: dict[str, float]
    damping: float


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever trains a model says about it; `Registry.register` adds the rest.

    A model that was trained elsewhere has no windows and no metrics here. `lists` are measured where a list is ranked;
    `judged` is what the gates of a challenger said.
    """

    features: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    training: Window | None
    held_out: Window | None
    rows: int
    seed: int
    parity: Parity
    metrics: dict[str, Metric]
    references: dict[str, Reference]
    libraries: dict[str, str]
    data: str = ""
    lists: dict[str, ListMetric] = {}
    judged: Judged | None = None

    @property
    def measures(self) -> dict[str, Measure]:
        """All that was measured: errors by output, or lists by how they were asked for."""
        return {**self.metrics, **self.lists}


class Manifest(Description, frozen=True, kw_only=True):
    """manifest.json."""

    format: int
    name: str
    version: int
    created_at: datetime
    files: dict[str, str]
