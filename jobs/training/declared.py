"""What a model reads of each feature: float32 where it is declared so, float64 where its declared type holds more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError
from almanac.pipeline import Pipeline
from almanac.ranking_rows import WHOLE_MAX
from almanac.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

NARROW = frozenset({"FLOAT", "BOOL"})
"""Feast's types of which float32 holds every number."""
WHOLE = frozenset({"INT32", "INT64", "BOOL"})
"""Feast's types of whole numbers."""


def doubles_of(
    pipeline: Pipeline, settings: Settings, inputs: Iterable[str], service: str | None = None
) -> frozenset[str]:
    """The inputs whose declared type holds numbers that float32 does not: Float64, Int32, Int64.

    Args:
        service: the FeatureService that declares them; default: the pipeline's own.

    Raises:
        FeatureError: no Feast file defines the FeatureService.
        Unavailable: the registry's Postgres does not answer.
    """
    from features.store import service_kinds

    kinds = service_kinds(pipeline, settings, service)
    return frozenset(name for name in inputs if kinds.get(name, "FLOAT") not in NARROW)


def wholes_of(pipeline: Pipeline, settings: Settings, inputs: Iterable[str]) -> frozenset[str]:
    """The inputs whose declared type holds whole numbers alone.

    Raises:
        FeatureError: no Feast file defines the FeatureService.
        Unavailable: the registry's Postgres does not answer.
    """
    from features.store import service_kinds

    kinds = service_kinds(pipeline, settings)
    return frozenset(name for name in inputs if kinds.get(name) in WHOLE)


def need_told_apart(
    pipeline: Pipeline,
    doubles: frozenset[str],
    names: Sequence[str],
    inputs: NDArray[np.float32] | NDArray[np.float64],
) -> None:
    """Refuse what a model of lists, which reads float32 alone, would read as if different numbers were one.

    Args:
        doubles: columns whose declared type holds more than float32.
        names: of the columns of `inputs`.
        inputs: float32 (rows, columns).

    Raises:
        FeatureError: a column of `doubles` has numbers of 2^24 and more; names it.
    """
    wide = [
        name
        for index, name in enumerate(names)
        if name in doubles and len(inputs) and float(np.abs(inputs[:, index]).max()) >= WHOLE_MAX
    ]
    if wide:
        raise FeatureError(
            f"pipeline {pipeline.name}: {', '.join(wide)} reach {WHOLE_MAX:,.0f} and more, where float32 does not "
            "tell whole numbers apart, and lists read float32 alone: give them relative to something, such as days "
            "since, or declare them Float32 if that is all they mean"
        )


def as_read(table: pa.Table, doubles: frozenset[str]) -> pa.Table:
    """A table's columns as a model reads them: float64 those of `doubles`, float32 the others; nulls stay."""
    import pyarrow as pa

    kinds = [(name, pa.float64() if name in doubles else pa.float32()) for name in table.column_names]
    return table.cast(pa.schema(kinds), safe=False)
