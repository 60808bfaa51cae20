"""Reading plans: made of Feast's registry, kept in Postgres, copied to Redis; `features.online_reading` reads them.

Written whenever definitions are applied, and again whenever features are
materialized, so that an emptied Redis has them back with the features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec

from almanac.errors import FeatureError, Unavailable
from almanac.postgres_url import postgres_address
from almanac.redis_url import redis_address
from almanac.settings import Settings
from features.online_reading import LAYOUT, PLAN_TABLE, PLAN_VERSION, Plan, View, encode_plan, plan_key
from features.packed.codec import NUMBERS
from features.packed.lists import KINDS
from features.packed.views import layout_of
from features.store import REGISTRY_SCHEMA, registry_errors

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

logger = logging.getLogger(__name__)

CONNECT_SECONDS_MAX = 5
_KEY_TYPES = {"INT32": "int32", "INT64": "int64", "STRING": "string"}


def plan_of(store: FeatureStore, service: FeatureService) -> Plan:
    """The reading plan of one FeatureService.

    Raises:
        FeatureError: its views have no join key, several, or different ones, or one that is no number or text.
    """
    views, keys = [], set()
    versioned = store.config.registry.enable_online_feature_view_versioning
    for projection in service.feature_view_projections:
        view = store.get_feature_view(projection.name)
        keys |= {(column.name, column.dtype.to_value_type().name) for column in view.entity_columns}
        # A model reads numbers alone, and a ranking lists; text is for other readers.
        kinds = {found.name: found.dtype.to_value_type().name for found in projection.features}
        names = tuple(name for name, kind in kinds.items() if kind in NUMBERS)
        lists = tuple(name for name, kind in kinds.items() if kind in KINDS)
        layout = layout_of(store.project, view, versioned=versioned)
        views.append(
            View(
                name=layout.view,
                packed=layout.columns,
                features=names,
                columns=names,
                ttl_seconds=view.ttl.total_seconds() if view.ttl else None,
                observed=view.stream_source is not None,
                lists=lists or msgspec.UNSET,
            )
        )
    if len(keys) != 1:
        raise FeatureError(
            f"the views of {service.name} have {len(keys)} join keys, expected the same one: give each view one entity"
        )
    join_key, kind = keys.pop()
    if kind not in _KEY_TYPES:
        raise FeatureError(f"join key {join_key} of {service.name} is {kind}: make it INT64 or STRING")
    return Plan(
        version=PLAN_VERSION,
        layout=LAYOUT,
        service=service.name,
        project=store.project,
        join_key=join_key,
        key_type=_KEY_TYPES[kind],  # type: ignore[arg-type]
        views=tuple(views),
    )


def write_plans(store: FeatureStore, settings: Settings, services: Iterable[FeatureService] | None = None) -> list[str]:
    """Make the plans of services (default: all) and write them: to Postgres if there is one, then to Redis.

    A Redis that does not answer is left: materializing writes the plan again. A service
    that has no plan is left too, with a warning: its lookups say that there is none.

    Returns:
        Names of the services whose plans were written.

    Raises:
        Unavailable: Postgres does not answer.
    """
    plans: dict[str, bytes] = {}
    with registry_errors():
        asked = list(store.list_feature_services() if services is None else services)
    for service in asked:
        try:
            with registry_errors():
                plans[service.name] = encode_plan(plan_of(store, service))
        except FeatureError as error:
            logger.warning("lookups of %s cannot compute fresh predictions: %s", service.name, error)
    if settings.postgres_url:
        _to_postgres(settings.postgres_url, plans)
    if settings.redis_url:
        _to_redis(settings.redis_url, plans)
    return list(plans)


def _to_postgres(url: str, plans: dict[str, bytes]) -> None:
    import psycopg
    from psycopg import sql

    table = sql.Identifier(REGISTRY_SCHEMA, PLAN_TABLE)
    try:
        with psycopg.connect(postgres_address(url).url, connect_timeout=CONNECT_SECONDS_MAX) as connection:
            # One after the other: two that create the same table at once would collide in the catalogue.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('almanac.reading_plans'))")
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(REGISTRY_SCHEMA)))
            connection.execute(
                sql.SQL("CREATE TABLE IF NOT EXISTS {} (service text PRIMARY KEY, plan text NOT NULL)").format(table)
            )
            put = sql.SQL(
                "INSERT INTO {} AS held (service, plan) VALUES (%s, %s) "
                "ON CONFLICT (service) DO UPDATE SET plan = excluded.plan WHERE held.plan <> excluded.plan"
            ).format(table)
            connection.cursor().executemany(put, [(name, data.decode()) for name, data in plans.items()])
    except psycopg.OperationalError as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise Unavailable(f"Postgres did not take the reading plans ({reason}): see `almanac status`") from error


def _to_redis(url: str, plans: dict[str, bytes]) -> None:
    import redis

    seconds: Any = CONNECT_SECONDS_MAX
    address = redis_address(url).need_files()
    client = redis.Redis(**address.client(), socket_connect_timeout=seconds, socket_timeout=seconds)
    try:
        with closing(client), client.pipeline(transaction=False) as trip:
            for name, data in plans.items():
                trip.set(plan_key(name), data)
            trip.execute()
    except redis.RedisError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("Redis did not take the reading plans (%s); materializing writes them again", reason)
