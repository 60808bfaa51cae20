"""Reading Feast's online store in Redis without Feast: for processes that must start in a second and stay light.

What to read stands in a reading plan, a small JSON document that `features.reading_plans` makes of Feast's registry
whenever definitions are applied. Nothing here imports Feast; a test holds every answer to Feast's own.

The layout, Feast's with `entity_key_serialization_version: 3`:

    key        join keys and values of an entity, serialized, then the project's name
    field      `_ts:<view>`: event time of the view's row, a protobuf Timestamp
    field      murmur3 of `<view>:<feature>`, four bytes: the feature, a protobuf Value

A plan names its layout. A process that reads another one says so, instead of misreading it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

import mmh3
import msgspec
import numpy as np
from numpy.typing import NDArray

from almanac.clock import need_utc
from almanac.errors import FeatureError
from almanac.pipeline import Pipeline
from features.forward import bring_forward
from features.grid import CARRIED, HISTORY, NEIGHBOURS

PLAN_VERSION = 1
LAYOUT = "feast-redis-3"
PLAN_TABLE = "reading_plans"
"""Table in Feast's schema of Postgres: service, plan as JSON text. The record; Redis has a copy."""
VIEWS_MAX = 64
FEATURES_MAX = 4_096  # of all views
ENTITIES_MAX = 1_000  # of one read
TIMES_KNOWN_MAX = 1_024  # event times kept decoded

_STRING, _INT32, _INT64 = 2, 3, 4  # Feast's ValueType
_FLOAT_TAG = b"\x35"  # protobuf: field 6 (float_val), fixed 32 bits
_PACKED = np.dtype([("tag", "u1"), ("number", "<f4")])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VARINT_BYTES_MAX = 10

Floats = NDArray[np.float64]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One feature view of a plan.

    Args:
        name: as its fields in Redis are named.
        features: in the service's order.
        columns: what the features are called in the answer; the same names unless the service renames them.
        ttl_seconds: a row older than this has expired; None holds at all times.
        observed: whether events push this view, so that its event time is that of the newest observation.
    """

    name: str
    features: tuple[str, ...]
    columns: tuple[str, ...]
    ttl_seconds: float | None = None
    observed: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to read the features of one FeatureService."""

    version: int
    layout: str
    service: str
    project: str
    join_key: str
    key_type: Literal["int32", "int64", "string"]
    views: tuple[View, ...]


def plan_key(service: str) -> str:
    """Redis key of a service's plan."""
    return f"almanac:reading-plan:{service}"


def encode_plan(plan: Plan) -> bytes:
    """A plan as JSON; equal plans give equal bytes."""
    return msgspec.json.encode(plan)


def decode_plan(data: bytes) -> Plan:
    """Read a plan.

    Raises:
        FeatureError: not a plan, of another version or layout, or beyond the limits; says what to do.
    """
    remedy = "run `almanac feast apply`, or restart this process if it is the older one"
    try:
        head = msgspec.json.decode(data, type=_Head)
        if (head.version, head.layout) != (PLAN_VERSION, LAYOUT):
            raise FeatureError(
                f"the reading plan is of version {head.version} and layout {head.layout[:40]}, this process reads "
                f"{PLAN_VERSION} and {LAYOUT}: {remedy}"
            )
        plan = msgspec.json.decode(data, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FeatureError(f"the reading plan cannot be read ({error}): {remedy}") from None
    whole = all(len(view.features) == len(view.columns) for view in plan.views)
    if not whole or not 1 <= len(plan.views) <= VIEWS_MAX or sum(len(v.features) for v in plan.views) > FEATURES_MAX:
        raise FeatureError(f"the reading plan of {plan.service} names no views, or too many features: {remedy}")
    return plan


class _Head(msgspec.Struct, frozen=True):
    version: int
    layout: str


@dataclass(frozen=True, kw_only=True)
class Features:
    """The online features of n entities.

    Args:
        columns: float64 (n,) for each feature, NaN where it is null, missing or expired.
        as_of: event time of each entity's observation; None where there is none that may be used.
        lacking: why an entity's row is not whole, view by view; empty where every view is there and in time.
    """

    columns: dict[str, Floats]
    as_of: tuple[datetime | None, ...]
    lacking: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Reader:
    """A plan, ready to be used: keys and fields of Redis, and what to make of the answers."""

    plan: Plan
    fields: tuple[str | bytes, ...] = field(init=False)
    _prefix: bytes = field(init=False)

    def __post_init__(self) -> None:
        fields: list[str | bytes] = []
        for view in self.plan.views:
            fields.append(f"_ts:{view.name}")
            fields += [field_of(view.name, feature) for feature in view.features]
        object.__setattr__(self, "fields", tuple(fields))
        name = self.plan.join_key.encode()
        object.__setattr__(self, "_prefix", struct.pack("<III", 1, _STRING, len(name)) + name)

    def key(self, entity: int | str) -> bytes:
        """Redis key of an entity.

        Raises:
            FeatureError: an entity of this type has no key in this plan.
        """
        return self._prefix + _key_value(self.plan, entity) + self.plan.project.encode()

    def decode(self, rows: Sequence[Sequence[bytes | None]], now: datetime) -> Features:
        """What Redis answered to HMGET of `fields`, a row for each entity.

        Args:
            rows: n answers, in the entities' order.
            now: rows older than their view's TTL at this moment count as expired, whatever they hold.

        Raises:
            FeatureError: a value that is no number.
        """
        moment = need_utc(now)
        lacking: list[list[str]] = [[] for _ in rows]
        times: list[list[tuple[bool, datetime]]] = [[] for _ in rows]
        columns: dict[str, Floats] = {}
        at = 0
        for view in self.plan.views:
            usable = np.zeros(len(rows), dtype=bool)
            for index, row in enumerate(rows):
                written = _timestamp(row[at])
                why = _why_not(view, written, moment)
                if why is not None:
                    lacking[index].append(why)
                    continue
                usable[index] = True
                if written is not None and (view.observed or view.ttl_seconds is not None):
                    times[index].append((view.observed, written))
            numbers = _numbers(rows, at + 1, view)
            numbers[:, ~usable] = np.nan
            columns |= dict(zip(view.columns, numbers, strict=True))
            at += 1 + len(view.columns)
        return Features(
            columns=columns,
            as_of=tuple(_as_of(found, self.plan) for found in times),
            lacking=tuple(tuple(found) for found in lacking),
        )

    def moments(self, rows: Sequence[Sequence[bytes | None]]) -> dict[str, list[datetime | None]]:
        """Event time of each row by view, expired or not; None where the view has no row."""
        found, at = {}, 0
        for view in self.plan.views:
            found[view.name] = [_timestamp(row[at]) for row in rows]
            at += 1 + len(view.columns)
        return found

    def newest_unobserved(self, rows: Sequence[Sequence[bytes | None]]) -> list[datetime | None]:
        """The newest event time of each row among the views that no event pushes, expired or not; None without any."""
        places, at = [], 0
        for view in self.plan.views:
            if not view.observed:
                places.append(at)
            at += 1 + len(view.columns)
        times = [[when for place in places if (when := _timestamp(row[place])) is not None] for row in rows]
        return [max(found, default=None) for found in times]


def brought_forward(pipeline: Pipeline, found: Features) -> dict[str, NDArray[Any]]:
    """The columns to score: what batch would have found at each observation's moment, as the stream does it.

    Pipelines whose features are not those of a grid of observations are scored with the columns as they are.
    """
    if pipeline.source is None:
        return dict(found.columns)
    variable = pipeline.source.variable
    if not {variable, *HISTORY, *CARRIED, *NEIGHBOURS} <= found.columns.keys():
        return dict(found.columns)
    hours = np.array([np.nan if when is None else (when - _EPOCH) / timedelta(hours=1) for when in found.as_of])
    return {**found.columns, **bring_forward(found.columns, hours, variable)}


def field_of(view: str, feature: str) -> bytes:
    """Redis field of one feature."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def _key_value(plan: Plan, entity: int | str) -> bytes:
    try:
        if plan.key_type == "string":
            text = str(entity).encode()
            return struct.pack("<II", _STRING, len(text)) + text
        number = int(entity)
        if plan.key_type == "int32":
            return struct.pack("<IIi", _INT32, 4, number)
        return struct.pack("<IIq", _INT64, 8, number)
    except (ValueError, struct.error, UnicodeEncodeError):
        raise FeatureError(
            f"{plan.join_key} {str(entity)[:40]!r} is no {plan.key_type}: ask for a key of that type"
        ) from None


def _why_not(view: View, written: datetime | None, now: datetime) -> str | None:
    """Why a view's row may not be used."""
    if written is None:
        return f"{view.name} is missing"
    if view.ttl_seconds is not None and now - written > timedelta(seconds=view.ttl_seconds):
        return f"{view.name} has expired"
    return None


def _as_of(times: list[tuple[bool, datetime]], plan: Plan) -> datetime | None:
    """The observation's time: of the view that events push; of a service without one, its oldest view that changes."""
    if any(view.observed for view in plan.views):
        return max((when for observed, when in times if observed), default=None)
    changing = sum(view.ttl_seconds is not None for view in plan.views)
    return min((when for _, when in times), default=None) if len(times) == changing else None


def _numbers(rows: Sequence[Sequence[bytes | None]], start: int, view: View) -> Floats:
    """The protobuf Values of one view from column `start` on, float64 (features, rows); absent and null ones as NaN."""
    width = len(view.features)
    values = [value for row in rows for value in row[start : start + width]]
    data = b"".join(values) if None not in values else b""  # type: ignore[arg-type]
    if len(data) == 5 * len(values) and data[::5] == _FLOAT_TAG * len(values):
        # All of them floats, as almost always: read at once.
        found = np.frombuffer(data, dtype=_PACKED)["number"].astype(np.float64)
    else:
        names = [f"{view.name}:{feature}" for feature in view.features] * len(rows)
        found = np.array([_number(value, name) for value, name in zip(values, names, strict=True)], dtype=np.float64)
    return np.ascontiguousarray(found.reshape(len(rows), width).T)


def _number(data: bytes | None, name: str) -> float:
    """One protobuf Value: a float, a double, a whole number or a truth value; NaN if it is null or absent."""
    if not data:
        return float("nan")
    try:
        tag, at = _varint(data, 0)
        read = _READERS.get(tag)
        if read is not None:
            return read(data, at)
    except (IndexError, struct.error):
        pass
    raise FeatureError(f"feature {name} in Redis is no number: correct the feature view, and materialize again")


def _whole(data: bytes, at: int) -> float:
    value = _varint(data, at)[0]
    return float(value - (1 << 64) if value >= 1 << 63 else value)


_READERS: dict[int, Callable[[bytes, int], float]] = {
    3 << 3: _whole,  # int32_val
    4 << 3: _whole,  # int64_val
    5 << 3 | 1: lambda data, at: float(struct.unpack_from("<d", data, at)[0]),  # double_val
    6 << 3 | 5: lambda data, at: float(struct.unpack_from("<f", data, at)[0]),  # float_val
    7 << 3: _whole,  # bool_val
    8 << 3: _whole,  # unix_timestamp_val
    19 << 3: lambda data, at: float("nan"),  # null_val
}


@lru_cache(maxsize=TIMES_KNOWN_MAX)  # rows that were written together have the same
def _timestamp(data: bytes | None) -> datetime | None:
    """A protobuf Timestamp; None if absent."""
    if data is None:
        return None
    parts = {1: 0, 2: 0}
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            parts[tag >> 3], at = _varint(data, at)
        seconds = parts[1] - (1 << 64) if parts[1] >= 1 << 63 else parts[1]
        return _EPOCH + timedelta(seconds=seconds, microseconds=parts[2] // 1000)
    except (IndexError, OverflowError):
        raise FeatureError("an event time in Redis cannot be read: materialize the features again") from None


def _varint(data: Any, at: int) -> tuple[int, int]:
    """A protobuf varint and where it ends."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES_MAX, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError("varint too long")
