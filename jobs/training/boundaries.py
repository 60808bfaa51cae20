"""Rows that reach what a model's trees ask: each cut of each split, from both sides, with the path to it satisfied.

Real rows seldom lie at a threshold. So golden rows are made besides: for every column the numbers at each cut and right
after it, as near as its type has them, zeros and categories of all kinds; and for every split rows that
the tree leads to it, on both of its sides. Where there are more than `ROWS_MAX` they are drawn; it is said how many
splits were reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from jobs.training.trees import ZERO_BAND, Piece, Tree, cuts_of

if TYPE_CHECKING:
    from jobs.training.convert import Recipe

ROWS_MAX = 8_192
"""Rows that are made, for all outputs together: a second of LightGBM's time for a large model."""
COLUMN_SHARE = 0.5
"""The most of them that go to columns by themselves; the rest goes to splits."""
ZEROS = (0.0, -0.0, ZERO_BAND, -ZERO_BAND, ZERO_BAND / 2, -ZERO_BAND / 2, 2 * ZERO_BAND, -2 * ZERO_BAND)
ODD_CATEGORIES = (-1.0, -0.5, 0.5, 2.0**31 - 1, 2.0**31, 2.0**32 + 1, -(2.0**31) - 1)
"""Numbers that no category is, or only by LightGBM's rounding: negative ones, fractions, beyond int32."""

Kind = Literal["float32", "float64"]
"""What numbers a column can hold."""
Numbers = NDArray[np.float64]
Span = tuple[float, float]
"""Numbers above the first, up to and with the second."""
EVERYTHING: tuple[Span, ...] = ((-np.inf, np.inf),)


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Rows at the boundaries of a model's trees.

    Args:
        rows: float64 (rows, inputs); each number is one that its input can hold.
        splits: of all trees.
        both_sides: splits that some row is led to on the left, and some row on the right.
    """

    rows: Numbers
    splits: int
    both_sides: int


@dataclass(frozen=True)
class _Aim:
    """A row to be made: what must hold of each of the trees' columns, and which split it is for."""

    spans: Mapping[int, tuple[Span, ...]]
    exact: Mapping[int, float]
    split: int


def reached(recipe: Recipe, outputs: Sequence[Sequence[Tree]], real: Numbers, seed: int) -> Reached:
    """Rows at the boundaries of all outputs' trees.

    Args:
        outputs: the trees of each.
        real: rows that features really had, float64 (rows, inputs); the made ones are these with some numbers changed.
    """
    draw = np.random.default_rng(seed)
    trees = [tree for trees in outputs for tree in trees]
    every: tuple[Kind, ...] = (
        *recipe.dtypes,
        *("float64" if recipe.doubles else "float32" for _ in recipe.differences),
    )
    chosen = real[draw.integers(0, len(real), ROWS_MAX)]
    alone = [(column, number) for column in range(len(every)) for number in _numbers(trees, column, every[column])]
    alone = _some(alone, int(ROWS_MAX * COLUMN_SHARE), draw)
    maker = _Maker(recipe, every, draw)
    made = [maker.alone(chosen[place], column, number) for place, (column, number) in enumerate(alone)]
    aims = list(_aims(trees, every, draw, ROWS_MAX - len(made)))[: ROWS_MAX - len(made)]
    sides: dict[int, set[bool]] = {}
    for place, (aim, left) in enumerate(aims, len(made)):
        row = maker.led(chosen[place], aim)
        if row is not None:
            made.append(row)
            sides.setdefault(aim.split, set()).add(left)
    return Reached(
        rows=np.array(made, np.float64).reshape(-1, len(recipe.inputs)),
        splits=sum(len(tree.splits) for tree in trees),
        both_sides=sum(len(found) == 2 for found in sides.values()),
    )


def _some(things: list[tuple[int, float]], most: int, draw: np.random.Generator) -> list[tuple[int, float]]:
    if len(things) <= most:
        return things
    return [things[place] for place in np.sort(draw.choice(len(things), most, replace=False))]


def _numbers(trees: Sequence[Tree], column: int, kind: Kind) -> list[float]:
    """Numbers to try in a column by itself: at its cuts, between categories, at zero."""
    cuts = cuts_of(trees, column)
    if not len(cuts):
        return []
    categories = any(split.categorical for tree in trees for split in tree.splits if split.column == column)
    wanted = [*cuts, *ZEROS]
    if categories:
        wanted += [*(np.floor(cuts) + 1.5), *ODD_CATEGORIES, float(np.ceil(cuts[-1])) + 1]
    found = {number: None for cut in wanted for number in (at_most(cut, kind), above(cut, kind)) if np.isfinite(number)}
    return [*found, -0.0]


def at_most(cut: float, kind: Kind) -> float:
    """The greatest number of a kind that is not above a cut; infinite if there is none."""
    if kind == "float64":
        return cut
    with np.errstate(over="ignore"):
        nearest = np.float32(cut)
        return float(np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > cut else nearest)


def above(cut: float, kind: Kind) -> float:
    """The least number of a kind that is above a cut; infinite if there is none."""
    with np.errstate(over="ignore"):
        if kind == "float64":
            return float(np.nextafter(cut, np.inf))
        return float(np.nextafter(np.float32(at_most(cut, kind)), np.float32(np.inf)))


def spans_of(pieces: Sequence[Piece], *, left: bool) -> tuple[Span, ...]:
    """The numbers that go to one side of a split."""
    found, low = [], -np.inf
    for cut, goes_left in (*pieces, (np.inf, False)):
        if goes_left == left:
            found.append((low, cut))
        low = cut
    return tuple(found)


def _both(some: Sequence[Span], others: Sequence[Span]) -> tuple[Span, ...]:
    """The numbers that lie in both."""
    pairs = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return tuple((low, high) for low, high in pairs if low < high)


def _aims(
    trees: Sequence[Tree], kinds: Sequence[Kind], draw: np.random.Generator, most: int
) -> Iterator[tuple[_Aim, bool]]:
    """For each split, in an order that is drawn, a row at a cut of it and one right after it; at most so many."""
    places = [(tree, split) for tree in range(len(trees)) for split in range(len(trees[tree].splits))]
    parents = [_parents(tree) for tree in trees]
    given = 0
    for number in draw.permutation(len(places)):
        if given >= most:
            return
        tree, split = places[number]
        asked = trees[tree].splits[split]
        path = _path(trees[tree], parents[tree], split)
        here = path.get(asked.column, EVERYTHING)
        for left in (True, False):
            side = _both(here, spans_of(asked.pieces, left=left))
            if tried := _ends(side, kinds[asked.column]):
                given += 1
                yield _Aim(path, {asked.column: tried[draw.integers(len(tried))]}, int(number)), left


def _ends(spans: Sequence[Span], kind: Kind) -> list[float]:
    """The numbers of a kind at the two ends of each span."""
    found = [
        number
        for low, high in spans
        for number in (above(low, kind) if np.isfinite(low) else np.inf, at_most(high, kind))
        if low < number <= high
    ]
    return [number for number in found if np.isfinite(number)]


def _parents(tree: Tree) -> dict[int, tuple[int, bool]]:
    """For each split but the root: the split above it, and whether it is its left side."""
    found = {}
    for number, split in enumerate(tree.splits):
        for child, left in ((split.left, True), (split.right, False)):
            if child >= 0:
                found[child] = (number, left)
    return found


def _path(tree: Tree, parents: Mapping[int, tuple[int, bool]], split: int) -> dict[int, tuple[Span, ...]]:
    """What must hold of each column for a row to be led to a split."""
    found: dict[int, tuple[Span, ...]] = {}
    while split in parents:
        split, left = parents[split]
        asked = tree.splits[split]
        found[asked.column] = _both(found.get(asked.column, EVERYTHING), spans_of(asked.pieces, left=left))
    return found


class _Maker:
    """Makes rows of inputs in which the trees' columns have wanted numbers; a difference's by its two sides."""

    def __init__(self, recipe: Recipe, kinds: Sequence[Kind], draw: np.random.Generator) -> None:
        self._inputs = len(recipe.inputs)
        self._sides = list(zip(*recipe.sides(), strict=True)) if recipe.differences else []
        self._kinds = kinds
        self._draw = draw

    def alone(self, real: Numbers, column: int, number: float) -> Numbers:
        """A real row with one of the trees' columns changed."""
        row = real.copy()
        self._put(row, column, number)
        return row

    def led(self, real: Numbers, aim: _Aim) -> Numbers | None:
        """A real row, changed where the way to the split wants it; None if it cannot be led there so."""
        row = real.copy()
        wanted = {column: self._within(row, column, spans) for column, spans in aim.spans.items()}
        for column, number in {**wanted, **aim.exact}.items():
            if number is None:
                return None
            if number != self._of(row, column):
                self._put(row, column, number)
        held = all(self._of(row, column) == number for column, number in aim.exact.items())
        on_the_way = all(
            any(low < self._of(row, column) <= high for low, high in spans) for column, spans in aim.spans.items()
        )
        return row if held and on_the_way else None

    def _within(self, row: Numbers, column: int, spans: Sequence[Span]) -> float | None:
        number = self._of(row, column)
        if any(low < number <= high for low, high in spans):
            return number
        ends = _ends(spans, self._kinds[column])
        return ends[self._draw.integers(len(ends))] if ends else None

    def _of(self, row: Numbers, column: int) -> float:
        if column < self._inputs:
            return float(row[column])
        left, right = self._sides[column - self._inputs]
        gap = row[left] - row[right]
        return float(gap if self._kinds[column] == "float64" else np.float32(row[left]) - np.float32(row[right]))

    def _put(self, row: Numbers, column: int, number: float) -> None:
        if column < self._inputs:
            row[column] = number
            return
        left, right = self._sides[column - self._inputs]
        row[left], row[right] = number, 0.0
