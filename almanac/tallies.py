"""What one block adds to the summary of its generation: apart from `end_manifest.py`, which declarations may import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almanac.end_manifest import Tally
from almanac.list_blocks import AnyBlock, ListBlock
from almanac.ranking_declared import ITEMS_COLUMN, SCORES_COLUMN


def tally(block: AnyBlock) -> dict[str, Tally]:
    """What one block adds to its generation's summary, by column.

    A list counts once, with how many items it has, and with the score and attributes of its best; an empty one has
    nulls in their place.
    """
    if isinstance(block, ListBlock):
        return {name: _of(column) for name, column in _of_lists(block).items()}
    if block.rows and block.columns:
        together = np.stack(list(block.columns.values()))
        with np.errstate(invalid="ignore"):  # both infinities have no sum
            least, most, sums = together.min(axis=1), together.max(axis=1), together.sum(axis=1, dtype=np.float64)
        if not np.isnan(least).any():  # which one would be where any value is
            numbers = zip(least.tolist(), most.tolist(), sums.tolist(), strict=True)
            return {name: (*found, 0) for name, found in zip(block.columns, numbers, strict=True)}
    return {name: _of(column) for name, column in block.columns.items()}


def _of(column: NDArray[Any]) -> Tally:
    values = column
    if len(values) and np.isnan(values.min()):  # which is so where any value is
        values = column[~np.isnan(column)]
    nulls = len(column) - len(values)
    if not len(values):
        return None, None, 0.0, nulls
    return float(values.min()), float(values.max()), float(values.sum(dtype=np.float64)), nulls


def _of_lists(block: ListBlock) -> Mapping[str, NDArray[Any]]:
    lengths = np.diff(block.offsets.astype(np.int64))
    filled = lengths > 0
    best = block.offsets[:-1][filled]
    found: dict[str, NDArray[Any]] = {ITEMS_COLUMN: lengths}
    numbers = {SCORES_COLUMN: block.scores} | {name: v[block.places] for name, v in block.attributes.items()}
    for name, values in numbers.items():
        found[name] = np.full(block.rows, np.nan, dtype=np.float32)
        found[name][filled] = values[best]
    return found
