"""What an answer of Redis that did not come, or that is an error, means to the lookup service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from serving_cache.lookup.places import PlaceDown, PlaceUnusable


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
