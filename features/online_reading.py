"""Reading online features in Redis without Feast: for processes that must start in a second and stay light.

What to read stands in a reading plan, a small JSON document that `features.reading_plans` makes of Feast's registry
whenever definitions are applied. Values are packed (`features.packed.codec`), one for each entity and feature view;
those of all entities and views come with one command, and are taken apart at once. Nothing here imports Feast.

A plan names its version and layout. A process that reads another one says so, instead of misreading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from almanac.clock import HOUR, MICROSECOND, at_micros, micros_of
from almanac.errors import FeatureError
from almanac.feature_checks import words
from almanac.pipeline import GridObservations, Pipeline
from almanac.ragged import Ragged
from features.forward import bring_forward
from features.grid import CARRIED, HISTORY, NEIGHBOURS
from features.packed.codec import Column, Layout, Micros, Packed, UnknownLayouts, numbers_of, packing, parse
from features.packed.keys import Keys
from features.packed.lists import lists_of
from features.packed.store import LAYOUTS_FETCHED_MAX, fetch, layouts_of
from features.packed.store import LAYOUTS_KEY as LAYOUTS_KEY
from features.packed.store import layout_field as layout_field

PLAN_VERSION = 2
LAYOUT = "packed-1"
PLAN_TABLE = "reading_plans"
"""Table in Feast's schema of Postgres: service, plan as JSON text. The record; Redis has a copy."""
VIEWS_MAX = 64
FEATURES_MAX = 4_096  # of all views

PRESENT, MISSING, EXPIRED = 0, 1, 2
"""What is said of an entity's row of a view: it holds, there is none, or it is older than the view's TTL."""
HAS_EXPIRED = "has expired"
"""By which words a view's row is known to have been there, and to be too old."""
NEVER = np.iinfo(np.int64).min
"""In place of a moment that there is not."""

Floats = NDArray[np.float64]
Status = NDArray[np.uint8]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One feature view of a plan.

    Args:
        name: what the view is called online.
        packed: all its features with their types, in the order of its values.
        features: those to read, in the service's order; numbers all.
        columns: what they are called in the answer; the same names unless the service renames them.
        ttl_seconds: a row older than this has expired; None holds at all times.
        observed: whether events push this view, so that its event time is that of the newest observation.
        lists: features to read that are lists; a plan that has none says nothing of them.
    """

    name: str
    packed: tuple[Column, ...]
    features: tuple[str, ...]
    columns: tuple[str, ...]
    ttl_seconds: float | None = None
    observed: bool = False
    lists: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


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
    """Redis key of a service's plan; one of its own for each version, so that older processes keep theirs."""
    return f"almanac:reading-plan-{PLAN_VERSION}:{service}"


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
    whole = all(
        len(view.features) == len(view.columns) and {c.name for c in view.packed} >= {*view.features} and view.packed
        for view in plan.views
    )
    if not whole or not 1 <= len(plan.views) <= VIEWS_MAX or sum(len(v.packed) for v in plan.views) > FEATURES_MAX:
        raise FeatureError(f"the reading plan of {plan.service} names no views, or too many features: {remedy}")
    return plan


class _Head(msgspec.Struct, frozen=True):
    version: int
    layout: str


@dataclass(frozen=True, kw_only=True)
class ViewRows:
    """The rows of one view for n entities.

    Args:
        status: uint8 (n,): `PRESENT`, `MISSING` or `EXPIRED`.
        times: event times in microseconds since 1970, whether expired or not; `NEVER` where there is no row.
        created: when rows were created, alike; 0 where that is not known. None of a view that is not asked for lists.
        now: at which rows have expired or not, in microseconds since 1970; None: none has.
    """

    view: View
    status: Status
    times: Micros
    created: Micros | None = None
    now: int | None = None

    @property
    def moments(self) -> list[datetime | None]:
        """The event times."""
        return _moments(self.times)

    def why_not(self, at: int) -> str:
        """Why the row of the entity at a place cannot be used; of one that has expired, how old it is."""
        if self.status[at] != EXPIRED or self.now is None or self.view.ttl_seconds is None:
            return f"{self.view.name} is missing"
        age = timedelta(microseconds=self.now - int(self.times[at]))
        usable = timedelta(seconds=self.view.ttl_seconds)
        return f"{self.view.name} {HAS_EXPIRED} ({words(age)} old, usable for {words(usable)})"


@dataclass(frozen=True, kw_only=True)
class Features:
    """The online features of n entities.

    Args:
        columns: float64 (n,) for each feature that is a number, NaN where it is null, missing or expired.
        views: what is known of each view's rows.
        lists: n lists for each feature that is one, empty where it is null, missing or expired.
    """

    columns: dict[str, Floats]
    views: tuple[ViewRows, ...]
    lists: dict[str, Ragged] = field(default_factory=dict)

    @cached_property
    def observed_at(self) -> Micros:
        """Event time of each entity's observation in microseconds; `NEVER` where there is none that may be used.

        That of the view that events push; of a service without one, that of its oldest view that changes.
        """
        n = len(self.views[0].times)
        usable = [np.where(rows.status == PRESENT, rows.times, NEVER) for rows in self.views if rows.view.observed]
        if usable:
            return np.asarray(np.maximum.reduce(usable))
        changing = [rows for rows in self.views if rows.view.ttl_seconds is not None]
        oldest = [np.where(rows.status == PRESENT, rows.times, NEVER) for rows in changing]
        return np.asarray(np.minimum.reduce(oldest)) if oldest else np.full(n, NEVER)

    @cached_property
    def as_of(self) -> tuple[datetime | None, ...]:
        """`observed_at` as moments; None where there is none."""
        return tuple(_moments(self.observed_at))

    @cached_property
    def lacking(self) -> tuple[tuple[str, ...], ...]:
        """Why an entity's row is not whole, view by view; empty where every view is there and in time."""
        found: list[list[str]] = [[] for _ in range(len(self.views[0].times))]
        for rows in self.views:
            for at in np.flatnonzero(rows.status).tolist():
                found[at].append(rows.why_not(at))
        return tuple(tuple(reasons) for reasons in found)

    @property
    def newest_unobserved(self) -> Micros:
        """The newest event time of each entity among the views that no event pushes, expired or not."""
        times = [rows.times for rows in self.views if not rows.view.observed]
        return np.asarray(np.maximum.reduce(times)) if times else np.full(len(self.views[0].times), NEVER)


@dataclass(frozen=True)
class Reader:
    """A plan, ready to be used: keys in Redis, and what to make of the answers.

    `known` has further layouts by fingerprint, in which rows were packed before columns came or went.
    """

    plan: Plan
    known: dict[int, Layout] = field(default_factory=dict)

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """The layout of each view's values."""
        return tuple(Layout(project=self.plan.project, view=view.name, columns=view.packed) for view in self.plan.views)

    @cached_property
    def _keys(self) -> tuple[Keys, ...]:
        joined = (Column(self.plan.join_key, self.plan.key_type.upper()),)
        return tuple(Keys(project=self.plan.project, view=view.name, join_keys=joined) for view in self.plan.views)

    def keys(self, entities: Any) -> list[bytes]:
        """Redis keys of n entities: all of the first view, then all of the second, and so on.

        Args:
            entities: a list, or an array.

        Raises:
            FeatureError: one of them has no key in this plan; says which.
        """
        found = [keys.of(entities) for keys in self._keys]
        return found[0] if len(found) == 1 else list(chain.from_iterable(found))

    def unmet(self, values: Sequence[bytes | None]) -> list[int]:
        """Fingerprints of layouts that values are packed in and that are not known: to be fetched and learned."""
        packed = [packing(layout) for layout in self.layouts]
        met = {head.to_bytes(8, "little") for each in packed for head in (each.head, each.dated_head)}
        heads = {value[:8] for value in values if value is not None} - met
        found = {int.from_bytes(head[4:], "little") for head in heads if len(head) == 8} - self.known.keys()
        return sorted(found)[:LAYOUTS_FETCHED_MAX]

    def learn(self, fingerprints: Sequence[int], held: Sequence[bytes | None]) -> None:
        """Add layouts.

        Args:
            held: what HMGET of `LAYOUTS_KEY` gave for their `layout_field`s.

        Raises:
            FeatureError: one cannot be read.
        """
        self.known.update(layouts_of(fingerprints, held))

    def decode(self, values: Sequence[bytes | None], now: datetime | None) -> Features:
        """What Redis answered to MGET of `keys`, taken apart.

        Args:
            values: of n entities, in the order of `keys`.
            now: rows older than their view's TTL at this moment have expired, whatever they hold; None: none has.

        Raises:
            UnknownLayouts: a row is packed in a layout that is not known.
            FeatureError: a value is damaged, or packed by a newer version.
        """
        n = len(values) // len(self.plan.views)
        moment = None if now is None else micros_of(now)
        columns: dict[str, Floats] = {}
        lists: dict[str, Ragged] = {}
        rows = []
        for at, (view, layout) in enumerate(zip(self.plan.views, self.layouts, strict=True)):
            found = parse(layout, values[at * n : (at + 1) * n], self.known)
            read = _rows(view, found, n, moment)
            numbers = numbers_of(found, n, view.features)
            if moment is not None and (expired := read.status == EXPIRED).any():
                numbers[:, expired] = np.nan
            columns.update(zip(view.columns, numbers, strict=True))
            for name in view.lists or ():
                lists[name] = lists_of(found, read.status == PRESENT, name)
            rows.append(read)
        return Features(columns=columns, views=tuple(rows), lists=lists)


def read(client: Any, reader: Reader, entities: Any, now: datetime | None) -> Features:
    """The online features of n entities: one command, and a second one where rows lie in layouts not met before.

    Args:
        client: a Redis of redis-py, or a RedisCluster.
        entities: a list, or an array; each may occur more than once.
        now: rows older than their view's TTL at this moment have expired; None: none has.

    Raises:
        FeatureError: an entity is no key, or what is in Redis cannot be read.
        redis.RedisError: as the client raises it.
    """
    values = fetch(client, reader.keys(entities))
    try:
        return reader.decode(values, now)
    except UnknownLayouts:  # rows that were packed before columns came or went
        unmet = reader.unmet(values)
        reader.learn(unmet, client.hmget(LAYOUTS_KEY, [layout_field(each) for each in unmet]))
    return reader.decode(values, now)


def _moments(times: Micros) -> list[datetime | None]:
    """Microseconds as moments; rows that were written together have the same, which are made once."""
    distinct, places = np.unique(times, return_inverse=True)
    known = [None if each == NEVER else _moment(each) for each in distinct.tolist()]
    return [known[place] for place in places.tolist()]


def _moment(micros: int) -> datetime:
    try:
        return at_micros(micros)
    except OverflowError:
        raise FeatureError("an event time in Redis cannot be read: materialize the features again") from None


def _rows(view: View, found: Sequence[Packed], n: int, now: int | None) -> ViewRows:
    if len(found) == 1 and found[0].where is None:
        times = found[0].times
        absent = ~found[0].present
        if absent.any():
            times = np.where(absent, NEVER, times)
    else:
        times = np.full(n, NEVER)
        for part in found:
            times[part.where] = part.times
        absent = times == NEVER
    status = absent.astype(np.uint8)  # MISSING is 1
    if now is not None and view.ttl_seconds is not None:
        status[~absent & (times < now - round(view.ttl_seconds * 1_000_000))] = EXPIRED
    return ViewRows(view=view, status=status, times=times, created=_created(view, found, n), now=now)


def _created(view: View, found: Sequence[Packed], n: int) -> Micros | None:
    if not view.lists:
        return None
    made = np.zeros(n, np.int64)
    for part in found:
        if "created" in (part.records.dtype.names or ()):
            made[slice(None) if part.where is None else part.where] = part.records["created"]
    return made


def brought_forward(pipeline: Pipeline, found: Features) -> dict[str, NDArray[Any]]:
    """The columns to score: what batch would have found at each observation's moment, as the stream does it.

    Pipelines whose features are not those of a grid of observations are scored with the columns as they are.
    """
    if not isinstance(pipeline.source, GridObservations):
        return dict(found.columns)
    variable = pipeline.source.variable
    if not {variable, *HISTORY, *CARRIED, *NEIGHBOURS} <= found.columns.keys():
        return dict(found.columns)
    times = found.observed_at
    hours = np.where(times == NEVER, np.nan, times / (HOUR // MICROSECOND))
    return {**found.columns, **bring_forward(found.columns, hours, variable)}
