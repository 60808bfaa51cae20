"""Whole numbers in memory that forked processes share: whether to stop, and how far each lane is."""

from __future__ import annotations

import mmap

_PER_LANE = 3
_BYTES = 8


class Shared:
    """Written by the process whose number it is, read by all.

    Args:
        lanes: how many there are.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._numbers = memoryview(mmap.mmap(-1, _BYTES * (1 + _PER_LANE * lanes))).cast("q")

    def stopping(self) -> bool:
        """Whether lanes are to end after the turn they are at."""
        return bool(self._numbers[0])

    def stop(self) -> None:
        """Have all lanes end."""
        self._numbers[0] = 1

    def published(self, lane: int, value: int) -> None:
        """Count a publish of a lane: of two workers at once one may be lost, which only makes the run longer."""
        at = self._at(lane)
        self._numbers[at] += 1
        self._numbers[at + 1] = max(self._numbers[at + 1], value)

    def greatest(self, lane: int) -> int:
        """The greatest value that a lane published."""
        return self._numbers[self._at(lane) + 1]

    def killed(self, lane: int) -> None:
        """Count a worker that was ended at its failpoint."""
        self._numbers[self._at(lane) + 2] += 1

    def publishes(self) -> int:
        """Of all lanes."""
        return sum(self._numbers[self._at(lane)] for lane in range(self.lanes))

    def kills(self) -> int:
        """Of all lanes."""
        return sum(self._numbers[self._at(lane) + 2] for lane in range(self.lanes))

    def _at(self, lane: int) -> int:
        return 1 + _PER_LANE * lane
