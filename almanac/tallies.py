"""What one block adds to the summary of its generation: apart from `end_manifest.py`, which declarations may import."""

from __future__ import annotations

import numpy as np

from almanac.blocks import Block
from almanac.end_manifest import Tally


def tally(block: Block) -> dict[str, Tally]:
    """What one block adds to its generation's summary, by output."""
    found: dict[str, Tally] = {}
    for name, column in block.columns.items():
        values = column
        if len(values) and np.isnan(values.min()):  # which is so where any value is
            values = column[~np.isnan(column)]
        nulls = len(column) - len(values)
        if len(values):
            found[name] = (float(values.min()), float(values.max()), float(values.sum(dtype=np.float64)), nulls)
        else:
            found[name] = (None, None, 0.0, nulls)
    return found
