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
from features.archived import newest_events
from features.forward import bring_table_forward
from features.layout import EVENT_TIMESTAMP
from features.offline.reading import historical

if TYPE_CHECKING:
    import pyarrow as pa


def known_at(pipeline: Pipeline, settings: Settings, asked: pa.Table, as_of: datetime, cutoff: datetime) -> pa.Table:
    """The features of some entities as they were known at the cutoff.

    Args:
        asked: the entity column, and others, which are kept.
        as_of: the source's newest hour at or before the cutoff.
        cutoff: no event after it is seen.

    Where lists are ranked events are part of the source's history: all are asked for at `as_of`, and whole numbers
    stay what they are.

    Returns:
        As `features.offline.reading.historical`, `event_timestamp` included: `as_of`, or the time of the entity's
        event.

    Raises:
        FeatureError, Unavailable: as `historical`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pipeline.ranking is not None:
        from features.ranked import history_at

        return history_at(pipeline, settings, _at(asked, pa.repeat(pa.scalar(as_of, _time()), asked.num_rows)))
    base = historical(pipeline, settings, _at(asked, pa.repeat(pa.scalar(as_of, _time()), asked.num_rows)))
    events = newest_events(settings.features_dir / pipeline.name, pipeline.entity, as_of, cutoff)
    known = pa.array(list(events), asked[pipeline.entity].type)
    rows = np.flatnonzero(pc.is_in(asked[pipeline.entity], known).to_numpy())
    if not len(rows):
        return base
    moments = [events[entity] for entity in asked[pipeline.entity].take(pa.array(rows)).to_pylist()]
    newer = historical(pipeline, settings, _at(asked.take(pa.array(rows)), pa.array(moments, _time())))
    if isinstance(pipeline.source, GridObservations):
        newer = bring_table_forward(newer, moments, pipeline.source.variable)
    # By the time of its event an entity's other features may have expired: then it stays as of the source's hour.
    kept = np.flatnonzero(~_lacking(newer) | _lacking(base.take(pa.array(rows))))
    place = np.arange(asked.num_rows)
    place[rows[kept]] = asked.num_rows + kept
    return pa.concat_tables([base, newer.cast(base.schema)]).take(pa.array(place)).combine_chunks()


def _time() -> pa.DataType:
    import pyarrow as pa

    return pa.timestamp("us", tz="UTC")


def _at(asked: pa.Table, moments: pa.Array) -> pa.Table:
    return asked.append_column(EVENT_TIMESTAMP, moments)


def _lacking(table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows in which some feature is null."""
    found = np.zeros(table.num_rows, dtype=bool)
    for column in table.columns:
        found |= column.is_null().to_numpy()
    return found
