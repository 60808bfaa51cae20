"""Real servers for tests: one of each a session, started when first asked for, ended with the session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.settings import settings
from almanac.stack.servers import running_kafka, running_postgres, running_redis


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
