"""Addresses of Redis and Postgres, as settings take them."""

from __future__ import annotations

from collections.abc import Callable

from almanac.postgres_url import postgres_address
from almanac.redis_url import redis_address
from tests.compatibility.tables import Case, Converted, Table, Taken, cell


def case(url: str, where: Callable[[str], str]) -> Case:
    """A URL; the cell says the place that it names."""

    def attempt() -> Taken | Converted:
        return Taken(cell(where(url)))

    return Case(cell(url), attempt)


def of_redis(url: str) -> str:
    """Kind of connection, place and database."""
    address = redis_address(url)
    return f"{address.kind} {address.where}, database {address.db}"


def of_postgres(url: str) -> str:
    """Place and database."""
    return postgres_address(url).where


REDIS = (
    "redis://h", "redis://h:7/3", "REDIS://h?db=3", "redis://user:p+q@h", "redis://:p%40@h", "redis://[::1]:7/3",
    "rediss://h?ssl_ca_certs=/ca.pem", "rediss://h?ssl_cert_reqs=none", "unix:///run/redis.sock?db=3",
    "redis://h/3?db=4", "redis://h?protocol=3", "redis://h:70000", "redis://h/x", "valkey://h", "http://h", "h:6379",
    "redis+sentinel://h", "redis://", "",
)  # fmt: skip
POSTGRES = (
    "postgresql://u:p@h/db", "postgres://u:p@h/d%20b", "postgresql://u:p@h1:5432,h2:5433/db", "postgresql://u:p@[::1]/db",
    "postgresql:///db?host=/var/run/pg", "host=h dbname=db user=u", "postgresql://h/db?sslmode=verify-full",
    "postgresql+psycopg://u:p@h/db", "postgresql://u:p@h:0/db", "postgresql://u:p@h/db?nonsense=1", "mysql://h/db",
)  # fmt: skip

TABLE = Table(
    given="address",
    cases=(*(case(url, of_redis) for url in REDIS), *(case(url, of_postgres) for url in POSTGRES)),
)
