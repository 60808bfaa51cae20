"""What is added to the reason of a partition that lacks features: which views, and how old their rows are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.errors import AlmanacError
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from jobs.inputs import PARTITION

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

UNCOUNTED = frozenset({PARTITION, "event_timestamp"})


def explained(
    pipeline: Pipeline, settings: Settings, table: pa.Table, failing: Mapping[int, str], moment: datetime
) -> dict[int, str]:
    """The reasons, with the views that an entity of the partition lacks, or whose row has expired, and how old it is.

    Costs nothing where no feature is null. A reason that cannot be explained stays as it is.
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
        return dict(failing)
    found = dict(failing)
    for partition, entity in lacking.items():
        if views := why.get(entity):
            found[partition] += f" ({pipeline.entity} {entity}: {', '.join(views)})"
    return found


def _first_lacking(pipeline: Pipeline, table: pa.Table, failing: Mapping[int, str]) -> dict[int, Any]:
    """For each failing partition, an entity with a feature that is null, if there is one."""
    hollow = np.zeros(table.num_rows, dtype=bool)
    for name in table.column_names:
        if name != pipeline.entity and name not in UNCOUNTED and table[name].null_count:
            hollow |= table[name].is_null().to_numpy(zero_copy_only=False)
    owners = table[PARTITION].to_numpy()
    found: dict[int, Any] = {}
    for row in np.flatnonzero(hollow).tolist():
        partition = int(owners[row])
        if partition in failing and partition not in found:
            found[partition] = table[pipeline.entity][row].as_py()
    return found
