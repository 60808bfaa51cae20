"""How the lookup service opens Redis, and what an answer that did not come means to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from almanac.redis_url import redis_address
from serving_cache.lookup.places import PlaceDown, PlaceUnusable

SOCKET_SECONDS_MAX = 1.0
"""The callers keep shorter limits; this ends what they gave up on."""
_CLASSES = {"tcp": Connection, "tls": SSLConnection, "unix": UnixDomainSocketConnection}
RETRIES_MAX = 1  # a pooled connection may have died with the server that made it


def open_redis(url: str, *, connections_max: int, wait_seconds: float) -> Redis:
    """A client over a pool of its own; nothing is connected yet.

    Args:
        url: redis:// URL.
        connections_max: open at once; who finds none free waits.
        wait_seconds: for a free connection.

    Raises:
        UsageError: the URL cannot be read.
    """
    address = redis_address(url).need_files()
    pool = BlockingConnectionPool(
        connection_class=_CLASSES[address.kind],
        **address.connection(),
        max_connections=connections_max,
        timeout=wait_seconds,
        socket_timeout=SOCKET_SECONDS_MAX,
        socket_connect_timeout=SOCKET_SECONDS_MAX,
        retry=Retry(NoBackoff(), RETRIES_MAX),
        protocol=2,
    )
    return Redis(connection_pool=pool)


@contextmanager
def redis_failures() -> Iterator[None]:
    """What the client raises, in the lookup's terms.

    Raises:
        PlaceDown: Redis cannot be reached.
        PlaceUnusable: it answered with an error.
    """
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError):
        raise PlaceDown("redis cannot be reached") from None
    except RedisError as error:
        raise PlaceUnusable(f"redis answered with an error ({type(error).__name__})") from None
