"""Great Expectations on features, with bounds that were learned: one suite, and one validation, for each view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.feature_checks import Learned
from jobs.expectations import expectation, validate

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_MAX = 20_000
"""Rows of a validation: bounds of nearly all values are judged as well by these as by all."""
WITHIN_MIN = 0.99
"""Share of a feature's numbers that must lie within its learned quantiles, which were widened."""

_NULLS = "expect_column_values_to_not_be_null"
_BETWEEN = "expect_column_values_to_be_between"
_MEAN = "expect_column_mean_to_be_between"


def suite_of(learned: Learned, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The expectations of one view, each as its name and arguments."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in columns:
        bounds = learned.bounds[name]
        found.append((_NULLS, {"column": name, "mostly": 1.0 - bounds.null_share_max}))
        if bounds.low is not None and bounds.high is not None:
            limits = {"min_value": bounds.low, "max_value": bounds.high, "mostly": WITHIN_MIN}
            found.append((_BETWEEN, {"column": name, **limits}))
        if bounds.mean_low is not None and bounds.mean_high is not None:
            found.append((_MEAN, {"column": name, "min_value": bounds.mean_low, "max_value": bounds.mean_high}))
    return found


def refused_by(learned: Learned, table: pa.Table, columns: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Check recent rows of a view.

    Returns:
        How many expectations were checked, and those that were not met, in words.
    """
    suite = suite_of(learned, columns)
    if not suite or not table.num_rows:
        return 0, ()
    results = validate(
        spread(table.select(list(columns))),
        [expectation(name, arguments) for name, arguments in suite],
        {"result_format": "BASIC", "partial_unexpected_count": 0},
    )
    return len(suite), tuple(_words(one) for one in results if not one.success)


def spread(table: pa.Table) -> pa.Table:
    """At most `ROWS_MAX` rows from all over a table: its first ones would be those of some hours alone."""
    if table.num_rows <= ROWS_MAX:
        return table
    return table.take(np.arange(ROWS_MAX) * table.num_rows // ROWS_MAX)


def _words(outcome: Any) -> str:
    kind, given, found = outcome.expectation_config.type, outcome.expectation_config.kwargs, outcome.result
    column = given["column"]
    if kind == _MEAN:
        mean = found.get("observed_value")
        said = "none" if mean is None else f"{mean:.6g}"
        return f"{column}: its mean is {said}, usual is {given['min_value']:.6g} to {given['max_value']:.6g}"
    share = (found.get("unexpected_percent") or 0.0) / 100
    if kind == _NULLS:
        return f"{column}: {share:.1%} nulls, usual is at most {1 - given['mostly']:.1%}"
    return (
        f"{column}: {share:.1%} of its values lie outside {given['min_value']:.6g} to {given['max_value']:.6g}, "
        f"usual is at most {1 - given['mostly']:.0%}"
    )
