"""manifest.json of a registered model: what it reads and answers, how it was made, how well it did."""

from __future__ import annotations

from datetime import datetime

import msgspec

MANIFEST_FORMAT = 1


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the input schema."""

    name: str
    dtype: str = "float32"


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A span of time in UTC, both ends included."""

    start: datetime
    end: datetime


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """How one output did on the held-out window, in the output's unit, beside its baselines."""

    mae: float
    baselines: dict[str, float]
    rows: int

    @property
    def ratio(self) -> float:
        """Mean absolute error over that of the better baseline: below 1 is better than both."""
        return self.mae / min(self.baselines.values())


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How closely ONNX Runtime agreed with LightGBM on the golden rows, in the output's unit."""

    rows: int
    difference_max: float
    tolerance: float


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What an output's trees predict a change against: a weighted sum of input columns.

    `damping` is the share of the predicted change that is believed.
    """

    weights: dict[str, float]
    damping: float


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever trains a model says about it; `Registry.register` adds the rest."""

    features: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    training: Window
    held_out: Window
    rows: int
    seed: int
    parity: Parity
    metrics: dict[str, Metric]
    references: dict[str, Reference]
    libraries: dict[str, str]
    data: str = ""


class Manifest(Description, frozen=True, kw_only=True):
    """manifest.json."""

    format: int
    name: str
    version: int
    created_at: datetime
    files: dict[str, str]
