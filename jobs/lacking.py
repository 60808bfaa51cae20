"""What is added to the reason of a partition that lacks features: which views, and how old their rows are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from almanac.errors import AlmanacError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from jobs.inputs import PARTITION
from jobs.quarantine import Finding

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

UNCOUNTED = frozenset({PARTITION, "event_timestamp"})


def explained(
    pipeline: Pipeline, settings: Settings, table: pa.Table, failing: Mapping[int, str], moment: datetime
) -> dict[int, str]:
    """The reasons, with an entity of the partition, and the views that it lacks or whose row has expired, and how old.

    Costs nothing where no feature is null.
    """
    if not failing or not table.num_rows:
        return dict(failing)
    lacking = _first_lacking(pipeline, table, failing)
    if not lacking:
        return dict(failing)
    from features.integrity.freshness import why_lacking

    try:
        why = why_lacking(pipeline, settings, list(lacking.values()), moment)
    except AlmanacError as error:
        log.warning("what features of pipeline=%s lack is not known: %s", pipeline.name, error)
        why = {}
    found = dict(failing)
    for partition, entity in lacking.items():
        named, views = f"{pipeline.entity} {entity}", why.get(entity)
        if views:
            found[partition] += f" ({named}: {', '.join(views)})"
        elif named not in found[partition]:
            found[partition] += f" (the first is {named})"
    return found


def hollow_rows(
    pipeline: Pipeline, table: pa.Table, columns: Sequence[str], failing: Mapping[int, str]
) -> list[Finding]:
    """The rows of failing partitions in which a column is null or not finite, column by column, the worst one first.

    Args:
        columns: those that predictions are made from.
    """
    owners = table[PARTITION].to_numpy()
    asked = np.isin(owners, list(failing))
    found: list[Finding] = []
    for name in columns:
        bad = np.flatnonzero(asked & _hollow(table[name]))
        if not len(bad):
            continue
        rows: dict[int, list[dict[str, Any]]] = {}
        values = table[name].take(bad).to_pylist()
        for row, value in zip(bad.tolist(), values, strict=True):
            said = {pipeline.entity: table[pipeline.entity][row].as_py(), name: value if value is None else str(value)}
            rows.setdefault(int(owners[row]), []).append(said)
        counts = {"element_count": int(asked.sum()), "unexpected_count": len(bad)}
        found.append(Finding(expectation=f"{name} has a finite value", result=counts, rows=rows))
    return sorted(found, key=lambda finding: -int(finding.result["unexpected_count"]))


def _hollow(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which values are null or not finite."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        return np.asarray(~pc.fill_null(pc.is_finite(column), False).to_numpy(), dtype=bool)
    return np.asarray(column.is_null().to_numpy(), dtype=bool)


def _first_lacking(pipeline: Pipeline, table: pa.Table, failing: Mapping[int, str]) -> dict[int, Any]:
    """For each failing partition, an entity with a feature that is null or not finite, if there is one."""
    hollow = np.zeros(table.num_rows, dtype=bool)
    for name in table.column_names:
        if name != pipeline.entity and name not in UNCOUNTED:
            hollow |= _hollow(table[name])
    owners = table[PARTITION].to_numpy()
    found: dict[int, Any] = {}
    for row in np.flatnonzero(hollow).tolist():
        partition = int(owners[row])
        if partition in failing and partition not in found:
            found[partition] = table[pipeline.entity][row].as_py()
    return found
