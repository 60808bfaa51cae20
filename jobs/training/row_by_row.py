"""Whether a model answers each row by itself: one that looks at the rows beside it answers batch and stream unlike.

A graph may take a mean, a maximum or a softmax over rows instead of columns. Among many rows, as a batch asks, it
then answers otherwise than for one row alone, as the stream and fresh computation ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.errors import ModelError, PredictionError
from almanac.scoring import Scorer

if TYPE_CHECKING:
    import pyarrow as pa

ALONE_ROWS_MAX = 32
"""Rows that are asked for one by one."""
RELATIVE, ABSOLUTE = 1e-4, 1e-6
"""How far two answers to a row may lie apart: sums of many numbers depend a little on how many rows are summed at once.
The second is a share of the greatest answer."""

Floats = NDArray[np.float32]


def answers_of(what: str, scorer: Scorer, rows: pa.Table) -> dict[str, Floats]:
    """The answers to rows, found to be the same in other company.

    Args:
        what: names the model in a message.
        rows: the input columns; at least one row.

    Raises:
        ModelError: the answer to a row depends on the rows beside it.
        PredictionError: an answer is not finite, or there is not one a row.
    """
    answers = scorer.score(rows)
    columns = {name: np.asarray(rows[name].to_numpy()) for name in scorer.inputs}
    alone = [
        scorer.score({name: values[row : row + 1] for name, values in columns.items()})
        for row in range(min(rows.num_rows, ALONE_ROWS_MAX))
    ]
    for output, among in answers.items():
        _need_same(what, output, among[: len(alone)], np.concatenate([one[output] for one in alone]))
    for output, beside in _beside_others(scorer, columns).items():
        _need_same(what, output, answers[output], beside[: rows.num_rows])
    return answers


def _beside_others(scorer: Scorer, columns: dict[str, NDArray[Any]]) -> dict[str, Floats]:
    """Answers to the rows in front of lesser and of greater ones, which nobody has; none where a model has none."""
    others = {}
    for name, values in columns.items():
        more = np.abs(values) + 1
        others[name] = np.concatenate([values, values - more, values + more])
    try:
        return scorer.score(others)
    except PredictionError:
        return {}


def _need_same(what: str, output: str, one: Floats, other: Floats) -> None:
    least = ABSOLUTE * float(np.abs(one).max())
    apart = ~np.isclose(one, other, rtol=RELATIVE, atol=least)
    if apart.any():
        row = int(np.argmax(apart))
        raise ModelError(
            f"{what} answers row {row + 1} with {output} {one[row]:g} among some rows and {other[row]:g} among others: "
            "let it compute over the columns of each row alone, so that batch and stream have one answer"
        )
