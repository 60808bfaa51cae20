"""One Redis URL means one Redis to all that open it: cache, lookup, online features and Feast's store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from almanac.errors import AlmanacError, Unavailable, UsageError
from almanac.settings import load_settings
from almanac.stack import redis as stack_redis
from features.online import open_redis
from features.online_store import AlmanacOnlineStore, AlmanacOnlineStoreConfig
from features.reading_plans import _to_redis
from features.store import feature_store
from serving_cache.lookup.places import PlaceDown
from serving_cache.lookup.redis_link import RedisLink
from serving_cache.redis import RedisStore
from tests.redises import running_apart
from tests.tls import tls_before, write_certificates

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Feast's own imports

KEY = "which"


def by_cache(url: str) -> Any:
    with RedisStore(url) as cache:
        return cache._redis.get(KEY)


def by_lookup(url: str) -> Any:
    async def asked() -> Any:
        link = RedisLink(url, limit_seconds=5)
        try:
            [value] = await link.ask(("GET", KEY))
            return value
        except PlaceDown as error:  # callers are told less than the log
            raise Unavailable(error.detail) from None
        finally:
            await link.close()

    return asyncio.run(asked())


def by_features(url: str) -> Any:
    with open_redis(url) as client:
        return client.get(KEY)


def by_feast(url: str) -> Any:
    store = AlmanacOnlineStore()
    client = store._get_client(AlmanacOnlineStoreConfig(connection_string=url))
    try:
        return client.get(KEY)
    finally:
        client.close()


def by_feast_awaited(url: str) -> Any:
    async def asked() -> Any:
        store = AlmanacOnlineStore()
        client = await store._get_client_async(AlmanacOnlineStoreConfig(connection_string=url))
        try:
            return await client.get(KEY)
        finally:
            await store.close()

    return asyncio.run(asked())


DOORS = [by_cache, by_lookup, by_features, by_feast, by_feast_awaited]
Door = Callable[[str], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("redis-urls")
    for name in ("ours", "foreign"):
        write_certificates(made, name)
    return made


@pytest.fixture(scope="module")
def apart(folder: Path) -> Iterator[tuple[int, Path]]:
    """A Redis with a password of awkward characters, on a port and a socket, that says in each database which it is."""
    with running_apart(folder, password="p@/:?#%é", user="teller") as (port, socket):
        for number in (0, 3):
            with redis.Redis(port=port, db=number, username="teller", password="p@/:?#%é") as client:
                client.set(KEY, f"database {number}")
        yield port, socket


USER = "teller:p%40%2F%3A%3F%23%25%C3%A9@"


@pytest.mark.parametrize("door", DOORS)
def test_a_database_in_path_or_query_and_an_encoded_password_are_honoured(door: Door, apart: tuple[int, Path]) -> None:
    for rest, number in (("?db=3", 3), ("/3", 3), ("/3?db=3", 3), ("", 0)):
        assert door(f"redis://{USER}127.0.0.1:{apart[0]}{rest}") == b"database %d" % number


@pytest.mark.parametrize("door", DOORS)
def test_a_socket_and_an_ipv6_address_are_honoured(door: Door, apart: tuple[int, Path]) -> None:
    port, socket = apart
    assert door(f"unix://{USER}{socket}?db=3") == b"database 3"
    with tls_before(port, None, host="::1") as before:
        assert door(f"redis://{USER}[::1]:{before}/3") == b"database 3"


@pytest.mark.parametrize("door", DOORS)
def test_a_server_is_proved_by_the_authority_and_the_name_that_the_url_says(
    door: Door, apart: tuple[int, Path], folder: Path
) -> None:
    with tls_before(apart[0], folder / "ours-server.pem") as port:

        def url(host: str, query: str) -> str:
            return f"rediss://{USER}{host}:{port}?db=3&{query}"

        ours = f"ssl_ca_certs={folder}/ours-ca.pem"
        assert door(url("localhost", ours)) == b"database 3"
        assert door(url("127.0.0.1", f"{ours}&ssl_check_hostname=false")) == b"database 3"
        assert door(url("127.0.0.1", "ssl_cert_reqs=none")) == b"database 3"
        for refused in (
            url("localhost", f"ssl_ca_certs={folder}/foreign-ca.pem"),
            url("localhost", "ssl_check_hostname=true"),  # this machine's authorities do not know it
            url("127.0.0.1", ours),  # the certificate is of another name
        ):
            with pytest.raises((AlmanacError, redis.RedisError), match="certificate verify failed"):
                door(refused)
        with pytest.raises(UsageError, match=r"no-ca\.pem cannot be read"):
            door(url("localhost", f"ssl_ca_certs={folder}/no-ca.pem"))


def test_feasts_configuration_status_and_reading_plans_mean_the_same_redis(
    apart: tuple[int, Path], folder: Path
) -> None:
    with tls_before(apart[0], folder / "ours-server.pem") as port:
        url = f"rediss://{USER}localhost:{port}/3?ssl_ca_certs={folder}/ours-ca.pem"
        settings = load_settings(redis_url=url, postgres_url=None, state_dir=folder / "state")
        store = feature_store(settings, create=True)
        assert store.config.online_store.connection_string == url
        assert by_feast(store.config.online_store.connection_string) == b"database 3"
        assert stack_redis.why_not(url) is None
        assert "certificate verify failed" in str(stack_redis.why_not(url.replace("ours-ca", "foreign-ca")))
        assert "no-ca.pem cannot be read" in str(stack_redis.why_not(url.replace("ours-ca", "no-ca")))
        _to_redis(url, {"tested": b"plan"})
        with redis.Redis(port=apart[0], db=3, username="teller", password="p@/:?#%é") as client:
            assert client.keys("*tested")
