"""Lacking features: whether a cell's lack is the online store's, which passes, or the cell's own. No I/O.

A store that was emptied fills view by view, and within a view in the order of
the entities, the last one last. So some cells that are spread over the grid,
the last among them, are read as well: while they lack what the event's cell
lacks, the store is being filled and nobody is to blame. Only a cell that lacks
features which the others have is given up, and that after a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from almanac.partitioning import EntityKey

PROBED_CELLS = 16
"""Cells that are asked for to tell a store that is being filled from one that lacks a cell."""
FILLING_SECONDS_MAX = 60.0
"""Time for which some of the probed cells may lack features before that counts as their own lack; all: no limit."""
LACK_SECONDS_MAX = 5.0
"""Time for which a store must have been full before a cell's lack is the cell's own."""
REMEMBERED_MAX = 50_000
"""Cells whose lack is remembered, so that a second event of theirs need not wait."""


def probed_cells(cells: int) -> list[int]:
    """Some cells spread over a grid, the first and the last among them."""
    return sorted({(cells - 1) * step // (PROBED_CELLS - 1) for step in range(PROBED_CELLS)})


class Lacks:
    """What is known of lacks: since when the store is full, and who lacked features although it was."""

    def __init__(self) -> None:
        self._full_since: float | None = None
        self._filling_since: float | None = None
        self._lacked: OrderedDict[EntityKey, None] = OrderedDict()

    def none(self) -> None:
        """A batch had all its features."""
        self._filling_since = None

    def are_final(
        self, lacking: Mapping[EntityKey, Sequence[str]], probed: pa.Table | None, now_seconds: float
    ) -> bool:
        """Whether waiting longer would not help; if not, the same cells are to be read and asked about again.

        Args:
            lacking: for each cell, the columns that it lacks; read before `probed`.
            probed: the online features of `probed_cells`; None if there are no such cells to ask.
            now_seconds: monotonic time.
        """
        if probed is not None and self._filling(lacking, probed, now_seconds):
            self._full_since = None
            self._lacked.clear()
            return False
        if self._full_since is None:
            self._full_since = now_seconds
        known = all(entity in self._lacked for entity in lacking)
        for entity in lacking:
            self._lacked[entity] = None
            self._lacked.move_to_end(entity)
        while len(self._lacked) > REMEMBERED_MAX:
            self._lacked.popitem(last=False)
        # What was read before the store was full may be there by now: each is read once more at least.
        return known and now_seconds - self._full_since >= LACK_SECONDS_MAX

    def _filling(self, lacking: Mapping[EntityKey, Sequence[str]], probed: pa.Table, now_seconds: float) -> bool:
        hollow = np.zeros(probed.num_rows, dtype=bool)
        for name in {name for names in lacking.values() for name in names}:
            hollow |= ~pc.fill_null(pc.is_finite(probed[name]), False).to_numpy(zero_copy_only=False)
        if hollow.all():
            return True
        if not hollow.any():
            self._filling_since = None
            return False
        if self._filling_since is None:
            self._filling_since = now_seconds
        return now_seconds - self._filling_since < FILLING_SECONDS_MAX
