"""LightGBM's trees as its text has them, and what each split asks, in the one form that ONNX can ask too.

LightGBM looks at a double and goes left or right by rules of its own: a missing zero goes the default way, a category
loses its fraction first. Each of these rules comes to the same: the line of numbers is cut in a few places, and each
piece between two cuts goes left or right. That is what `Split.pieces` says, exactly for every finite double. NaN and
infinity are none: the scoring function refuses them before a tree is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.errors import ModelError
from jobs.training.tree_text import sections_of

if TYPE_CHECKING:
    import lightgbm

ZERO_BAND = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold, a float in its source: a number as near to zero as this is zero for it."""
LARGEST = float(np.finfo(np.float64).max)
CATEGORICAL, DEFAULT_LEFT = 1, 2
MISSING_SHIFT, MISSING_MASK = 2, 3
MISSING_ZERO = 1
"""Bits of `decision_type` in LightGBM's text."""
WORD_BITS = 32
"""Categories that one number of `cat_threshold` has a bit for."""

Piece = tuple[float, bool]
"""A cut, and whether the numbers up to and with it, from the cut before on, go left."""


@dataclass(frozen=True)
class Split:
    """What one inner node of a tree asks.

    Args:
        column: index of the trees' column that it looks at.
        pieces: cuts ascending; numbers above the last cut go right. Two neighbouring pieces lie on different sides.
        left, right: a split's number, or if negative `~leaf`.
        categorical: whether the column is read as a category there.
    """

    column: int
    pieces: tuple[Piece, ...]
    left: int
    right: int
    categorical: bool


@dataclass(frozen=True)
class Tree:
    """One tree; its root is split 0, or leaf 0 if it has no split."""

    splits: tuple[Split, ...]
    leaves: tuple[float, ...]


def trees_of(booster: lightgbm.Booster, what: str) -> tuple[Tree, ...]:
    """All trees that the booster answers with; the leaves of an average of trees are divided by their number.

    Args:
        what: names the model in errors, such as its file.

    Raises:
        ModelError: what the trees ask or answer cannot be said exactly; names the features and what to do.
    """
    head, sections = sections_of(booster.model_to_string())
    names = booster.feature_name()
    if any(section.get("is_linear", "0").strip() != "0" for section in sections):
        used = {int(word) for section in sections for word in section.get("leaf_features", "").split()}
        raise ModelError(
            f"{what} has linear models of {', '.join(names[index] for index in sorted(used)) or 'no feature'} in its "
            "leaves, which ONNX's trees cannot say: train it with linear_tree=false"
        )
    share = 1 / len(sections) if "average_output" in head.split("\n") else 1.0
    trees = tuple(_tree(section, share) for section in sections)
    _need_numbers(what, trees)
    _need_plain_categories(what, booster, trees, names)
    return trees


def _tree(section: Mapping[str, str], share: float) -> Tree:
    def numbers(name: str) -> list[float]:
        return [float(word) for word in section.get(name, "").split()]

    def wholes(name: str) -> list[int]:
        return [int(word) for word in section.get(name, "").split()]

    leaves = tuple(value * share for value in numbers("leaf_value"))
    if int(section["num_leaves"]) == 1:
        return Tree((), leaves[:1])
    bounds, words = wholes("cat_boundaries"), wholes("cat_threshold")
    splits = []
    columns, thresholds, kinds = wholes("split_feature"), numbers("threshold"), wholes("decision_type")
    for node, (left, right) in enumerate(zip(wholes("left_child"), wholes("right_child"), strict=True)):
        if kinds[node] & CATEGORICAL:
            place = int(thresholds[node])
            pieces = category_pieces(categories_of(words[bounds[place] : bounds[place + 1]]))
        else:
            pieces = number_pieces(thresholds[node], kinds[node])
        splits.append(Split(columns[node], pieces, left, right, bool(kinds[node] & CATEGORICAL)))
    return Tree(tuple(splits), leaves)


def categories_of(words: Sequence[int]) -> list[int]:
    """The categories whose bit is set."""
    return [WORD_BITS * place + bit for place, word in enumerate(words) for bit in range(WORD_BITS) if word >> bit & 1]


def category_pieces(categories: Sequence[int]) -> tuple[Piece, ...]:
    """Where a category's split goes left: LightGBM drops a number's fraction, so that 12.5 is 12 and -0.5 is 0."""
    found: list[Piece] = []
    for category in categories:
        low = -1.0 if category == 0 else _before(float(category))
        high = _before(float(category + 1))
        if found and found[-1][0] == low:
            found[-1] = (high, True)
        else:
            found += [(low, False), (high, True)]
    return tuple(found)


def number_pieces(threshold: float, kind: int) -> tuple[Piece, ...]:
    """Where a number's split goes left: up to the threshold; as a missing value's zero does, if zeros are missing.

    LightGBM's prediction takes every number of the zero band for zero, whatever the threshold.
    """
    zero_left = threshold >= 0.0
    if kind >> MISSING_SHIFT & MISSING_MASK == MISSING_ZERO:
        zero_left = bool(kind & DEFAULT_LEFT)
    below = _before(-ZERO_BAND)
    threshold = min(threshold, LARGEST)  # infinite where a split parts what is missing from all that is not
    pieces: list[Piece] = []
    for cut in sorted({below, ZERO_BAND, threshold}):
        left = zero_left if below < cut <= ZERO_BAND else cut <= threshold
        if pieces and pieces[-1][1] == left:
            pieces[-1] = (cut, left)
        else:
            pieces.append((cut, left))
    return tuple(pieces if pieces[-1][1] else pieces[:-1])


def _before(number: float) -> float:
    return float(np.nextafter(number, -np.inf))


def cuts_of(trees: Sequence[Tree], column: int) -> NDArray[np.float64]:
    """All places where some split cuts a column, ascending."""
    found = {cut for tree in trees for split in tree.splits if split.column == column for cut, _ in split.pieces}
    return np.array(sorted(found), np.float64)


def _need_numbers(what: str, trees: Sequence[Tree]) -> None:
    numbers = [*(leaf for tree in trees for leaf in tree.leaves)]
    numbers += [cut for tree in trees for split in tree.splits for cut, _ in split.pieces]
    if not np.isfinite(numbers).all():  # NaN stays NaN in a cut
        raise ModelError(f"{what} has thresholds or leaves that are no finite numbers: train it again")


def _need_plain_categories(what: str, booster: lightgbm.Booster, trees: Sequence[Tree], names: Sequence[str]) -> None:
    """Refuse codes of pandas categories that are not the values themselves: a feature has the values."""
    coded = [list(values) for values in booster.pandas_categorical or ()]
    if all(values == list(range(len(values))) for values in coded):
        return
    used = sorted({names[split.column] for tree in trees for split in tree.splits if split.categorical})
    if not used:
        return
    raise ModelError(
        f"{what} was trained on pandas categories ({str(coded)[:100]}) and knows {', '.join(used)} by their "
        "codes 0, 1, 2, …, but features have values: train it on whole numbers that categorical_feature names"
    )
