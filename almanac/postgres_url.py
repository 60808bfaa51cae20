"""What a Postgres URL says: one reader, libpq's own, for all that open Postgres, so that each of them honours the same.

    postgresql://[user:password@]host[:port][,host[:port]…]/database[?parameter=value&…]

What has a meaning in a URL is percent-encoded: `%40` for `@`, also in the query. What libpq would read otherwise than
it was meant is refused; no message shows user, password or anything that may be a part of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from almanac.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

PORT = "5432"
PORT_MAX = 65535
SCHEMES = ("postgresql://", "postgres://")

_NUMBER = re.compile(r"[0-9]{1,5}", re.ASCII)
_PLAIN_HOST = re.compile(r"[A-Za-z0-9_.:-]+", re.ASCII)
"""One server, whose name stands in a URL as it is: no socket, no list."""
_FORM = "give postgresql://user:password@host:port/database"
_ENCODE = "percent-encode what a user, password or parameter holds of @ : / ? # [ ] & and %"


@dataclass(frozen=True, kw_only=True)
class PostgresAddress:
    """Where a Postgres is, and how to be let in.

    Args:
        url: as it was given, with its password: for libpq, never to be printed.
        parameters: all that it says, by the names of libpq; ports of several hosts separated by commas.
    """

    url: str = field(repr=False)
    parameters: dict[str, str] = field(repr=False)

    @property
    def where(self) -> str:
        """For messages: host:port/database."""
        host = self.parameters.get("host") or self.parameters.get("hostaddr") or "localhost"
        if ":" in host and not host.startswith("/"):
            host = f"[{host}]"
        return f"{host}:{self.parameters.get('port', PORT)}/{self.parameters.get('dbname', '')}"

    def engine_url(self, driver: str, *, database: str | None = None, more: Mapping[str, str] | None = None) -> URL:
        """SQLAlchemy's URL of the same server, whose connection gets the same parameters; with the password.

        Args:
            driver: psycopg or psycopg2, which hand every parameter to libpq.
            database: in place of the URL's own.
            more: further parameters; they go before those of the URL.
        """
        from sqlalchemy.engine import URL

        query = {name: value for name, value in {**self.parameters, **(more or {})}.items() if value}
        user, named = query.pop("user", None), query.pop("dbname", None)
        # SQLAlchemy writes a password only behind a user.
        password = query.pop("password", None) if user else None
        host = port = None
        if _PLAIN_HOST.fullmatch(query.get("host", "")):
            host, port = query.pop("host"), query.pop("port", None)
        return URL.create(
            f"postgresql+{driver}", user, password, host, int(port) if port else None, database or named, query
        )


def postgres_address(url: str) -> PostgresAddress:
    """Read a Postgres URL, or libpq's `host=… dbname=…`.

    Raises:
        UsageError: it is none, or may not say what was meant; shows no user and no password.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parameters = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except (psycopg.Error, UnicodeError):  # whose message repeats the URL
        raise _unreadable(f"{_FORM}, {_ENCODE}, and name only parameters that libpq knows") from None
    scheme = next((one for one in SCHEMES if url.startswith(one)), None)
    if scheme is not None:
        before, _, behind = url.removeprefix(scheme).partition("@")
        if "@" in behind or ("@" in url and "/" in before):
            raise _unreadable(f"it has an '@' more than before its host: {_ENCODE}")
    if any("@" in parameters.get(name, "") for name in ("host", "hostaddr", "dbname")):
        raise _unreadable(f"its host or database has an '@': {_ENCODE}")
    if "port" in parameters:
        hosts = parameters.get("host") or parameters.get("hostaddr") or ""
        parameters["port"] = _ports(parameters["port"], hosts.count(",") + 1)
    return PostgresAddress(url=url, parameters=parameters)


def _ports(text: str, hosts: int) -> str:
    """One port for each host; libpq takes an empty one as the usual, and a single one for all."""
    ports = [port or PORT for port in text.split(",")]
    if len(ports) == 1:
        ports *= hosts
    if len(ports) != hosts:
        raise _unreadable(f"it has {len(ports)} ports for {hosts} hosts: give one for each")
    if not all(_NUMBER.fullmatch(port) and 1 <= int(port) <= PORT_MAX for port in ports):
        raise _unreadable(f"its port is no number from 1 to {PORT_MAX}: {_ENCODE}")
    return ",".join(ports)


def _unreadable(why: str) -> UsageError:
    return UsageError(f"the Postgres URL cannot be read: {why}")
