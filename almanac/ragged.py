"""Lists of different lengths as two arrays, and the few steps that ranking needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Wholes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of different lengths, one after another: list i is `values[offsets[i] : offsets[i + 1]]`."""

    values: NDArray[Any]
    offsets: Wholes

    @classmethod
    def of(cls, lists: Sequence[Sequence[Any] | NDArray[Any]], dtype: Any) -> Ragged:
        """Python's lists, or arrays, as one."""
        lengths = np.fromiter((len(one) for one in lists), np.int64, len(lists))
        values = np.concatenate([np.asarray(one, dtype=dtype) for one in lists]) if lists else np.empty(0, dtype)
        return cls(values.astype(dtype, copy=False), offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Wholes:
        """How long each list is."""
        return np.diff(self.offsets)

    def part(self, start: int, stop: int) -> Ragged:
        """The lists `start` up to `stop`."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Ragged(self.values[first:last], self.offsets[start : stop + 1] - first)

    def rows(self, most: int) -> tuple[Wholes, Wholes, Wholes]:
        """The first `most` entries of each list: whose list, the place in it, and the place among the values."""
        lengths = np.minimum(self.lengths, most)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        place = count_up(lengths)
        return owner, place, self.offsets[owner] + place


def picked(lists: Ragged, rows: Wholes, most: int | None = None) -> tuple[Wholes, Ragged]:
    """Some lists, in the order of `rows`, at most so many entries of each; and the row of each entry."""
    lengths = lists.lengths[rows] if most is None else np.minimum(lists.lengths[rows], most)
    row = np.repeat(np.arange(len(rows)), lengths)
    at = np.repeat(lists.offsets[rows], lengths) + count_up(lengths)
    return row, Ragged(lists.values[at], offsets_of(lengths))


def count_up(lengths: Wholes) -> Wholes:
    """0, 1, … for each list in turn."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def offsets_of(lengths: Wholes) -> Wholes:
    """Where lists of these lengths begin, and where the last ends: int64 (lists + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
