"""How a pipeline's model is trained, as its declaration says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from almanac.challenger import Challenger
from almanac.checking import need_a, need_duration, need_name, need_number
from almanac.errors import DeclarationError

OBJECTIVES = ("regression_l1", "regression", "binary", "lambdarank")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How `almanac train` makes a model: history used, the held-out end of it, and LightGBM's size.

    Args:
        window, holdout: how much history is used, and how much at its end is kept to measure on.
        labels: for a pipeline without a source: the Feast view that holds the truth, a column per output;
            its event time is the moment that the features must speak as of.
        objective: LightGBM's: `regression_l1` (the median), `regression` (the mean), `binary` (a probability), or
            `lambdarank`, which is for a pipeline with a ranking, and the only one for it.
        challenger: gates past which a new version is promoted; None to let the alias name each new version.
        rows_max, trees, leaves, learning_rate, seed: size and randomness.
    """

    window: timedelta = timedelta(days=30)
    holdout: timedelta = timedelta(days=7)
    rows_max: int = 60_000
    trees: int = 100
    leaves: int = 31
    learning_rate: float = 0.08
    seed: int = 7
    labels: str | None = None
    objective: Literal["regression_l1", "regression", "binary", "lambdarank"] = "regression_l1"
    challenger: Challenger | None = None

    def __post_init__(self) -> None:
        need_duration("Training.window", self.window)
        need_duration("Training.holdout", self.holdout)
        if self.labels is not None:
            need_name("Training.labels", self.labels)
        if self.objective not in OBJECTIVES:
            raise DeclarationError(f"Training.objective is {self.objective!r}: give one of {', '.join(OBJECTIVES)}")
        if self.challenger is not None:
            need_a("Training.challenger", self.challenger, Challenger, "give Challenger(schedule=…), or None")
        need_number("Training.learning_rate", self.learning_rate, 1e-6, 1)
        need_number("Training.seed", self.seed, 0, 2**31 - 1, whole=True)
        if not timedelta(0) < self.holdout < self.window:
            raise DeclarationError(
                f"Training.holdout ({self.holdout}) must be above 0 and shorter than window ({self.window})"
            )
        for name, least in (("rows_max", 1), ("trees", 1), ("leaves", 2)):
            need_number(f"Training.{name}", getattr(self, name), least, math.inf, whole=True)
