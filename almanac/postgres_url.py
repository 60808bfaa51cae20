"""What a Postgres URL says: one reader, libpq's own, for all that open Postgres, so that each of them honours the same.

    postgresql://[user:password@]host[:port][,host[:port]…]/database[?parameter=value&…]

What has a meaning in a URL is percent-encoded: `%40` for `@`, also in the query. What libpq would read otherwise than
it was meant is refused; no message shows user, password or anything that may be a part of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from almanac.errors import UsageError

PORT = "5432"
PORT_MAX = 65535
SCHEMES = ("postgresql://", "postgres://")

_NUMBER = re.compile(r"[0-9]{1,5}", re.ASCII)
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
        parameters["port"] = _ports(parameters["port"])
    return PostgresAddress(url=url, parameters=parameters)


def _ports(text: str) -> str:
    """One port for each host; libpq takes an empty one as the usual."""
    ports = [port or PORT for port in text.split(",")]
    if not all(_NUMBER.fullmatch(port) and 1 <= int(port) <= PORT_MAX for port in ports):
        raise _unreadable(f"its port is no number from 1 to {PORT_MAX}: {_ENCODE}")
    return ",".join(ports)


def _unreadable(why: str) -> UsageError:
    return UsageError(f"the Postgres URL cannot be read: {why}")
