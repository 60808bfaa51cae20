"""A gate of a pipeline: one expectation on its features or on its predictions, as the declaration has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from almanac.checking import need_a
from almanac.errors import DeclarationError


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One Great Expectations expectation, by its snake_case name, on features or on predictions.

    Args:
        on: `features` (before scoring) or `predictions` (before publishing).
        expectation: for example `expect_column_values_to_be_between`.
        kwargs: its arguments, `column` among them.
    """

    on: Literal["features", "predictions"]
    expectation: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on not in ("features", "predictions"):
            raise DeclarationError(f"Gate.on is {self.on!r}: give 'features' or 'predictions'")
        need_a("Gate.kwargs", self.kwargs, Mapping, "give a dictionary such as {'column': 't2m_1h'}")
        if not isinstance(self.expectation, str) or not self.expectation.startswith("expect_"):
            raise DeclarationError(
                f"Gate.expectation is {self.expectation!r}: "
                "give Great Expectations' snake_case name, which starts with expect_"
            )
