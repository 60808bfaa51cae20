"""The online features as a fresh computation reads them: one or two round trips to Redis, however many entities.

Not one of the places: no prediction's bytes come from here. The reading plan
comes with each read, so that definitions applied meanwhile are followed at
once; a Redis without one is helped out by the record in Postgres.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from almanac.errors import AlmanacError, FeatureError, Unavailable
from almanac.partitioning import EntityKey
from features.online_reading import LAYOUTS_KEY, PLAN_TABLE, Reader, decode_plan, layout_field, plan_key
from serving_cache.lookup.places import PlaceUnusable
from serving_cache.lookup.redis_client import redis_failures
from serving_cache.lookup.redis_link import Command, RedisLink
from serving_cache.lookup.write_back import in_own_thread

FEATURES_LIMIT_SECONDS = 0.2  # of one round trip
PLAN_ABSENT_KEPT_SECONDS = 2.0  # before the record is asked again for a plan that it did not have
REGISTRY_SCHEMA = "feast"

Row = Sequence[bytes | None]
RecordedPlan = Callable[[str], bytes | None]
"""The plan of a service as the record has it; slow, so called in a thread."""


@dataclass(frozen=True)
class Read:
    """For each entity that has a key a value of each view, as Redis gave them, and the reader that decodes them."""

    reader: Reader
    rows: dict[EntityKey, Row]


class OnlineFeatures:
    """Reads online features.

    Args:
        url: redis:// URL.
        recorded: where a plan is found that Redis lacks.
        limit_seconds: how long Redis may take to answer one of a read's round trips.

    Raises:
        UsageError: the URL cannot be read.
    """

    name = "redis"

    def __init__(self, url: str, recorded: RecordedPlan, *, limit_seconds: float = FEATURES_LIMIT_SECONDS) -> None:
        self.limit_seconds = limit_seconds
        self._recorded = recorded
        self._readers: dict[str, tuple[bytes, Reader]] = {}
        self._absent_until: dict[str, float] = {}
        self._asking: dict[str, asyncio.Future[bytes]] = {}
        self._redis = RedisLink(url, limit_seconds=limit_seconds)

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
        await self._redis.close()

    async def _read(self, service: str, entities: Sequence[EntityKey]) -> Read:
        known = self._readers.get(service)
        data, read = await self._trip(service, known[1] if known else None, entities)
        if data is None and known is None:
            data = await self._recorded_plan(service)
        if data is not None and (known is None or data != known[0]):
            reader = Reader(decode_plan(data))
            self._readers[service] = (data, reader)
            _, read = await self._trip(service, reader, entities)
        assert read is not None  # noqa: S101 - without a plan `_recorded_plan` has raised
        if unmet := read.reader.unmet([value for row in read.rows.values() for value in row]):
            [held] = await self._redis.ask(("HMGET", LAYOUTS_KEY, *(layout_field(each) for each in unmet)))
            read.reader.learn(unmet, held)
        return read

    async def _trip(
        self, service: str, reader: Reader | None, entities: Sequence[EntityKey]
    ) -> tuple[bytes | None, Read | None]:
        """The plan as Redis has it, and the rows if there is a reader."""
        asked: Sequence[EntityKey] = ()
        keys: list[bytes] = []
        if reader is not None:
            asked, keys = _keys(reader, entities)
        commands: list[Command] = [("GET", plan_key(service))]
        if keys:
            commands.append(("MGET", *keys))
        data, *found = await self._redis.ask(*commands, entities=max(len(keys), 1))
        if reader is None:
            return data, None
        values: list[bytes | None] = found[0] if found else []
        return data, Read(reader, {entity: values[at :: len(asked)] for at, entity in enumerate(asked)})

    async def _recorded_plan(self, service: str) -> bytes:
        """The plan as the record has it, asked for once for all who want it now; a caller may be cancelled."""
        asking = self._asking.get(service)
        if asking is None:
            if asyncio.get_running_loop().time() < self._absent_until.get(service, 0.0):
                raise PlaceUnusable(_no_plan(service))
            asking = self._asking[service] = asyncio.ensure_future(self._ask_record(service))
        return await asyncio.shield(asking)

    async def _ask_record(self, service: str) -> bytes:
        try:
            data = await in_own_thread(self._recorded, service)
        except Unavailable:
            raise PlaceUnusable(
                f"redis has no reading plan of {service}, and postgres cannot be asked for it"
            ) from None
        except AlmanacError:
            data = None
        finally:
            del self._asking[service]
        if data is None:
            self._absent_until[service] = asyncio.get_running_loop().time() + PLAN_ABSENT_KEPT_SECONDS
            raise PlaceUnusable(_no_plan(service))
        return data


def _no_plan(service: str) -> str:
    return f"there is no reading plan of {service}: run `almanac feast apply`"


def _keys(reader: Reader, entities: Sequence[EntityKey]) -> tuple[Sequence[EntityKey], list[bytes]]:
    """The entities that have keys, and these, a view after the other."""
    try:
        return entities, reader.keys(entities)
    except FeatureError:
        kept = [entity for entity in entities if _has_key(reader, entity)]
        return kept, reader.keys(kept)  # said of the others by the caller, who finds no row


def _has_key(reader: Reader, entity: EntityKey) -> bool:
    try:
        return bool(reader.keys([entity]))
    except FeatureError:
        return False


def recorded_plans(client: Any) -> RecordedPlan:
    """Plans from Postgres, by a `serving_cache.postgres_client.Client`."""
    from psycopg import sql

    table = sql.Identifier(REGISTRY_SCHEMA, PLAN_TABLE)

    def read(service: str) -> bytes | None:
        rows = client.query(sql.SQL("SELECT plan FROM {} WHERE service = %s").format(table), (service,))
        return rows[0][0].encode() if rows else None

    return read
