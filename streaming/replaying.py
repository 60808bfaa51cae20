"""Events with lines made of what a source of interactions has: the baskets of its last hours, in the order of time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from almanac.clock import MICROSECOND, format_time
from almanac.errors import UsageError
from almanac.pipeline import Pipeline
from streaming.events import OBSERVED_AT
from streaming.folding import PRICE, QUANTITY
from streaming.publish import REPLAY_HOURS_MAX, Outgoing

if TYPE_CHECKING:
    from features.sources.lines import LineSource


def replayed_baskets(pipeline: Pipeline, source: LineSource, now: datetime, hours: int) -> Iterator[Outgoing]:
    """What the source's entities did in the last hours up to `now`, an event a basket, with the entity as key.

    A basket of more lines than an event may have comes as several events of one moment.

    Raises:
        UsageError: `hours` is out of range, or events of the pipeline carry no lines.
        SourceError: the source cannot be read.
    """
    declared = pipeline.lines
    if declared is None or not {QUANTITY, PRICE} <= declared.values.keys():
        raise UsageError(f"events of pipeline {pipeline.name} carry no lines to replay: send events with --file")
    if not 1 <= hours <= REPLAY_HOURS_MAX:
        raise UsageError(f"{hours} hours cannot be replayed: give 1 to {REPLAY_HOURS_MAX}")
    latest = source.latest(now)
    found = source.lines(latest - timedelta(hours=hours), latest + MICROSECOND)
    ordered = found.sort_by([("at", "ascending"), ("entity", "ascending")]).to_pylist()
    for (at, entity), rows in groupby(ordered, lambda row: (row["at"], row["entity"])):
        lines = [{declared.item: r["item"], QUANTITY: r["quantity"], PRICE: r["price"]} for r in rows]
        key = int(entity) if pipeline.partitions.key_type is int else entity
        for start in range(0, len(lines), declared.most):
            body = {
                pipeline.entity: key,
                OBSERVED_AT: format_time(at),
                declared.name: lines[start : start + declared.most],
            }
            yield Outgoing(value=msgspec.json.encode(body), key=str(entity).encode())
