"""What a Postgres URL says, what is refused without showing a secret, and what `almanac status` shows of URLs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import UsageError
from almanac.postgres_url import postgres_address
from almanac.settings import load_settings
from almanac.stack import postgres
from almanac.stack.health import public_address
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
    for read in (postgres_address, described, with_limits):
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
