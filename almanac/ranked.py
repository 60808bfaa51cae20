"""A ranked list of items: what a prediction is where the declaration has a ranking. Plain records, no I/O."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import msgspec

from almanac.errors import PredictionError

ITEMS_MAX = 1_000
"""Items of one list."""


class RankedList(msgspec.Struct, frozen=True):
    """Items in their order, best first, each with its score and its attributes.

    Args:
        items: keys of the items, each once, at most `ITEMS_MAX`.
        scores: one per item, finite, never ascending.
        attributes: name to one number per item; NaN is not a number.

    Raises:
        PredictionError: an item stands twice, a score is NaN, infinite or above the one before, or lengths differ.
    """

    items: tuple[str, ...]
    scores: tuple[float, ...]
    attributes: Mapping[str, tuple[float, ...]] = {}

    def __post_init__(self) -> None:
        lengths = {len(self.items), len(self.scores), *(len(values) for values in self.attributes.values())}
        if len(lengths) > 1 or len(self.items) > ITEMS_MAX:
            raise PredictionError(
                f"a list has {len(self.items)} items, {len(self.scores)} scores and attributes of other lengths: "
                f"give one of each per item, at most {ITEMS_MAX:,}"
            )
        if len(set(self.items)) != len(self.items):
            raise PredictionError("a list has an item twice: rank each once")
        if not all(all(map(math.isfinite, numbers)) for numbers in (self.scores, *self.attributes.values())):
            raise PredictionError(f"a list of {len(self.items)} items has a number that is NaN or infinite: refuse it")
        if any(map(operator.lt, self.scores, self.scores[1:])):
            raise PredictionError("the scores of a list ascend: sort its items, best first")

    def first(self, count: int) -> RankedList:
        """The best `count` items."""
        return RankedList(
            items=self.items[:count],
            scores=self.scores[:count],
            attributes={name: values[:count] for name, values in self.attributes.items()},
        )


Value = float | RankedList
"""What a prediction has of one output: a number, or a list where the declaration has a ranking."""


def is_value(value: Value | None) -> bool:
    """Whether there is something to answer with: a finite number, or a list that is not empty."""
    if isinstance(value, RankedList):
        return bool(value.items)
    return value is not None and math.isfinite(value)


def need_finite(what: str, values: Mapping[str, Value]) -> None:
    """Refuse a prediction with a number that is none; a list was checked when it was made.

    Raises:
        PredictionError: says which output.
    """
    for name, value in values.items():
        if not isinstance(value, RankedList) and not math.isfinite(value):
            raise PredictionError(f"{what}: {name} is {value}: look at the event and the model")
