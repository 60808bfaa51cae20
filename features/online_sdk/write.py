"""Rows as Feast hands them to an online store, checked and packed: all of them, or an error before any is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from feast import RepoConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from almanac.clock import micros_of
from almanac.errors import FeatureError
from features.online_sdk.plan import keys_of, versioned
from features.online_sdk.values import attribute
from features.packed.arrow import arrow_type, encode
from features.packed.codec import BYTES, LISTS, NUMBERS, TEXTS, Column, Layout
from features.packed.store import age_of
from features.packed.views import layout_of

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Rows of one view, ready to be written."""

    layout: Layout
    keys: Sequence[bytes]
    values: Sequence[bytes]


def packaged(config: RepoConfig, table: Any, data: Sequence[Row], ties_replace: bool) -> Packaged:
    """Pack rows.

    Args:
        ties_replace: of rows of one entity, event time and creation the last counts; else they must be the same.

    Raises:
        FeatureError: a row does not fit the view's schema, has no event time or no value for a join key, or two rows
            of one entity and moment contradict each other.
    """
    layout = layout_of(config.project, table, versioned=versioned(config))
    known = {column.name for column in layout.columns}
    join_keys = {field.name for field in getattr(table, "entity_columns", ())}
    for unknown in {name for _, values, _, _ in data for name in values} - known - join_keys:
        raise FeatureError(
            f"rows of view {table.name} have {unknown}, which is none of its features: the view has changed since they "
            "were made; read its definition again"
        )
    times = np.array([_micros(moment, at, table.name) for at, (_, _, moment, _) in enumerate(data)], dtype=np.int64)
    keys = keys_of([key for key, _, _, _ in data], config.project, layout.view)
    rows = pa.table(
        [
            _array(column, [values.get(column.name) for _, values, _, _ in data], table.name)
            for column in layout.columns
        ],
        schema=pa.schema([(column.name, arrow_type(column.type)) for column in layout.columns]),
    )
    created = np.array([_created(moment) for _, _, _, moment in data], dtype=np.int64)
    values = encode(layout, rows, times, created)
    if not ties_replace:
        _refuse_contradictions(table.name, keys, values)
    return Packaged(layout=layout, keys=keys, values=values)


def _refuse_contradictions(view: str, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    """Of one entity, event time and creation there is one row; the same row twice is one as well."""
    if len(set(keys)) == len(keys):
        return
    known: dict[tuple[bytes, tuple[int, ...]], int] = {}
    for at, (key, value) in enumerate(zip(keys, values, strict=True)):
        held = known.setdefault((key, age_of(value)), at)
        if values[held] != value:
            raise FeatureError(
                f"rows {held + 1} and {at + 1} of view {view} are of one entity and one moment and differ: write "
                "one of them"
            )


def _micros(moment: datetime | None, row: int, view: str) -> int:
    """Event time in whole microseconds since 1970; without a zone it is in UTC, as Feast's contract has it."""
    if moment is None or moment != moment:  # pandas' NaT is unlike itself
        raise FeatureError(f"row {row + 1} of view {view} has no event time: give each row one, in UTC")
    return _since_1970(moment)


def _created(moment: datetime | None) -> int:
    """When a row was created; 0: not known."""
    if moment is None or moment != moment:
        return 0
    return _since_1970(moment)


def _since_1970(moment: datetime) -> int:
    return micros_of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _array(column: Column, values: Sequence[Value | None], view: str) -> pa.Array:
    field = attribute(column.type)
    native = column.type in NUMBERS or column.type in TEXTS or column.type in BYTES
    found: list[Any] = []
    for at, value in enumerate(values):
        held = None if value is None else value.WhichOneof("val")
        if value is None or held is None or held == "null_val":
            found.append(None)
        elif held != field:
            raise FeatureError(
                f"row {at + 1} of view {view} has {held} as its feature {column.name}, which is {column.type.lower()}: "
                "correct the data, or read the view's definition again if it was changed"
            )
        elif native:
            found.append(getattr(value, field))
        else:
            found.append(list(getattr(value, field).val) if column.type in LISTS else value.SerializeToString())
    return pa.array(found, arrow_type(column.type))
