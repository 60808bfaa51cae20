"""What a request for online features means: which views, which layouts, how their entities are named in Redis.

Worked out once for each list of features and each state of the registry: Feast resolves references against the registry
and keeps what it found until the registry changes; what is worked out here is kept for as long as that is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast import RepoConfig, utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from almanac.errors import FeatureError
from features.online_sdk.response import EntityColumn
from features.online_sdk.values import Cells
from features.packed.codec import Column, Layout
from features.packed.keys import Keys
from features.packed.views import ENTITY_LESS, layout_of, view_name

KINDS = {
    "int32_val": "INT32",
    "int64_val": "INT64",
    "string_val": "STRING",
    "bytes_val": "BYTES",
    "unix_timestamp_val": "UNIX_TIMESTAMP",
    "uuid_val": "UUID",
    "time_uuid_val": "TIME_UUID",
}
"""Fields of Feast's Value that may name an entity, and their value types."""
PLANS_MAX = 1_024
_INT32_MAX = 2**31 - 1


def versioned(config: RepoConfig) -> bool:
    """Whether the registry keeps versions of views, whose rows then lie apart."""
    return bool(config.registry.enable_online_feature_view_versioning)


def keys_of(entity_keys: Sequence[EntityKey], project: str, view: str) -> list[bytes]:
    """Keys in Redis of some entities, in their order.

    Raises:
        FeatureError: one has no value for a join key, or one of a type that names no entity; says which.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, key in enumerate(entity_keys):
        kinds = tuple(value.WhichOneof("val") for value in key.entity_values)
        groups.setdefault((*key.join_keys, *kinds), []).append(at)
    found: list[bytes] = [b""] * len(entity_keys)
    for places in groups.values():
        first = entity_keys[places[0]]
        columns, values = [], []
        for at, name in enumerate(first.join_keys):
            kind = first.entity_values[at].WhichOneof("val") if at < len(first.entity_values) else None
            if kind not in KINDS:
                raise FeatureError(
                    f"row {places[0] + 1} of view {view} has {kind or 'nothing'} as its join key {name}: give each row "
                    "a whole number, text or bytes"
                )
            columns.append(Column(name, KINDS[kind]))
            values.append([getattr(entity_keys[place].entity_values[at], kind) for place in places])
        if not columns:  # Feast writes rows of a view without entities with or without its name for none
            columns, values = [ENTITY_LESS], [[""] * len(places)]
        named = Keys(project=project, view=view, join_keys=tuple(columns)).of(*values)
        for place, name in zip(places, named, strict=True):
            found[place] = name
    return found


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """One view of a request.

    Args:
        table: Feast's view.
        layout: of its values.
        names: the features asked for; `shown` what the answer calls them.
        keys: how its entities are named, and `columns`, which of the request's columns they are named by.
        ttl: in microseconds; None for a view whose rows hold at all times.
    """

    table: Any
    layout: Layout
    names: tuple[str, ...]
    shown: tuple[str, ...]
    keys: Keys
    columns: tuple[str, ...]
    ttl: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request that is answered from packed rows alone.

    Args:
        kinds: value types of the join keys of the request, by name.
        views: in the answer's order.
        wanted: names of the request's columns without which no key can be named.
        types: of all features, by name; Feast's response decides by them what text is a UUID.
    """

    kinds: dict[str, ValueType]
    join_keys: frozenset[str]
    other_names: frozenset[str]
    views: tuple[ViewPlan, ...]
    wanted: frozenset[str]
    types: dict[str, ValueType]


def plan_of(context: tuple[Any, ...], config: RepoConfig, full_feature_names: bool) -> Plan | None:
    """The plan of what Feast resolved; None where on-demand views are computed, which is left to Feast.

    Args:
        context: what `feast.utils._get_cached_request_context` gave.
    """
    _, on_demand, entity_names, kinds, join_keys, grouped, _, request_data, _ = context
    if on_demand or request_data:
        return None
    views = []
    for table, names in grouped:
        view = _view(table, names, entity_names, config, full_feature_names)
        if view is None:
            return None
        views.append(view)
    return Plan(
        kinds=dict(kinds),
        join_keys=frozenset(join_keys),
        other_names=frozenset(entity_names) - frozenset(join_keys),
        views=tuple(views),
        wanted=frozenset(column for view in views for column in view.columns),
        types=OnlineStore._build_feature_types(grouped),
    )


def ttl_of(table: Any) -> int | None:
    """A view's time to live in microseconds; None without one."""
    ttl = getattr(table, "ttl", None)
    return round(ttl.total_seconds() * 1_000_000) if ttl else None


def shown_names(table: Any, names: Sequence[str], full_feature_names: bool) -> tuple[str, ...]:
    """What an answer calls features of a view."""
    prefix = f"{table.projection.name_to_use()}__" if full_feature_names else ""
    return tuple(prefix + name for name in names)


def _view(
    table: Any, names: Sequence[str], entity_names: dict[str, str], config: RepoConfig, full_feature_names: bool
) -> ViewPlan | None:
    kinds = {field.name: field.dtype.to_value_type().name for field in table.entity_columns}
    join_keys = [entity_names.get(name) for name in table.entities]
    if not join_keys or set(join_keys) != set(kinds):  # aliases of joined views: Feast finds the way
        return None
    aliases = table.projection.join_key_map
    return ViewPlan(
        table=table,
        layout=layout_of(config.project, table, versioned=versioned(config)),
        names=tuple(names),
        shown=shown_names(table, names, full_feature_names),
        keys=Keys(
            project=config.project,
            view=view_name(table, versioned=versioned(config)),
            join_keys=tuple(Column(str(name), kinds[str(name)]) for name in join_keys),
        ),
        columns=tuple(str(aliases.get(name, name)) for name in join_keys),
        ttl=ttl_of(table),
    )


@dataclass(slots=True, kw_only=True)
class Named:
    """The join keys of n entities, by the request's names: as they name keys, and as they are given back."""

    rows: int
    values: dict[str, Any]
    columns: list[EntityColumn]


def named(plan: Plan, entity_rows: dict[str, Any]) -> Named | None:
    """The entities of a request; None where Feast has to say what is wrong with it, or to find the way.

    Raises:
        FeatureError: a row has no value for a join key.
    """
    values: dict[str, Any] = {}
    columns, lengths = [], set()
    for name, given in entity_rows.items():
        if name in plan.other_names:
            return None
        listed = given if type(given) is list else list(getattr(given, "val", given))
        lengths.add(len(listed))
        if name in plan.join_keys:
            kind, values[name], cells = _column(name, listed, plan.kinds.get(name, ValueType.UNKNOWN))
            columns.append(EntityColumn(name=name, cells=Cells(kind=kind, values=cells)))
    if len(lengths) != 1 or 0 in lengths:
        return None
    rows = lengths.pop()
    if ENTITY_LESS.name in plan.wanted:
        values[ENTITY_LESS.name] = [""] * rows
    return Named(rows=rows, values=values, columns=columns) if plan.wanted <= values.keys() else None


def _column(name: str, given: list[Any], declared: ValueType) -> tuple[str, Any, list[Any]]:
    """Type, values as keys are named by them, and cells of a join key's values."""
    kinds = set(map(type, given))
    if kinds == {int} and declared in (ValueType.INT64, ValueType.INT32):
        limit = _INT32_MAX if declared is ValueType.INT32 else 2**63 - 1
        if -limit <= min(given) and max(given) <= limit:
            return declared.name, np.array(given, dtype=np.int64), given
    elif kinds == {str} and declared is ValueType.STRING:
        return "STRING", given, [value.encode() for value in given]
    made = python_values_to_proto_values(given, declared)
    fields = {value.WhichOneof("val") for value in made}
    if len(fields) != 1 or None in fields:
        row = next((at for at, value in enumerate(made) if value.WhichOneof("val") is None), 0)
        raise FeatureError(f"row {row + 1} of entity_rows has no {name}: give each row a value for it")
    field = fields.pop()
    values = [getattr(value, field) for value in made]
    if field not in KINDS:
        raise FeatureError(f"join key {name} is {field}: give whole numbers, text or bytes")
    return KINDS[field], values, [value.encode() if isinstance(value, str) else value for value in values]


def resolved(registry: Any, project: str, features: Any, full_feature_names: bool) -> tuple[Any, ...]:
    """What Feast finds in the registry for these features; the same object until the registry changes.

    Raises:
        Exception: as Feast says it: an unknown view or feature, colliding names, a view that may not be served.
    """
    found: tuple[Any, ...] = utils._get_cached_request_context(registry, project, features, full_feature_names)
    return found
