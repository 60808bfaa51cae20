"""What must be there before anything starts: `python -m almanac.production.prepare`, at each `docker compose up`.

Makes the two databases and their roles where they are missing, sets the roles' passwords to
those of the secret files, shuts everybody else out, and writes Airflow's password file, which
Airflow opens for writing and which therefore cannot be a secret's own. Safe to run again.

Reads POSTGRES_ADMIN_URL_FILE (the superuser's URL), ALMANAC_POSTGRES_URL_FILE,
AIRFLOW_DATABASE_URL_FILE, ALMANAC_AIRFLOW_PASSWORD_FILE and AIRFLOW_HOME.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from almanac.errors import AlmanacError, Unavailable, UsageError
from almanac.plain_text import one_line
from almanac.postgres_url import postgres_address
from almanac.settings import load_settings, read_secret
from almanac.stack.airflow import USER
from almanac.stack.postgres import CONNECT_SECONDS_MAX
from almanac.stack.server import write_private

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

ADMIN_VARIABLE = "POSTGRES_ADMIN_URL_FILE"
AIRFLOW_VARIABLE = "AIRFLOW_DATABASE_URL_FILE"
PASSWORDS_FILE = "passwords.json"


def _secret_of(environment: Mapping[str, str], variable: str) -> str:
    path = environment.get(variable)
    if not path:
        raise UsageError(f"{variable} is not set: give it the path of the secret's file")
    return read_secret(Path(path), variable)


def make_databases(admin_url: str, urls: list[str]) -> None:
    """Make each URL's database, owned by the URL's role, with that password, closed to every other role.

    Raises:
        Unavailable: Postgres does not answer, or refuses.
        UsageError: a URL lacks a user, password or database.
    """
    import psycopg

    try:
        url = postgres_address(admin_url).url
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS_MAX) as connection:
            for url in urls:
                _make_database(connection, url)
            for (name,) in connection.execute(
                "SELECT datname FROM pg_database WHERE datname IN ('postgres', 'template1')"
            ):
                connection.execute(_closed(str(name)))
    except psycopg.Error as error:
        reason = (str(error).strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"the databases could not be made ({reason}): see the log of Postgres") from None


def _make_database(connection: psycopg.Connection[tuple[object, ...]], url: str) -> None:
    from psycopg import sql

    scheme, slashes, rest = url.partition("://")  # Airflow's names a driver too
    said = postgres_address(f"{scheme.partition('+')[0]}{slashes}{rest}").parameters
    user, own, database = (said.get(name) for name in ("user", "password", "dbname"))
    if not (user and own and database):
        raise UsageError("a database URL lacks user, password or database: make the secret files anew")
    role, name = sql.Identifier(user), sql.Identifier(database)
    attributes = sql.SQL("LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION")
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (user,)).fetchone():
        connection.execute(sql.SQL("CREATE ROLE {} {}").format(role, attributes))
    password = sql.Literal(own)
    connection.execute(sql.SQL("ALTER ROLE {} {} PASSWORD {}").format(role, attributes, password))
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone():
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, role))
    connection.execute(_closed(database))


def _closed(database: str) -> sql.Composed:
    """Everybody may connect to a database, unless told otherwise."""
    from psycopg import sql

    return sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))


def prepare(environment: Mapping[str, str]) -> None:
    """Databases and Airflow's password file.

    Raises:
        Unavailable: Postgres does not answer.
        UsageError: a secret cannot be read.
    """
    found = load_settings()
    password = found.need("airflow_password")
    home = Path(environment.get("AIRFLOW_HOME") or found.state_dir / "airflow")
    admin_url = _secret_of(environment, ADMIN_VARIABLE)
    make_databases(admin_url, [found.need("postgres_url"), _secret_of(environment, AIRFLOW_VARIABLE)])
    try:
        write_private(home / PASSWORDS_FILE, json.dumps({USER: password}))
    except OSError as error:
        raise UsageError(f"{home} cannot be written ({error.strerror}): mount a volume of this user there") from None


def main() -> int:
    """Prepare what the environment names; returns the exit code."""
    try:
        prepare(os.environ)
    except AlmanacError as error:
        print(f"prepare: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    print("the databases almanac and airflow, and Airflow's password, are there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
