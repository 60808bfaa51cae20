"""What a Redis URL says: one reader for all that open Redis, so that each of them honours the same. Pure, but for
`need_files`.

    redis://[user:password@]host[:port][/database][?db=database]
    rediss://…?ssl_ca_certs=/path/ca.pem&ssl_check_hostname=true     the same through TLS
    unix://[user:password@]/path/of/the/socket[?db=database]

An IPv6 address stands in brackets, and what has a meaning in a URL is percent-encoded: `%40` for `@`. What cannot be
honoured is refused with the reason; no message shows user, password or anything that may be a part of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from almanac.errors import UsageError

PORT = 6379
SCHEMES = ("redis", "rediss", "unix")
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
"""Parameters that name a file, the last one a folder."""
TLS_TEXTS = (*FILES, "ssl_password", "ssl_ciphers")
TLS_PARAMETERS = (*TLS_TEXTS, "ssl_cert_reqs", "ssl_check_hostname")
PARAMETERS = ("db", "username", "password", *TLS_PARAMETERS)
OURS = ("socket_timeout", "socket_connect_timeout", "timeout", "max_connections", "retry_on_timeout", "retry_on_error")
"""Parameters that redis-py takes and that every program of ours sets as its guarantees need it."""

_DATABASE = re.compile(r"[0-9]{1,5}", re.ASCII)
_NAME = re.compile(r"[a-z][a-z_]{0,39}", re.ASCII)
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_FORM = "give redis://user:password@host:port/database, rediss://… or unix:///path/of/the/socket"
_ENCODE = "percent-encode what a user or password holds of @ / ? # [ ] and %"


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """Where a Redis is, and how to be let in.

    Args:
        host, port: of a server; host without brackets; None of a socket.
        path: of a Unix socket; None of a server.
        db: number of the database.
        tls: `rediss://`, by the parameters of redis-py in `tls_options`; None where it is not encrypted.
    """

    host: str | None = None
    port: int = PORT
    path: str | None = None
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls_options: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def kind(self) -> Literal["tcp", "tls", "unix"]:
        """How it is reached."""
        return "unix" if self.path is not None else "tcp" if self.tls_options is None else "tls"

    @property
    def where(self) -> str:
        """For messages: host:port, or the socket's path."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if self.host and ":" in self.host else f"{self.host}:{self.port}"

    def connection(self) -> dict[str, Any]:
        """Arguments of a connection of redis-py, whose class goes by `kind`."""
        place = {"path": self.path} if self.path is not None else {"host": self.host, "port": self.port}
        own = {"username": self.username, "password": self.password}
        return {
            **place,
            "db": self.db,
            **{name: value for name, value in own.items() if value is not None},
            **(self.tls_options or {}),
        }

    def client(self) -> dict[str, Any]:
        """Arguments of `redis.Redis` or `redis.asyncio.Redis`."""
        found = self.connection()
        if self.path is not None:
            found["unix_socket_path"] = found.pop("path")
        return {**found, "ssl": True} if self.kind == "tls" else found

    def need_files(self) -> RedisAddress:
        """Itself, once the files that it names are there.

        Raises:
            UsageError: one of them is not, or cannot be read; says which.
        """
        for name in FILES:
            named = (self.tls_options or {}).get(name)
            if named is None:
                continue
            try:
                if name == "ssl_ca_path":
                    next(Path(named).iterdir(), None)
                else:
                    Path(named).open("rb").close()
            except OSError as error:
                raise UsageError(
                    f"the Redis URL's {name} {named} cannot be read ({error.strerror}): put the file there, or "
                    "correct the URL"
                ) from None
        return self


def is_url(text: str) -> bool:
    """Whether this is meant as a Redis URL, and not as Feast's `host:port,key=value`."""
    scheme, slashes, _ = text.partition("://")
    return slashes != "" and scheme.lower() in SCHEMES


def redis_address(url: str) -> RedisAddress:
    """Read a Redis URL.

    Raises:
        UsageError: it is none, or says something that cannot be honoured; shows no user and no password.
    """
    if not url.isprintable() or " " in url:
        raise _unreadable(f"it has spaces or control characters: {_ENCODE}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is none, or brackets that do not close
        raise _unreadable(f"its host and port are none: {_ENCODE}, and put an IPv6 address in brackets") from None
    if not is_url(url):  # the scheme is not shown, for it may be a part of anything
        scheme = "not known" if "://" in url else "missing"
        raise _unreadable(f"its scheme is {scheme} ({', '.join(f'{one}://' for one in SCHEMES)} are known): {_FORM}")
    if "#" in url or "@" in parts.path + parts.query:
        raise _unreadable(f"it has a '#', or an '@' behind the host: {_ENCODE}")
    given = _parameters(parts.query, parts.scheme)
    return RedisAddress(
        **_place(parts, host, port),
        db=_database(parts, given.get("db")),
        username=_once("user", parts.username, given.get("username")),
        password=_once("password", parts.password, given.get("password")),
        tls_options=_tls(given) if parts.scheme == "rediss" else None,
    )


def _unreadable(why: str) -> UsageError:
    return UsageError(f"the Redis URL cannot be read: {why}")


def _place(parts: SplitResult, host: str | None, port: int | None) -> dict[str, Any]:
    if parts.scheme == "unix":
        if host or port is not None:
            raise _unreadable("a socket is on this machine and has no host: give unix:///path/of/the/socket")
        path = unquote(parts.path)
        if not path.startswith("/") or path == "/":
            raise _unreadable("it names no socket: give unix:///path/of/the/socket")
        return {"path": path}
    if not host or port == 0:
        raise _unreadable(f"it names no {'port' if host else 'host'}: {_FORM}, and {_ENCODE}")
    return {"host": unquote(host), "port": PORT if port is None else port}


def _parameters(query: str, scheme: str) -> dict[str, str]:
    """The query's parameters; a plus sign is one, for these are names of files rather than words of a form."""
    found: dict[str, str] = {}
    for part in query.split("&") if query else ():
        raw, _, value = part.partition("=")
        name = unquote(raw)
        if not _NAME.fullmatch(name):
            raise _unreadable(f"its query has a parameter without a usable name: {_ENCODE}")
        if name in OURS:
            raise _unreadable(f"{name} is not taken, for each program sets its own limits: leave it out")
        if name == "ssl":
            raise _unreadable("ssl is not taken: write rediss:// for TLS")
        if name not in PARAMETERS:
            raise _unreadable(f"{name} is not known (known: {', '.join(PARAMETERS)}): leave it out")
        if name in TLS_PARAMETERS and scheme != "rediss":
            raise _unreadable(f"{name} is of TLS, which {scheme}:// has not: write rediss://")
        if name in found or not value:
            raise _unreadable(f"{name} is {'given twice' if name in found else 'empty'}: give it once, or leave it out")
        found[name] = unquote(value)
    return found


def _database(parts: SplitResult, named: str | None) -> int:
    path = "" if parts.scheme == "unix" else unquote(parts.path).removeprefix("/")
    for text in filter(None, (path, named)):
        if not _DATABASE.fullmatch(text):
            raise _unreadable("its database is no number: give /3 or ?db=3")
    if path and named and int(path) != int(named):
        raise _unreadable(f"its path says database {int(path)} and its query {int(named)}: give one of them")
    return int(path or named or 0)


def _once(what: str, before_host: str | None, in_query: str | None) -> str | None:
    """A user or password, wherever it stands; an empty one is none."""
    first = unquote(before_host) if before_host else None
    if first is not None and in_query is not None and first != in_query:
        raise _unreadable(f"it has a {what} before the host and another in its query: give one of them")
    return in_query if first is None else first


def _tls(given: dict[str, str]) -> dict[str, Any]:
    """The parameters of redis-py. Certificates are required and host names checked unless the URL says otherwise."""
    found: dict[str, Any] = {name: given[name] for name in TLS_TEXTS if name in given}
    required = given.get("ssl_cert_reqs", "required")
    if required not in ("required", "optional", "none"):
        raise _unreadable("ssl_cert_reqs is none of required, optional and none: give one of them")
    checked = given.get("ssl_check_hostname", "false" if required == "none" else "true").lower()
    if checked not in _TRUE + _FALSE:
        raise _unreadable("ssl_check_hostname is neither true nor false: give one of them")
    if required == "none" and checked in _TRUE:
        raise _unreadable("ssl_check_hostname needs a certificate, and ssl_cert_reqs=none asks for none: leave one out")
    return {**found, "ssl_cert_reqs": required, "ssl_check_hostname": checked in _TRUE}
