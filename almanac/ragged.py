"""Lists of different lengths as two arrays, and the few steps that ranking needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Wholes = NDArray[np.int64]

ENTRIES_BITS = 10
ENTRIES_MAX = 1 << ENTRIES_BITS
"""Entries of a list whose best are looked for: a list's number, a score (32 bits) and a place share a sort key."""


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


def best(scores: NDArray[np.float32], offsets: Wholes, most: int) -> Wholes:
    """Indices of the greatest scores of each list, greatest first, equal ones by index.

    One sort of whole numbers: list, score turned round, place within the list.

    Args:
        scores: float32, of lists with fewer than `ENTRIES_MAX` entries.
        offsets: where each list begins, and where the last ends.
        most: of each list.
    """
    counts, begins = np.diff(offsets), offsets[:-1]
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 makes -0 equal 0
    falling = np.where(bits < 0, bits, ~bits & np.int32(0x7FFFFFFF)).view(np.uint32)
    ordered = np.repeat((np.arange(len(counts)) << (32 + ENTRIES_BITS)) - begins, counts)
    ordered += np.arange(len(scores))
    turned = falling.astype(np.int64)
    turned <<= ENTRIES_BITS
    ordered += turned
    ordered.sort()
    kept = np.minimum(counts, most)
    first = np.repeat(begins, kept)
    found: Wholes = first + (ordered[first + count_up(kept)] & ((1 << ENTRIES_BITS) - 1))
    return found
