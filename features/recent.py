"""Features for a batch run that knows what the stream knew: each entity as of its newest event before the cutoff.

A source may lag behind the cutoff. An entity with an archived event after the
source's newest hour is asked for at the moment of that event: its observation
is the event's, its other features are the source's, brought forward to that
moment as the stream does. All others are asked for at the source's hour.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.pipeline import GridObservations, Pipeline
from almanac.settings import Settings
from features.archive import newest_events
from features.forward import bring_table_forward
from features.layout import EVENT_TIMESTAMP
from features.offline import historical

if TYPE_CHECKING:
    import pyarrow as pa


def known_at(pipeline: Pipeline, settings: Settings, asked: pa.Table, as_of: datetime, cutoff: datetime) -> pa.Table:
    """The features of some entities as they were known at the cutoff.

    Args:
        asked: the entity column, and others, which are kept.
        as_of: the source's newest hour at or before the cutoff.
        cutoff: no event after it is seen.

    Returns:
        As `features.offline.historical`, `event_timestamp` included: `as_of`, or the time of the entity's event.

    Raises:
        FeatureError, Unavailable: as `historical`.
    """
    import pyarrow as pa

    base = historical(pipeline, settings, _at(asked, [as_of] * asked.num_rows))
    events = newest_events(settings.features_dir / pipeline.name, pipeline.entity, as_of, cutoff)
    rows = [row for row, entity in enumerate(asked[pipeline.entity].to_pylist()) if entity in events]
    if not rows:
        return base
    moments = [events[entity] for entity in asked[pipeline.entity].take(pa.array(rows)).to_pylist()]
    newer = historical(pipeline, settings, _at(asked.take(pa.array(rows)), moments))
    if isinstance(pipeline.source, GridObservations):
        newer = bring_table_forward(newer, moments, pipeline.source.variable)
    # By the time of its event an entity's other features may have expired: then it stays as of the source's hour.
    kept = np.flatnonzero(~_lacking(newer) | _lacking(base.take(pa.array(rows))))
    place = np.arange(asked.num_rows)
    place[np.asarray(rows)[kept]] = asked.num_rows + kept
    return pa.concat_tables([base, newer.cast(base.schema)]).take(pa.array(place)).combine_chunks()


def _at(asked: pa.Table, moments: list[datetime]) -> pa.Table:
    import pyarrow as pa

    return asked.append_column(EVENT_TIMESTAMP, pa.array(moments, pa.timestamp("us", tz="UTC")))


def _lacking(table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows in which some feature is null."""
    found = np.zeros(table.num_rows, dtype=bool)
    for column in table.columns:
        found |= column.is_null().to_numpy()
    return found
