"""An online store for Feast on Redis: one packed, versioned value for each entity and feature view.

In `feature_store.yaml`, with or without the rest of this project:

    online_store:
      type: features.online_store.AlmanacOnlineStore
      connection_string: localhost:6379            # Feast's own form: host:port,…,password=…,db=…,ssl=true
                                                   # or a URL of one server: redis://, rediss:// or unix://
      redis_type: redis                            # or redis_cluster, redis_sentinel (with sentinel_master)

What Feast's Redis store does it does as well, through the same interface, and it answers the same. Beneath it lie
other bytes: see `features.packed.codec` for a value, `features.packed.keys` for its name, `features.packed.store` for
the script that writes many rows in one call, each only if it is newer than what is stored. Feast's own store reads
the stored event times and then writes, so that of two writers the older row can land last.

Rows are read with one command for all views of a request, and their values are not taken apart before somebody asks
for them (`features.online_sdk.response`). A row beyond its view's ttl has the status OUTSIDE_MAX_AGE, not PRESENT.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from hashlib import blake2b
from typing import Any, Literal

import msgspec
import redis.asyncio
from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.redis import RedisClient, RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from pydantic import field_validator, model_validator
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry

from almanac.errors import FeatureError
from almanac.redis_url import is_url, redis_address
from features.online_sdk.plan import versioned
from features.online_sdk.read import Reader, Reading, Request, Row
from features.online_sdk.write import Row as NewRow
from features.online_sdk.write import packaged
from features.packed.store import LAYOUTS_KEY, fetch, fetch_layouts, is_cluster, layout_field, layouts_of, put_if_newer
from features.packed.views import keys_of, layout_of

logger = logging.getLogger(__name__)

ADDRESS = re.compile(r"[^:/@\s]+:\d{1,5}")
REDIS_SECONDS_MAX = 5.0
"""To connect and to answer, where the connection string is a URL; Feast's own form says it itself."""
RETRIES_MAX = 2
RETRY_SECONDS_MAX = 0.2
DELETE_KEYS_MAX = 1_000  # of one trip
SCAN_COUNT = 1_000
VIEWS_KEY = "almanac:feature-views"
"""A hash: project and view, the features and types that were last applied."""


class AlmanacOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]
    """Feast's options for Redis, and what is particular here."""

    type: str = "features.online_store.AlmanacOnlineStore"

    ties_replace: bool = False
    """Whether a row of the same event time replaces the stored one in views that have a stream; in others it does."""

    expired_values: Literal["keep", "null"] = "keep"
    """Whether a row beyond its view's ttl still shows its values, as with Feast's own stores; its status says so."""

    @field_validator("client")
    @classmethod
    def _redis_py(cls, value: RedisClient) -> RedisClient:
        if value is not RedisClient.redis:
            raise ValueError(f"client {value.value} cannot be used here: leave it out, or write client: redis")
        return value

    @field_validator("connection_string")
    @classmethod
    def _addressed(cls, value: str) -> str:
        if is_url(value):
            redis_address(value)  # raises no ValueError either
            return value
        addresses = [part for part in value.split(",") if "=" not in part]
        if not addresses or not all(ADDRESS.fullmatch(address) for address in addresses):
            # No ValueError: pydantic would show the string, which may hold a password.
            raise FeatureError(
                "connection_string is neither host:port[,host:port …][,password=…][,db=…] nor a redis://, "
                "rediss:// or unix:// URL: write it so"
            )
        return value

    @model_validator(mode="after")
    def _one_server(self) -> AlmanacOnlineStoreConfig:
        if self.redis_type is not RedisType.redis and is_url(self.connection_string):
            raise FeatureError(
                f"connection_string is a URL, which names one server, and redis_type {self.redis_type.value} has "
                "several: write host:port,host:port,…"
            )
        return self

    @field_validator("key_ttl_seconds")
    @classmethod
    def _some_time(cls, value: int | None) -> int | None:
        if value is not None and value <= 0:
            raise ValueError("key_ttl_seconds must be above 0: leave it out where rows are to be kept")
        return value

    @field_validator("skip_dedup")
    @classmethod
    def _newer_wins(cls, value: bool) -> bool:
        if value:
            raise ValueError("skip_dedup cannot be used here: newer rows always win, at no cost; leave it out")
        return value


class AlmanacOnlineStore(RedisOnlineStore):  # type: ignore[misc]
    """Feast's `OnlineStore` over packed values in Redis, Redis Cluster or Redis behind Sentinel."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open_async: AsyncGenerator[None, None] | None = None
        self._threads = threading.local()

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reading is awaited. A write first makes its rows, which would hold up a server's loop: it takes a thread."""
        return SupportedAsyncMethods(read=True, write=False)

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[NewRow], progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows, each only if its entity's stored row of this view is older.

        Raises:
            FeatureError: a row does not fit the view, or a stored one is of a newer version; says which.
        """
        if not data:
            return
        options = config.online_store
        replace = bool(options.ties_replace or getattr(table, "stream_source", None) is None)
        rows = packaged(config, table, data, options.ties_replace)
        client = self._get_client(options)
        _need_current(client, config, table)
        put_if_newer(
            client, rows.layout, rows.keys, rows.values, ties_replace=replace,
            expire_seconds=options.key_ttl_seconds,
        )  # fmt: skip
        if progress:
            progress(len(data))

    async def online_write_batch_async(self, *asked: Any, **named: Any) -> None:
        """The same in a thread."""
        await asyncio.to_thread(self.online_write_batch, *asked, **named)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Row]:
        """Event time and values of each entity's row, or two Nones.

        Raises:
            FeatureError: a row is damaged, or of a newer version.
        """
        found: list[Row] = self._wait(config, self._reader.rows(config, table, entity_keys, requested_features))
        return found

    async def online_read_async(
        self, config: RepoConfig, table: FeatureView, entity_keys: list[EntityKey], requested_features: Any = None
    ) -> list[Row]:
        """The same, awaited."""
        reading = self._reader.rows(config, table, entity_keys, requested_features)
        found: list[Row] = await self._await(config, reading)
        return found

    def get_online_features(self, config: RepoConfig, *asked: Any, **named: Any) -> OnlineResponse:
        """The features of some entities; the arguments are those of `features.online_sdk.read.Request`.

        Raises:
            FeatureError: a row is damaged or of a newer version, or an entity row lacks a join key.
            Exception: as Feast says what is wrong with a request.
        """
        return self._wait(config, self._reader.get_online_features(Request(config, *asked, **named)))

    async def get_online_features_async(self, config: RepoConfig, *asked: Any, **named: Any) -> OnlineResponse:
        """The same, awaited."""
        return await self._await(config, self._reader.get_online_features(Request(config, *asked, **named)))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Note what views are like now, and remove the rows of those that are no longer there.

        Definitions can be applied while Redis is away, unless there is something to remove.

        Raises:
            redis.RedisError: Redis does not answer, and rows are to be removed.
        """
        noted = dict(_noted(config, table) for table in tables_to_keep)
        if noted:
            try:
                self._get_client(config.online_store).hset(VIEWS_KEY, mapping=noted)
            except (ConnectionError, TimeoutError):
                logger.warning("Redis does not answer: who writes by an older definition of a view is not refused")
        if config.online_store.full_scan_for_deletion:
            for table in tables_to_delete:
                self.delete_table(config, table)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove the rows of these views."""
        for table in tables:
            self.delete_table(config, table)

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Remove a view's rows; those of its other versions stay."""
        client = self._get_client(config.online_store)
        client.hdel(VIEWS_KEY, _noted(config, table)[0])
        pattern = keys_of(config.project, table, versioned=versioned(config)).pattern
        held: list[bytes] = []
        for key in client.scan_iter(match=pattern, count=SCAN_COUNT):
            held.append(key)
            if len(held) >= DELETE_KEYS_MAX:
                _delete(client, held)
                held = []
        _delete(client, held)

    async def close(self) -> None:
        """Close the connections of awaited reads."""
        self.__dict__.pop("_client_async", None)
        opened, self._open_async = self._open_async, None
        if opened is not None and self._loop is asyncio.get_running_loop():
            await opened.aclose()

    def _get_client(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        held: Any = getattr(self, "_client", None)
        fresh = held is None
        if fresh and is_url(online_store_config.connection_string):
            self._client = redis.Redis(**_arguments(online_store_config.connection_string))
        client = super()._get_client(online_store_config)
        if fresh:  # redis-py itself would try for some ten seconds; who calls decides how to wait
            client.set_retry(Retry(ExponentialBackoff(cap=RETRY_SECONDS_MAX, base=RETRY_SECONDS_MAX / 4), RETRIES_MAX))
        return client

    async def _get_client_async(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections belong to the loop that opened them
            self._loop, self._client_async, self._open_async = loop, None, None
        if self._client_async is None and is_url(online_store_config.connection_string):
            backoff = ExponentialBackoff(cap=RETRY_SECONDS_MAX, base=RETRY_SECONDS_MAX / 4)
            self._client_async = redis.asyncio.Redis(
                **_arguments(online_store_config.connection_string), retry=AsyncRetry(backoff, RETRIES_MAX)
            )
        client = await super()._get_client_async(online_store_config)
        if self._open_async is None:
            self._open_async = _open_while_its_loop_runs(client)
            await anext(self._open_async)
        return client

    def _reading_client(self, options: RedisOnlineStoreConfig) -> Any:
        """A client that keeps one connection for this thread: taking one from the pool would cost as much as reading.

        Behind Sentinel and in a cluster the pool decides where to read.
        """
        if options.redis_type is not RedisType.redis:
            return self._get_client(options)
        held = getattr(self._threads, "held", None)
        if held is None or held[0] != os.getpid():
            held = self._threads.held = (os.getpid(), self._get_client(options).client())
        return held[1]

    def _wait(self, config: RepoConfig, reading: Reading) -> Any:
        client = self._reading_client(config.online_store)
        try:
            asked = next(reading)
            while True:
                found = fetch_layouts(client, asked) if isinstance(asked, set) else fetch(client, asked)
                asked = reading.send(found)
        except StopIteration as end:
            return end.value

    async def _await(self, config: RepoConfig, reading: Reading) -> Any:
        client = await self._get_client_async(config.online_store)
        try:
            asked = next(reading)
            while True:
                asked = reading.send(await _awaited(client, asked))
        except StopIteration as end:
            return end.value


async def _open_while_its_loop_runs(client: Any) -> AsyncGenerator[None, None]:
    """A generator that closes a client when it is closed, which a loop that ends does with every one (PEP 525)."""
    try:
        yield
    finally:
        sentinels = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
        for each in (client, *(sentinels.sentinels if sentinels is not None else ())):
            await each.aclose()


def _arguments(url: str) -> dict[str, Any]:
    """Of a client for a URL."""
    limits = {"socket_timeout": REDIS_SECONDS_MAX, "socket_connect_timeout": REDIS_SECONDS_MAX}
    return {**redis_address(url).need_files().client(), **limits}


def _noted(config: RepoConfig, table: FeatureView) -> tuple[str, str]:
    """What a view is noted by, and a name for its features and their types, in whatever order they stand.

    Join keys are none of them: of a stream view Feast's registry gives them among the features, its `apply` does not.
    """
    layout = layout_of(config.project, table, versioned=versioned(config))
    join_keys = {column.name for column in table.entity_columns}
    columns = sorted((column.name, column.type) for column in layout.columns if column.name not in join_keys)
    digest = blake2b(msgspec.json.encode(columns), digest_size=8).hexdigest()
    return f"{layout.project}:{layout.view}", digest


def _need_current(client: Any, config: RepoConfig, table: FeatureView) -> None:
    """Refuse rows made by another definition of their view than the one that was last applied.

    Raises:
        FeatureError: says which view.
    """
    name, made_by = _noted(config, table)
    applied = client.hget(VIEWS_KEY, name)
    if applied is not None and applied.decode() != made_by:
        raise FeatureError(
            f"view {table.name} was changed since this process read its definition: refresh the registry, or start it "
            "again"
        )


async def _awaited(client: Any, asked: list[bytes] | set[int]) -> Any:
    if isinstance(asked, set):
        wanted = sorted(asked)
        return layouts_of(wanted, await client.hmget(LAYOUTS_KEY, [layout_field(found) for found in wanted]))
    if not asked:
        return []
    if hasattr(client, "mget_nonatomic"):
        return await client.mget_nonatomic(asked)
    return await client.execute_command("MGET", *asked)


def _delete(client: Any, keys: Sequence[bytes]) -> None:
    if not keys:
        return
    if is_cluster(client):
        with client.pipeline() as trip:
            for key in keys:
                trip.unlink(key)
            trip.execute()
    else:
        client.unlink(*keys)
