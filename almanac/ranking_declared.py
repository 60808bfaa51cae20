"""What a pipeline declares whose one output is a ranked list of items, and what must be true of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from almanac.checking import need_all, need_duration, need_name, need_number
from almanac.errors import DeclarationError
from almanac.ranked import ITEMS_MAX

if TYPE_CHECKING:
    from almanac.pipeline import Pipeline

ANY_ITEM = "*"
"""The item key that stands for any item: the items that go with it are those that are popular."""
ITEMS_COLUMN, SCORES_COLUMN = "items", "scores"
"""Columns of a list in the record: keys of its items and their scores, best first."""
STORED_COLUMNS = (ITEMS_COLUMN, SCORES_COLUMN)
RESERVED = frozenset({*STORED_COLUMNS, "generation", "partition", "item", "value"})
ATTRIBUTES_MAX = 16
CANDIDATES_MAX = 10_000


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """An entity's prediction is a list of items, ranked by the pipeline's one output.

    Args:
        item: Feast join key of the items.
        features: name of the FeatureService of the items' views.
        length: items that an answer holds unless it is asked for fewer or more.
        kept: items that are stored of a list, so that enough are left once a caller leaves some out.
        candidates_max: items that are scored for one entity.
        leave_out: list features of the entity whose items are never answered, such as `basket_items`.
        leave_out_for: how long after it was taken an item of these lists stays out, counted to the moment that the
            list speaks as of; None for as long as they have it.
        available: the item feature that is 0 once an item has left the range; None where none ever does.
        attributes: item features that an answer carries, and by which a lookup filters.
    """

    item: str
    features: str
    length: int = 10
    kept: int = 30
    candidates_max: int = 50
    leave_out: tuple[str, ...] = ()
    leave_out_for: timedelta | None = None
    available: str | None = None
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        need_name("Ranking.item", self.item)
        need_name("Ranking.features", self.features)
        need_number("Ranking.length", self.length, 1, ITEMS_MAX, whole=True)
        need_number("Ranking.kept", self.kept, 1, ITEMS_MAX, whole=True)
        need_number("Ranking.candidates_max", self.candidates_max, 1, CANDIDATES_MAX, whole=True)
        if not self.length <= self.kept <= self.candidates_max:
            raise DeclarationError(
                f"Ranking has length {self.length}, kept {self.kept} and candidates_max {self.candidates_max}: "
                "none of these may be above the one after it"
            )
        for field in ("leave_out", "attributes"):
            names = getattr(self, field)
            need_all(f"Ranking.{field}", names, str, "give a tuple of feature names, such as ('price',)")
            for name in names:
                need_name(f"a name of Ranking.{field}", name)
            if len(set(names)) != len(names):
                raise DeclarationError(f"Ranking.{field} repeats a name ({', '.join(names)}): name each once")
        if self.leave_out_for is not None:
            need_duration("Ranking.leave_out_for", self.leave_out_for)
            if self.leave_out_for <= timedelta(0) or not self.leave_out:
                raise DeclarationError(
                    f"Ranking.leave_out_for is {self.leave_out_for} with leave_out {self.leave_out}: give more than "
                    "no time, and name in leave_out the lists whose items stay out for so long"
                )
        if self.available is not None:
            need_name("Ranking.available", self.available)
        taken = RESERVED & set(self.attributes)
        if taken or len(self.attributes) > ATTRIBUTES_MAX:
            raise DeclarationError(
                f"Ranking.attributes is {', '.join(self.attributes)}: give at most {ATTRIBUTES_MAX}, and none of "
                f"{', '.join(sorted(RESERVED))}"
            )

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """Columns of a list in the record: its items, their scores, their attributes."""
        return (*STORED_COLUMNS, *self.attributes)


def check_default(pipeline: Pipeline) -> None:
    """Refuse a default that does not fit the outputs, or a ranking's lists.

    Raises:
        DeclarationError: says what to give.
    """
    default = pipeline.default
    if default is None:
        return
    if pipeline.ranking is not None:
        if default != ANY_ITEM:
            raise DeclarationError(
                f"default is {default!r}: with a ranking give {ANY_ITEM!r}, the list of what is popular, "
                "which each generation holds, or leave it out"
            )
        return
    if isinstance(default, str):
        raise DeclarationError(f"default is {default!r}: give a dictionary of output to value, or leave it out")
    for output, value in default.items():
        need_number(f"default[{output!r}]", value, -math.inf, math.inf)
    if set(default) != set(pipeline.output_names):
        raise DeclarationError(
            f"default names {', '.join(sorted(default))}, outputs are {', '.join(pipeline.output_names)}: "
            "give each output one value"
        )


def check_ranking(pipeline: Pipeline) -> None:
    """Refuse a ranking that the rest of the declaration contradicts.

    Raises:
        DeclarationError: says which field and what to change.
    """
    ranking = pipeline.ranking
    if ranking is None:
        if pipeline.output_names[: len(STORED_COLUMNS)] == STORED_COLUMNS:
            raise DeclarationError(
                f"outputs begin with {', '.join(STORED_COLUMNS)}, the columns of lists: rename one, or declare "
                "a ranking"
            )
        return
    if len(pipeline.outputs) != 1 or pipeline.outputs[0].horizon is not None:
        raise DeclarationError(
            f"ranking wants one output without a horizon, the score of an item; outputs are "
            f"{', '.join(pipeline.output_names)}: give one Output(name='score')"
        )
    if ranking.item == pipeline.entity:
        raise DeclarationError(f"ranking.item is {ranking.item!r}, which is the entity: name the items' own key")
    if ranking.features == pipeline.features:
        raise DeclarationError(
            f"ranking.features is {ranking.features!r}, the entity's FeatureService: name one of the items' views"
        )
    if pipeline.entity in (*ranking.stored_columns, *RESERVED) or pipeline.output_names[0] in ranking.stored_columns:
        raise DeclarationError(
            f"the entity {pipeline.entity!r} or the output {pipeline.output_names[0]!r} is named like a column of the "
            f"lists ({', '.join(ranking.stored_columns)}): rename it"
        )
