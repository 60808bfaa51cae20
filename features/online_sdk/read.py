"""Reading online features through Feast's interface: what to ask Redis for, and what to make of it.

Each reading is a generator: it yields what it wants from Redis (a list of keys, or a set of layouts' fingerprints),
is sent what was found, and returns the answer. So there is one way of reading, whether the store waits for Redis
or awaits it; and the command that reads is the only thing that takes time here beside taking rows apart.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from feast import FeatureService, RepoConfig, metrics, utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from almanac.clock import at_micros
from almanac.errors import FeatureError
from features.online_sdk.plan import (
    PLANS_MAX,
    Named,
    Plan,
    keys_of,
    named,
    plan_of,
    resolved,
    shown_names,
    ttl_of,
    versioned,
)
from features.online_sdk.response import PackedResponse, ViewRows
from features.online_sdk.values import messages
from features.packed.codec import Layout, Packed, UnknownLayouts, parse
from features.packed.views import layout_of, view_name

Found = Any
"""Values of keys in their order, or layouts by fingerprint."""
Reading = Generator[list[bytes] | set[int], Found, Any]
Row = tuple[datetime | None, dict[str, Value] | None]


@dataclass(slots=True)
class Request:
    """The arguments of `get_online_features`, by the names that Feast gives them."""

    config: RepoConfig
    features: list[str] | FeatureService
    entity_rows: list[dict[str, Any]] | Mapping[str, Any]
    registry: Any
    project: str
    full_feature_names: bool = False
    include_feature_view_version_metadata: bool = False


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A plan, and the state of the registry that it was made of."""

    registry: Any
    read_at: Any
    plan: Plan | None


class Reader:
    """Answers requests for online features; keeps the plans of those it has met, and the layouts of their rows."""

    def __init__(self) -> None:
        self._plans: dict[Any, _Kept] = {}
        self._layouts: dict[int, Layout] = {}

    def get_online_features(self, request: Request) -> Reading:
        """Returns: Feast's `OnlineResponse`.

        Raises:
            FeatureError: a row of Redis is damaged or of a newer version, or an entity row lacks a join key.
            Exception: as Feast says what is wrong with a request.
        """
        entity_rows = _columnar(request.entity_rows)
        plan = None if request.include_feature_view_version_metadata or _metrics() else self._plan(request)
        found = None if plan is None else named(plan, entity_rows)
        if plan is None or found is None:
            return (yield from self._by_feast(request, entity_rows))
        return (yield from self._by_plan(plan, found, request.config))

    def rows(
        self, config: RepoConfig, table: Any, entity_keys: Sequence[EntityKey], names: Sequence[str] | None
    ) -> Reading:
        """Returns: what `online_read` gives: event time and Values of each entity's row, or two Nones.

        Raises:
            FeatureError: a row of Redis is damaged or of a newer version.
        """
        layout = layout_of(config.project, table, versioned=versioned(config))
        asked = list(names) if names else [column.name for column in layout.columns]
        values = yield keys_of(entity_keys, config.project, view_name(table, versioned=versioned(config)))
        parts = yield from self._parsed(layout, values)
        rows = _view_rows(asked, asked, parts, len(entity_keys), None, config)
        columns = [messages(cells) for cells in rows.cells()]
        found: list[Row] = []
        for at, (there, micros) in enumerate(zip(rows.present.tolist(), rows.times.tolist(), strict=True)):
            held = {name: column[at] for name, column in zip(asked, columns, strict=True)}
            found.append((at_micros(micros), held) if there else (None, None))
        return found

    def _plan(self, request: Request) -> Plan | None:
        """Feast's resolution of a request, made anew when the registry has been read anew."""
        registry = request.registry
        key = (_name(request.features), request.project, request.full_feature_names)
        read_at = getattr(registry, "cached_registry_proto_created", None)
        kept = self._plans.get(key)
        if kept is not None and kept.registry is registry and kept.read_at == read_at and registry.is_cache_valid():
            return kept.plan
        context = resolved(registry, request.project, request.features, request.full_feature_names)
        plan = plan_of(context, request.config, request.full_feature_names)
        # One that was read anew meanwhile may have been resolved before or after: the next request knows.
        if read_at is not None and read_at == getattr(registry, "cached_registry_proto_created", None):
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[key] = _Kept(registry=registry, read_at=read_at, plan=plan)
        return plan

    def _by_plan(self, plan: Plan, found: Named, config: RepoConfig) -> Reading:
        wanted: list[bytes] = []
        for view in plan.views:
            wanted += view.keys.of(*[found.values[name] for name in view.columns])
        values = yield wanted
        now = time.time_ns() // 1_000
        views = []
        for at, view in enumerate(plan.views):
            own = values if len(plan.views) == 1 else values[at * found.rows : (at + 1) * found.rows]
            parts = yield from self._parsed(view.layout, own)
            oldest = None if view.ttl is None else now - view.ttl
            views.append(_view_rows(view.names, view.shown, parts, found.rows, oldest, config))
        return PackedResponse(entities=found.columns, views=views, types=plan.types)

    def _by_feast(self, request: Request, entity_rows: dict[str, Any]) -> Reading:
        """Feast's own steps, for on-demand views and whatever is unusual; the rows are read as ever.

        A service's `precompute_online` changes nothing: packed rows need no second copy.
        """
        prepared = utils._prepare_entities_to_read_from_online_store(
            registry=request.registry,
            project=request.project,
            features=request.features,
            entity_values=entity_rows,
            full_feature_names=request.full_feature_names,
            native_entity_values=True,
        )
        join_keys, grouped, entity_names, on_demand, references, result_names, response = prepared
        started = time.monotonic()
        yield from self._fill(request, grouped, join_keys, entity_names, response)
        metrics.track_online_store_read(time.monotonic() - started)
        types = OnlineStore._build_feature_types(grouped)
        if on_demand:
            utils._augment_response_with_on_demand_transforms(
                response, references, on_demand, request.full_feature_names, feature_types=types
            )
        utils._drop_unneeded_columns(response, result_names)
        return OnlineResponse(response, feature_types=types)

    def _fill(
        self,
        request: Request,
        grouped: Sequence[tuple[Any, list[str]]],
        join_keys: dict[str, Any],
        entity_names: dict[str, str],
        response: GetOnlineFeaturesResponse,
    ) -> Reading:
        config = request.config
        wanted: list[bytes] = []
        places = []
        for table, _ in grouped:
            entities, indexes, rows = utils._get_unique_entities(table, join_keys, entity_names)
            start = len(wanted)
            wanted += keys_of(
                utils._get_entity_key_protos(entities), config.project, view_name(table, versioned=versioned(config))
            )
            place = [0] * rows
            for offset, found_at in enumerate(indexes):
                for at in found_at:
                    place[at] = start + offset
            places.append(place)
        values = yield wanted
        now = time.time_ns() // 1_000
        for (table, names), place in zip(grouped, places, strict=True):
            parts = yield from self._parsed(
                layout_of(config.project, table, versioned=versioned(config)), [values[at] for at in place]
            )
            shown = shown_names(table, names, request.full_feature_names)
            ttl = ttl_of(table)
            rows = _view_rows(names, shown, parts, len(place), None if ttl is None else now - ttl, config)
            response.metadata.feature_names.val.extend(shown)
            for vector in rows.vectors():
                response.results.append(GetOnlineFeaturesResponse.FeatureVector.FromString(vector))
            if request.include_feature_view_version_metadata:
                _add_version(response, table)
            _count(table, rows)

    def _parsed(self, layout: Layout, values: Sequence[bytes | None]) -> Reading:
        try:
            return parse(layout, values, self._layouts)
        except UnknownLayouts as error:
            self._layouts |= yield error.fingerprints
            return parse(layout, values, self._layouts)


def _columnar(entity_rows: list[dict[str, Any]] | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(entity_rows, list):
        return dict(entity_rows)
    if not entity_rows:
        raise FeatureError("entity_rows is empty: name at least one entity")
    names = entity_rows[0].keys()
    if any(row.keys() != names for row in entity_rows):
        raise ValueError("All entity_rows must have the same keys.")  # in Feast's words
    return {name: [row[name] for row in entity_rows] for name in names}


def _name(features: list[str] | FeatureService) -> Any:
    return ("service", features.name) if isinstance(features, FeatureService) else tuple(features)


def _view_rows(
    names: Sequence[str],
    shown: Sequence[str],
    parts: Sequence[Packed],
    rows: int,
    oldest: int | None,
    config: RepoConfig,
) -> ViewRows:
    keep = config.online_store.expired_values == "keep"
    return ViewRows(names=tuple(names), shown=shown, parts=parts, rows=rows, oldest=oldest, keep_expired=keep)


def _add_version(response: GetOnlineFeaturesResponse, table: Any) -> None:
    name = table.projection.name_alias or table.projection.name
    if name not in [held.name for held in response.metadata.feature_view_metadata]:
        held = response.metadata.feature_view_metadata.add()
        held.name = name
        held.version = getattr(table, "current_version_number", 0) or 0


def _metrics() -> bool:
    """Whether Feast's server counts what is read; that it is asked for is not known before it runs."""
    return bool(metrics._config.online_features)


def _count(table: Any, rows: ViewRows) -> None:
    metrics.track_feature_statuses(table.name, *rows.counts())
