"""How good a model is, and that ONNX Runtime answers what LightGBM answered."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from almanac.errors import ModelError
from almanac.manifest import Metric, Parity
from almanac.pipeline import Pipeline
from almanac.scoring import Scorer
from almanac.settings import Settings
from jobs.training.convert import Fitted, Floats, Recipe
from jobs.training.dataset import Rows, Split, Truth, every_row, features, horizon_hours

if TYPE_CHECKING:
    import pyarrow as pa

GOLDEN_ROWS = 512
TOLERANCE = 1e-3
"""Largest difference between ONNX Runtime (float32) and LightGBM (float64), in the output's unit ..."""
TOLERANCE_SHARE = 1e-5
"""... or, if that is more, as a share of the largest answer: float32 has seven digits."""
EXPECTED = "expected_"
"""Prefix of the golden columns that hold LightGBM's answers."""

AS_NOW = "as_now"
YESTERDAY = "same_hour_yesterday"


def baselines(truth: Truth, rows: Rows, hours: int) -> dict[str, Floats]:
    """What two people without a model would say: the value now, and the last known value of that hour of day."""
    back = hours - 24 * -(-hours // 24)
    return {AS_NOW: truth.at(rows, 0), YESTERDAY: truth.at(rows, back)}


class _Errors:
    """Sums of absolute errors, output by output, as rows come in."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: dict[str, float] = {}

    def add(self, truth: Floats, answers: dict[str, Floats]) -> None:
        self.rows += len(truth)
        for name, values in answers.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(np.abs(values - truth).sum(dtype=np.float64))

    def metric(self) -> Metric:
        means = {name: total / self.rows for name, total in self.sums.items()}
        return Metric(mae=means.pop("model"), baselines=means, rows=self.rows)


def measure(
    pipeline: Pipeline, settings: Settings, scorers: Sequence[Scorer], truth: Truth, cut: Split
) -> list[dict[str, Metric]]:
    """Mean absolute errors of each scorer over every cell and every held-out hour, by output.

    Every output is measured on the same hours: all whose `valid_at` lies in the
    held-out window. The scorers answer, so what is measured is what is served.
    """
    ahead = {output.name: horizon_hours(pipeline, output) for output in pipeline.outputs}
    sums = [{name: _Errors() for name in ahead} for _ in scorers]
    spans = [cut.measured(hours) for hours in ahead.values()]
    for rows in every_row(pipeline, min(first for first, _ in spans), max(last for _, last in spans)):
        table = features(pipeline, settings, truth, rows)
        for scorer, errors in zip(scorers, sums, strict=True):
            predicted = scorer.score(table)
            for name, hours in ahead.items():
                first, last = cut.measured(hours)
                chosen = np.flatnonzero((rows.hours >= first) & (rows.hours <= last))
                if len(chosen):
                    some = rows.pick(chosen)
                    answers = {"model": predicted[name][chosen], **baselines(truth, some, hours)}
                    errors[name].add(truth.at(some, hours), answers)
    return [{name: found.metric() for name, found in errors.items()} for errors in sums]


def golden_rows(recipe: Recipe, fitted: Sequence[Fitted], table: pa.Table, seed: int) -> bytes:
    """A Parquet file of rows drawn from `table`, with LightGBM's answers on them in float64."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = min(GOLDEN_ROWS, len(table))
    drawn = np.sort(np.random.default_rng(seed).choice(len(table), size=size, replace=False))
    chosen = table.select(recipe.inputs).take(pa.array(drawn))
    matrix = as_matrix(chosen)
    for one in fitted:
        chosen = chosen.append_column(EXPECTED + one.output, pa.array(one.predict(recipe, matrix)))
    sink = io.BytesIO()
    pq.write_table(chosen, sink)
    return sink.getvalue()


def prove(scorer: Scorer, golden: bytes) -> Parity:
    """Score the golden rows and compare with LightGBM's answers.

    Raises:
        ModelError: some answer differs by more than is allowed; says which output and by how much.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(golden))
    predicted = scorer.score(table)
    worst, tolerance = 0.0, TOLERANCE
    for output in scorer.outputs:
        expected = table[EXPECTED + output].to_numpy()
        difference = float(np.abs(predicted[output] - expected).max())
        allowed = max(TOLERANCE, TOLERANCE_SHARE * float(np.abs(expected).max()))
        if not difference <= allowed:
            raise ModelError(
                f"model {scorer.model_id}: ONNX Runtime and LightGBM differ by {difference:.3g} in {output} on a "
                f"golden row, more than {allowed:g}: not registered; train again or look at the conversion"
            )
        worst, tolerance = max(worst, difference), max(tolerance, allowed)
    return Parity(rows=len(table), difference_max=worst, tolerance=tolerance)


def as_matrix(table: pa.Table) -> Floats:
    """A table's columns side by side, float32 (rows, columns)."""
    return np.column_stack([table[name].to_numpy() for name in table.column_names]).astype(np.float32, copy=False)
