"""What a Postgres URL says to each that reads it, what is refused, and what `almanac status` shows: never a secret."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import URL, create_engine

from almanac.errors import UsageError
from almanac.postgres_url import postgres_address
from almanac.settings import load_settings
from almanac.stack import postgres
from almanac.stack.airflow import database_url
from almanac.stack.health import public_address
from features.offline.postgres import address
from features.store import REGISTRY_SCHEMA, registry_url
from serving_cache.backup import environment_of
from serving_cache.postgres_client import described, with_limits

SECRETS = ("s3cret", "hunter", "12")


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://u:p%40%2F+q@h:5432/db?sslrootcert=/etc/a+b.pem", "h:5432/db"),
        ("postgresql://u@h/db", "h:5432/db"),
        ("postgresql://u:p#q?r[s]@h/db", "h:5432/db"),
        ("postgresql:///db?host=/var/run/pg", "/var/run/pg:5432/db"),
        ("postgresql://u:p@%2Fvar%2Frun%2Fpg:5433/db", "/var/run/pg:5433/db"),
        ("postgresql://u:p@h1:5432,h2:5433/db", "h1,h2:5432,5433/db"),
        ("postgresql://u:p@h1,h2/db", "h1,h2:5432,5432/db"),
        ("postgresql://u:p@[::1]:5432/db", "[::1]:5432/db"),
        ("postgresql://h/db?user=u&password=p%26q%40", "h:5432/db"),
        ("postgresql://u:p@h?dbname=db", "h:5432/db"),
        ("postgres://u:p@h/d%20b", "h:5432/d b"),
        ("host=h dbname=db user=u password=p@q", "h:5432/db"),
        ("postgresql:///", "localhost:5432/"),
    ],
)
def test_a_url_is_shown_by_its_place(url: str, where: str) -> None:
    assert described(url) == postgres_address(url).where == where
    assert public_address(load_settings(postgres_url=url), "postgres") == f"postgresql://{where}"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://u:hunter2@s3cret@h/db", "an '@' more"),
        ("postgresql://u:12/s3cret@h/db", "an '@' more"),
        ("postgresql://u:hunter2/s3cret@h/db", "an '@' more"),
        ("postgresql://u:12/x?application_name=s3cret@h/db", "an '@' more"),
        ("postgresql://u:hunter2@h/s3cret%40", "host or database has an '@'"),
        ("postgresql://u:p@h:s3cret/db", "port is no number"),
        ("postgresql://u:p@h:70000/db", "port is no number"),
        ("postgresql://u:p@h:0/db", "port is no number"),
        ("postgresql://u:p@h1:1,h2:s3cret/db", "port is no number"),
        ("postgresql://u:p@h1,h2/db?port=1,3,4", "3 ports for 2 hosts"),
        ("postgresql://u:p@[s3cret/db", "give postgresql://"),
        ("POSTGRES://u:s3cret@h/db", "give postgresql://"),
        ("postgresql+psycopg://u:s3cret@h/db", "give postgresql://"),
        ("http://u:s3cret@h/db", "give postgresql://"),
        ("s3cret://h", "give postgresql://"),
        ("postgresql://u:hunter2@h/db?s3cret=require", "parameters that libpq knows"),
        ("postgresql://u:s3cret%zz@h/db", "give postgresql://"),
        ("host=h password=s3cret hunter2", "give postgresql://"),
        ("s3cret", "give postgresql://"),
    ],
)
def test_what_cannot_be_read_surely_is_refused_and_no_secret_is_shown(url: str, why: str) -> None:
    readers: tuple[Callable[[str], object], ...] = (
        postgres_address, described, with_limits, registry_url, database_url, environment_of,
    )  # fmt: skip
    for read in readers:
        with pytest.raises(UsageError, match=why) as error:
            read(url)
        assert not any(secret in str(error.value) for secret in SECRETS)
    assert public_address(load_settings(postgres_url=url), "postgres") == "postgresql://…"
    reason = postgres.why_not(url)
    assert reason
    assert reason.startswith("the Postgres URL cannot be read")
    assert not any(secret in reason for secret in SECRETS)


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for url in (text, f"postgresql://{text}", f"postgresql://u:p@h/db?{text}"):
        said = ""
        try:
            assert postgres_address(url).where
        except UsageError as error:
            said = str(error)
        assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "setting", "value", "shown"),
    [
        ("redis", "redis_url", "redis://user:12/s3cret@h", "redis://…"),
        ("redis", "redis_url", "user:s3cret@h:6379", "redis://…"),
        ("redis", "redis_url", "s3cretpw://h", "redis://…"),
        ("redis", "redis_url", "REDIS://:s3cret@h:7/3", "redis://h:7/3"),
        ("redis", "redis_url", "rediss://:s3cret@[::1]?db=3", "rediss://[::1]:6379/3"),
        ("redis", "redis_url", "unix://u:s3cret@/run/x.sock", "unix:///run/x.sock"),
        ("lookup", "lookup_url", "http://user:s3cret@h:80/base", "http://h:80/base"),
        ("lookup", "lookup_url", "http://user:12/s3cret@h", "http://…"),
        ("airflow-api-server", "airflow_url", "http://user:s3cret/@h", "http://…"),
        ("airflow-api-server", "airflow_url", "s3cret://h", "http://…"),
        ("kafka", "kafka_bootstrap", "h1:9092,h2:9092", "h1:9092,h2:9092"),
        ("kafka", "kafka_bootstrap", "user:s3cret@h:9092", "…"),
    ],
)
def test_status_shows_no_password(name: str, setting: str, value: str, shown: str) -> None:
    assert public_address(load_settings().model_copy(update={setting: value}), name) == shown


def arguments(url: str | URL) -> dict[str, str]:
    """What SQLAlchemy's driver is given."""
    engine = create_engine(url)
    _, found = engine.dialect.create_connect_args(engine.url)
    return {name: str(value) for name, value in found.items() if name != "context"}


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("postgresql://u:p@h:5432/db", {}),
        ("postgresql://u:p%40%2F+q@h:5432/db?sslrootcert=/etc/a+b.pem", {}),
        ("postgresql://u:p%20q%27%25$x@h/db?sslrootcert=/etc/a%20b%26c", {}),
        ("postgresql://u@h/db", {}),
        ("postgresql:///db?host=/var/run/pg", {}),
        ("postgresql://%2Fvar%2Frun%2Fpg/db", {}),
        ("postgresql://u:p@%2Fvar%2Frun%2Fpg:5433/db", {}),
        ("postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write", {}),
        ("postgresql://u:p@h1,h2/db", {"port": "5432,5432"}),
        ("postgresql://u:p@h1,h2:5433/db", {"port": "5432,5433"}),
        ("postgresql:///db?host=/a,/b&port=5433", {"port": "5433,5433"}),
        ("postgresql:///db?hostaddr=::1", {}),
        ("postgresql://:5433/db", {}),
        ("postgresql://u:p@[::1]:5432/db?sslmode=require", {}),
        ("postgresql://u:p@[fe80::1%25eth0]/db", {}),
        ("postgresql://u:p@h/db?options=-csearch_path%3Dx", {}),
        ("postgresql://u:p@h/d%20b%3F%23%2F", {}),
        ("postgresql://h/db?user=u&password=p%26q", {}),
        ("postgresql://h/db?password=p", {}),
        ("postgresql://u:p@h?dbname=db", {}),
        ("postgres://u:p@h/db", {}),
        ("host=h dbname=db user=u password=p", {}),
        ("postgresql://h/db?service=s", {}),
    ],
)
def test_every_reader_gives_its_driver_what_libpq_reads(url: str, changed: dict[str, str]) -> None:
    said = {name: str(value) for name, value in conninfo_to_dict(url).items()} | changed
    assert arguments(postgres_address(url).engine_url("psycopg")) == said
    assert arguments(database_url(url)) == said | {"dbname": "airflow"}
    options = f"{said.get('options', '')} -csearch_path={REGISTRY_SCHEMA}".strip()
    assert arguments(registry_url(url)) == said | {"options": options, "connect_timeout": "5"}


def test_a_limit_of_the_url_goes_before_the_registrys() -> None:
    assert arguments(registry_url("postgresql://h/db?connect_timeout=9"))["connect_timeout"] == "9"


@pytest.mark.parametrize("url", ["postgresql://u:s3cret@h/airflow", "postgresql://airflow:s3cret@h", "dbname=airflow"])
def test_airflows_tables_never_go_into_the_records_database(url: str) -> None:
    with pytest.raises(UsageError, match="is Airflow's own: name another") as error:
        database_url(url)
    assert "s3cret" not in str(error.value)


def test_what_airflows_driver_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="has min_protocol_version, which Airflow's driver psycopg2 does not know"):
        database_url("postgresql://h/db?min_protocol_version=3.2")


def test_postgres_programs_are_given_all_that_says_which_server() -> None:
    url = "postgresql://u:p%40@h1:1,h2:2/db?target_session_attrs=primary&sslcert=/c&hostaddr=::1,::2&connect_timeout=99"
    wanted = {
        "PGUSER": "u", "PGPASSWORD": "p@", "PGHOST": "h1,h2", "PGPORT": "1,2", "PGDATABASE": "db", "PGSSLCERT": "/c",
        "PGTARGETSESSIONATTRS": "primary", "PGHOSTADDR": "::1,::2",
        "PGCONNECT_TIMEOUT": str(postgres.CONNECT_SECONDS_MAX),
    }  # fmt: skip
    found = environment_of(url)
    assert {name: value for name, value in found.items() if name.startswith("PG")} == wanted


@dataclass
class Offline:
    """A configuration of the offline store."""

    host: str | None
    port: int = 5433
    database: str | None = "d b"
    db_schema: str = "public"
    user: str | None = "u@v"
    password: str | None = "p/q"
    sslmode: str | None = None
    sslkey_path: str | None = None
    sslcert_path: str | None = None
    sslrootcert_path: str | None = None


@pytest.mark.parametrize("host", ["h", "/var/run/a b", "::1", "h1,h2", "h@i/x?y"])
def test_the_host_of_an_offline_store_reaches_libpq_as_it_is(host: str) -> None:
    said = conninfo_to_dict(address(Offline(host=host)))
    wanted = {"host": host, "port": "5433", "dbname": "d b", "user": "u@v", "password": "p/q"}
    assert {name: said[name] for name in wanted} == wanted
