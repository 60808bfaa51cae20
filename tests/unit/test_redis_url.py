"""What a Redis URL says, and what of one is refused without showing a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from almanac.errors import UsageError
from almanac.redis_url import RedisAddress, is_url, redis_address

SECRETS = ("s3cret", "hunter")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(host="h")),
        ("redis://h:7/", RedisAddress(host="h", port=7)),
        ("redis://h:7/3", RedisAddress(host="h", port=7, db=3)),
        ("redis://h?db=3", RedisAddress(host="h", db=3)),
        ("REDIS://h:6379/3", RedisAddress(host="h", db=3)),
        ("redis://h/3?db=3", RedisAddress(host="h", db=3)),
        ("redis://:p%40%3A%2F%25%C3%A9@h", RedisAddress(host="h", password="p@:/%é")),
        ("redis://user:p+q@h", RedisAddress(host="h", username="user", password="p+q")),
        ("redis://h?username=user&password=p%26q", RedisAddress(host="h", username="user", password="p&q")),
        ("redis://[::1]:7/3", RedisAddress(host="::1", port=7, db=3)),
        ("redis://[fe80::1%25eth0]", RedisAddress(host="fe80::1%eth0")),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        ("unix://u:p@/run/a%20b.sock?db=3", RedisAddress(path="/run/a b.sock", db=3, username="u", password="p")),
    ],
)
def test_what_a_url_says_is_read(url: str, address: RedisAddress) -> None:
    assert redis_address(url) == address


def test_a_server_is_proved_unless_the_url_says_otherwise() -> None:
    def options(query: str) -> dict[str, object]:
        return redis_address(f"rediss://h{query}").tls_options or {}

    assert options("") == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert options("?ssl_ca_certs=/etc/a+b%20c.pem") == {**options(""), "ssl_ca_certs": "/etc/a+b c.pem"}
    assert options("?ssl_check_hostname=False") == {"ssl_cert_reqs": "required", "ssl_check_hostname": False}
    assert options("?ssl_cert_reqs=none") == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    files = {"ssl_certfile": "/c", "ssl_keyfile": "/k", "ssl_password": "s3cret", "ssl_ca_path": "/d"}
    query = "&".join(f"{name}={value}" for name, value in files.items())
    assert options(f"?{query}") == {**options(""), **files}


def test_the_arguments_are_those_of_a_connection_and_of_a_client() -> None:
    tls = redis_address("rediss://u:p@h:7/3?ssl_ca_certs=/ca")
    assert (tls.kind, tls.where) == ("tls", "h:7")
    own = {"host": "h", "port": 7, "db": 3, "username": "u", "password": "p"}
    assert tls.connection() == {**own, "ssl_ca_certs": "/ca", "ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert tls.client() == {**tls.connection(), "ssl": True}
    unix = redis_address("unix:///s?db=3")
    assert (unix.kind, unix.where, unix.client()) == ("unix", "/s", {"unix_socket_path": "/s", "db": 3})
    assert (redis_address("redis://[::1]").where, redis_address("redis://h").kind) == ("[::1]:6379", "tcp")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "scheme is missing"),
        ("h:6379", "scheme is missing"),
        ("hunter2:s3cret@h", "scheme is missing"),
        ("http://h", "scheme is not known"),
        ("redis+sentinel://h", "scheme is not known"),
        ("redis+cluster://h", "scheme is not known"),
        ("s3cret://h", "scheme is not known"),
        ("unix:/run/x.sock", "scheme is missing"),
        ("redis:/h", "scheme is missing"),
        ("redis://:s3cret[hunter2@h", r"percent-encode .* \[ \]"),
        ("redis://:s3cret]hunter2@h", r"percent-encode .* \[ \]"),
        ("redis://", "names no host"),
        ("redis://:hunter2@:6379", "names no host"),
        ("redis://h:0", "names no port"),
        ("redis://h:70000", "host and port are none"),
        ("redis://h:port", "host and port are none"),
        ("redis://::1:6379", "brackets"),
        ("redis://[::1", "brackets"),
        ("redis://h/3?db=4", "path says database 3 and its query 4"),
        ("redis://h/three", "database is no number"),
        ("redis://h/3/4", "database is no number"),
        ("redis://h?db=-1", "database is no number"),
        ("redis://h?db=３", "database is no number"),
        ("redis://h?db=", "db is empty"),
        ("redis://h?db=3&db=3", "db is given twice"),
        ("redis://h?databse=3", "databse is not known"),
        ("redis://h?protocol=3", "protocol is not known"),
        ("redis://h?socket_timeout=5", "socket_timeout is not taken"),
        ("redis://h?ssl=true", "write rediss://"),
        ("redis://h?ssl_ca_certs=/ca", "ssl_ca_certs is of TLS"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs is none of"),
        ("rediss://h?ssl_check_hostname=perhaps", "neither true nor false"),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "asks for none"),
        ("unix://", "names no socket"),
        ("unix://run/redis.sock", "has no host"),
        ("unix:///run/redis.sock?ssl_ca_certs=/ca", "ssl_ca_certs is of TLS"),
        ("redis://h:6379 ", "spaces"),
        ("redis://:s3cret#hunter2@h", "percent-encode"),
        ("redis://:s3cret?hunter2@h", "percent-encode"),
        ("redis://:s3cret/hunter2@h", "percent-encode"),
        ("redis://user:12?hunter2=s3cret@h", "percent-encode"),
        ("redis://user:12/s3cret@h", "percent-encode"),
        ("redis://:s3cret@h?password=hunter2", "a password before the host and another"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_no_secret_is_shown(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as error:
        redis_address(url)
    assert not any(secret in str(error.value) for secret in SECRETS)


@pytest.mark.parametrize("url", ["REDIS://h:6379/3", "Rediss://h", "UNIX:///run/x.sock", "unix:/run/x.sock", "redis:h"])
def test_what_is_taken_as_a_url_is_what_is_read_as_one(url: str) -> None:
    if is_url(url):
        assert redis_address(url).kind in ("tcp", "tls", "unix")
    else:
        with pytest.raises(UsageError, match="scheme is missing"):
            redis_address(url)
    assert is_url(url) == ("://" in url)


@given(st.text())
@example("redis://[v1.x]:6379")
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for url in (text, f"redis://{text}", f"rediss://h?{text}", f"unix://{text}"):
        said = ""
        try:
            assert redis_address(url).connection()
        except UsageError as error:
            said = str(error)
        assert "\n" not in said


def test_an_address_shows_no_secret() -> None:
    address = redis_address("rediss://user:s3cret@h?ssl_keyfile=/k&ssl_password=hunter2")
    assert not any(secret in repr(address) + str(address) for secret in SECRETS)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ssl_ca_certs .*ca\.pem cannot be read \(No such file"):
        redis_address(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem").need_files()
    (tmp_path / "ca.pem").write_text("")
    assert redis_address(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem&ssl_ca_path={tmp_path}").need_files()
