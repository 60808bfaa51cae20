"""How good a model is, and that ONNX Runtime answers what LightGBM answered."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.errors import ModelError
from almanac.manifest import Metric, Parity
from almanac.pipeline import Pipeline
from almanac.scoring import Scorer
from almanac.settings import Settings
from features import parquet_files
from jobs.training.boundaries import reached
from jobs.training.convert import Fitted, Floats, Recipe
from jobs.training.dataset import Rows, Split, Truth, every_row, features, horizon_hours

if TYPE_CHECKING:
    import pyarrow as pa

GOLDEN_ROWS = 512
"""Golden rows that features really had; rows at the boundaries of the trees come besides."""
TOLERANCE_SHARE = 1e-5
"""Largest difference between ONNX Runtime and LightGBM, as a share of a row's answer: answers are float32 ..."""
TOLERANCE_FLOOR = 1e-9
"""... or, if that is more, as a share of the largest answer: float64 sums of numbers that cancel have some dust."""
CAUSE_SHARE_MIN = 0.5
"""Share of two engines' difference that a feature must turn by itself to be named as its cause."""
EXPECTED = "expected_"
"""Prefix of the golden columns that hold LightGBM's answers."""
COUNTS = ("rows", "boundary_rows", "splits", "splits_reached")
"""Keys of the golden file's metadata: what a `Parity` says besides the differences."""

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
    """A Parquet file of rows drawn from `table`, and rows at the trees' boundaries, with LightGBM's answers.

    Args:
        table: real rows, every number finite, each column of the type that the model reads.

    Returns:
        The input columns in these types, and LightGBM's answers in float64; real rows come first.

    Raises:
        ModelError: the trees ask or answer what cannot be said exactly.
    """
    import pyarrow as pa

    size = min(GOLDEN_ROWS, len(table))
    drawn = np.sort(np.random.default_rng(seed).choice(len(table), size=size, replace=False))
    chosen = table.select(recipe.inputs).take(pa.array(drawn))
    made = reached(recipe, [one.trees for one in fitted], as_matrix(chosen, np.float64).astype(np.float64), seed)
    columns = [pa.array(made.rows[:, place]).cast(field.type, safe=False) for place, field in enumerate(chosen.schema)]
    rows = pa.concat_tables([chosen, pa.table(columns, schema=chosen.schema)])
    matrix = as_matrix(rows, np.float64).astype(recipe.dtype)
    for one in fitted:
        rows = rows.append_column(EXPECTED + one.output, pa.array(one.predict(recipe, matrix)))
    counts = (size, len(made.rows), made.splits, made.both_sides)
    return _written(rows, dict(zip(COUNTS, counts, strict=True)))


def _written(rows: pa.Table, counts: Mapping[str, int]) -> bytes:
    """Golden rows as the bytes of a Parquet file that says how many of them are what."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({name: str(counts[name]) for name in COUNTS}), sink)
    return sink.getvalue()


def prove(scorer: Scorer, golden: bytes) -> Parity:
    """Score the golden rows and compare with LightGBM's answers.

    Raises:
        ModelError: some answer differs by more than is allowed; says which output, by how much, and the row.
    """
    table = parquet_files.read(golden, error=ModelError)
    predicted = scorer.score(table)
    worst, tolerance = 0.0, 0.0
    for output in scorer.outputs:
        expected = table[EXPECTED + output].to_numpy()
        differences = np.abs(predicted[output] - expected)
        allowed = np.maximum(TOLERANCE_SHARE * np.abs(expected), TOLERANCE_FLOOR * np.abs(expected).max())
        if not (differences <= allowed).all():
            row = int(np.argmax(differences - allowed))
            asked = {name: table[name][row].as_py() for name in scorer.inputs}
            raise ModelError(
                f"model {scorer.model_id}: ONNX Runtime and LightGBM differ by {differences[row]:.3g} in {output} on a "
                f"golden row, more than {allowed[row]:.3g}: not registered; "
                f"{_cause(scorer, output, asked, float(differences[row]))}; the row is {str(asked)[:300]}"
            )
        worst, tolerance = max(worst, float(differences.max())), max(tolerance, float(allowed.max()))
    held = table.schema.metadata or {}
    counts = {name: int(held.get(name.encode(), b"0")) for name in COUNTS}
    return Parity(**{"rows": len(table), **counts}, difference_max=worst, tolerance=tolerance)


def _cause(scorer: Scorer, output: str, row: Mapping[str, float], difference: float) -> str:
    """The feature at which two engines part on a row, and the remedy: the one whose next number turns the answer."""
    places = [
        (name, np.nextafter(kind(row[name]), kind(way)))
        for name in row
        for kind in (np.float32, np.float64)
        for way in (-np.inf, np.inf)
    ]
    asked = [row, *({**row, name: float(value)} for name, value in places)]
    answers = scorer.score({name: np.array([one[name] for one in asked], np.float64) for name in row})[output]
    turns = np.abs(answers[1:] - answers[0])
    at = int(np.argmax(turns))
    if turns[at] < difference * CAUSE_SHARE_MIN:
        return "no feature's next number turns the answer: train again, or look at the conversion"
    name = places[at][0]
    return (
        f"the answer turns at {name} = {row[name]!r}, where a split lies within rounding: declare {name} as Float64 in "
        "its Feast view if its values need that, or train on values rounded as it is declared"
    )


def as_matrix(table: pa.Table, dtype: type[np.floating[Any]] = np.float32) -> Floats:
    """A table's columns side by side, (rows, columns)."""
    return np.column_stack([table[name].to_numpy() for name in table.column_names]).astype(dtype, copy=False)
