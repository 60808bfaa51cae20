"""Real servers for tests: one of each a session, started when first asked for, ended with the session."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from almanac.settings import settings
from almanac.stack.servers import running_kafka, running_postgres, running_redis

if TYPE_CHECKING:
    import psycopg
    import redis

    from serving_cache.postgres import PostgresStore
    from serving_cache.redis import RedisStore

hypothesis.settings.register_profile("almanac", deadline=None)  # how long an example takes says how busy a machine is
hypothesis.settings.load_profile("almanac")

_EXIT_STATUS = pytest.StashKey[int]()
_NAME_BYTES_MAX = 24
"""Longer bytes are no name for a test: what packed them may write the time into them, and names must not differ."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their length, so that every process of one run collects tests of the same names."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) and len(val) > _NAME_BYTES_MAX else None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the session ended, for `pytest_unconfigure`."""
    session.config.stash[_EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once with the session's own status, when everything is reported and every server ended.

    One process holds the native libraries of all parts here; taking them all down at interpreter exit has ended
    in a segmentation fault after the last line of the report, which would have replaced the tests' own verdict.
    """
    if _EXIT_STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_EXIT_STATUS])


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """A directory of the session's own for the servers' files; readable by its owner alone."""
    path = Path(tempfile.mkdtemp(prefix="almanac-tests-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(server_dir: Path) -> Iterator[str]:
    """URL of a real Postgres: an empty database `almanac`, owned by the URL's role."""
    with running_postgres(server_dir / "postgres-server") as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(server_dir: Path) -> Iterator[str]:
    """URL of a real, empty Redis."""
    (server_dir / "redis-server").mkdir()
    with running_redis(server_dir / "redis-server") as url:
        yield url


@pytest.fixture(scope="session")
def kafka_bootstrap(server_dir: Path) -> Iterator[str]:
    """host:port of a real Kafka broker without topics (automatic creation is off)."""
    with running_kafka(server_dir / "kafka-server", settings().cache_dir) as address:
        yield address


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    """The generation store in Postgres, its tables made."""
    from serving_cache.migrate import migrate
    from serving_cache.postgres import PostgresStore

    migrate(postgres_url, [])
    with PostgresStore(postgres_url) as opened:
        yield opened


@pytest.fixture
def people(postgres_url: str) -> Iterator[psycopg.Connection]:
    """Somebody with psql."""
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def cache(redis_url: str) -> Iterator[RedisStore]:
    """The generation store's copy in Redis."""
    from serving_cache.redis import RedisStore

    with RedisStore(redis_url) as opened:
        yield opened


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """Somebody with redis-cli."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        yield client
