"""The online features as a fresh computation reads them: one or two round trips to Redis, however many entities.

Not one of the places: no prediction's bytes come from here. The reading plan
comes with each read, so that definitions applied meanwhile are followed at
once; a Redis without one is helped out by the record in Postgres.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from almanac.errors import AlmanacError, FeatureError
from almanac.partitioning import EntityKey
from features.online_reading import PLAN_TABLE, Reader, decode_plan, plan_key
from serving_cache.lookup.places import PlaceUnusable
from serving_cache.lookup.redis_client import open_redis, redis_failures
from serving_cache.lookup.write_back import in_own_thread

FEATURES_LIMIT_SECONDS = 0.2
CONNECTIONS_MAX = 16
PLAN_ABSENT_KEPT_SECONDS = 2.0  # before the record is asked again for a plan that it did not have
REGISTRY_SCHEMA = "feast"

Row = Sequence[bytes | None]
RecordedPlan = Callable[[str], bytes | None]
"""The plan of a service as the record has it; slow, so called in a thread."""


@dataclass(frozen=True)
class Read:
    """Rows as Redis gave them, a row for each entity that has a key, and the reader that can decode them."""

    reader: Reader
    rows: dict[EntityKey, Row]


class OnlineFeatures:
    """Reads online features.

    Args:
        url: redis:// URL.
        recorded: where a plan is found that Redis lacks.
        limit_seconds: how long one read may take in all.

    Raises:
        UsageError: the URL cannot be read.
    """

    name = "redis"

    def __init__(self, url: str, recorded: RecordedPlan, *, limit_seconds: float = FEATURES_LIMIT_SECONDS) -> None:
        self.limit_seconds = limit_seconds
        self._recorded = recorded
        self._readers: dict[str, tuple[bytes, Reader]] = {}
        self._absent_until: dict[str, float] = {}
        self._redis = open_redis(url, connections_max=CONNECTIONS_MAX, wait_seconds=limit_seconds)

    async def read(self, service: str, entities: Sequence[EntityKey]) -> Read:
        """The features of these entities; one whose key this plan cannot have is left out.

        Raises:
            PlaceDown: Redis cannot be reached.
            PlaceUnusable: there is no plan, or none that this process can read; Redis answered with an error.
        """
        try:
            with redis_failures():
                return await self._read(service, entities)
        except FeatureError as error:
            raise PlaceUnusable(str(error)) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose(close_connection_pool=True)

    async def _read(self, service: str, entities: Sequence[EntityKey]) -> Read:
        known = self._readers.get(service)
        data, rows = await self._trip(service, known[1] if known else None, entities)
        if data is None and known is None:
            data = await self._recorded_plan(service)
        if data is None or (known is not None and data == known[0]):
            assert known is not None  # noqa: S101 - without a plan `_recorded_plan` has raised
            return Read(known[1], rows)
        reader = Reader(decode_plan(data))
        self._readers[service] = (data, reader)
        _, rows = await self._trip(service, reader, entities)
        return Read(reader, rows)

    async def _trip(
        self, service: str, reader: Reader | None, entities: Sequence[EntityKey]
    ) -> tuple[bytes | None, dict[EntityKey, Row]]:
        """The plan as Redis has it, and the rows if there is a reader."""
        keys: dict[EntityKey, bytes] = {}
        if reader is not None:
            for entity in entities:
                try:
                    keys[entity] = reader.key(entity)
                except FeatureError:
                    continue  # said of this one entity by the caller, who finds no row
        async with self._redis.pipeline(transaction=False) as trip:
            trip.get(plan_key(service))
            for key in keys.values():
                trip.hmget(key, list(reader.fields) if reader else [])  # type: ignore[arg-type]  # keys are bytes
            data, *rows = await trip.execute()
        return data, dict(zip(keys, rows, strict=True))

    async def _recorded_plan(self, service: str) -> bytes:
        loop = asyncio.get_running_loop()
        data = None
        if loop.time() >= self._absent_until.get(service, 0.0):
            self._absent_until[service] = loop.time() + PLAN_ABSENT_KEPT_SECONDS
            with suppress(AlmanacError):
                data = await in_own_thread(self._recorded, service)
        if data is None:
            raise PlaceUnusable(f"there is no reading plan of {service}: run `almanac feast apply`")
        return data


def recorded_plans(client: Any) -> RecordedPlan:
    """Plans from Postgres, by a `serving_cache.postgres_client.Client`."""
    from psycopg import sql

    table = sql.Identifier(REGISTRY_SCHEMA, PLAN_TABLE)

    def read(service: str) -> bytes | None:
        rows = client.query(sql.SQL("SELECT plan FROM {} WHERE service = %s").format(table), (service,))
        return rows[0][0].encode() if rows else None

    return read
