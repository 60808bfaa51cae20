"""Postgres as a source of offline features and a place for them: Arrow through ADBC, no row ever a Python object.

The connection's options are those of Feast's own Postgres store, so that only `type` changes in a configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode

from almanac.errors import FeatureError, Unavailable
from features.asof import Rows, Wanted

if TYPE_CHECKING:
    import pyarrow as pa

CONNECT_SECONDS_MAX = 10
BATCH_BYTES = 8 * 1024**2
"""How much of a result is held at once, in bytes (a hint that ADBC takes for a batch)."""


class Options(Protocol):
    """What of a configuration says where Postgres is."""

    host: str | None
    port: int
    database: str | None
    db_schema: str
    user: str | None
    password: str | None
    sslmode: str | None
    sslkey_path: str | None
    sslcert_path: str | None
    sslrootcert_path: str | None


def address(options: Options) -> str:
    """The URL of the server, with its password: never to be printed.

    Raises:
        FeatureError: the configuration has no host, database or user.
    """
    missing = [name for name in ("host", "database", "user") if not getattr(options, name)]
    if missing:
        raise FeatureError(
            f"a Postgres source needs {', '.join(missing)} below offline_store: give them as for Feast's postgres store"
        )
    path = options.db_schema.strip() or "public"
    more = {
        # Here and not before the path, where a socket's folder or an IPv6 address would be read as something else.
        "host": options.host,
        "port": str(options.port),
        "sslmode": options.sslmode,
        "sslkey": options.sslkey_path,
        "sslcert": options.sslcert_path,
        "sslrootcert": options.sslrootcert_path,
        "connect_timeout": str(CONNECT_SECONDS_MAX),
        "options": f"-c search_path={path if path == 'public' else f'{path},public'} -c timezone=UTC",
    }
    words = urlencode({name: value for name, value in more.items() if value}, quote_via=quote)
    who = quote(options.user or "", safe="") + (f":{quote(options.password, safe='')}" if options.password else "")
    return f"postgresql://{who}@/{quote(options.database or '', safe='')}?{words}"


@contextmanager
def connected(options: Options, what: str) -> Iterator[Any]:
    """An ADBC connection that commits at the end; its errors become ours.

    Args:
        what: is read or written, for the message.

    Raises:
        FeatureError: Postgres refuses the statement.
        Unavailable: it does not answer.
    """
    import adbc_driver_postgresql.dbapi as adbc

    try:
        with adbc.connect(address(options)) as connection:
            yield connection
            connection.commit()
    except adbc.Error as error:
        reason = " ".join(str(error).split())
        if isinstance(error, adbc.OperationalError):
            raise Unavailable(f"{what}: Postgres did not answer ({reason}): retry when it does") from None
        raise FeatureError(f"{what} cannot be used in Postgres ({reason}): correct it") from None


def query(options: Options, sql: str, what: str) -> pa.Table:
    """The result of a statement, numbers of any precision as float64."""
    return read(options, f"({sql}) AS asked", schema_of(options, f"({sql}) AS asked", what), what).read_all()


def schema_of(options: Options, relation: str, what: str) -> pa.Schema:
    """The columns of a table or of a query in parentheses with a name."""
    import pyarrow as pa

    with connected(options, what) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {relation} LIMIT 0")  # noqa: S608
        found = cursor.fetch_arrow_table().schema
    return pa.schema([field.with_type(pa.float64()) if _numeric(field) else field for field in found])


def read(
    options: Options,
    relation: str,
    schema: pa.Schema,
    what: str,
    condition: str = "",
    columns: tuple[str, ...] | None = None,
) -> pa.RecordBatchReader:
    """Columns of a relation, some megabytes at a time.

    Args:
        relation: as stands in FROM.
        schema: of the relation, by `schema_of`.
        what: is read, for messages.
        condition: as stands after WHERE.
        columns: which; all if None.
    """
    import pyarrow as pa

    chosen = pa.schema([schema.field(name) for name in (columns if columns is not None else schema.names)])
    words = ", ".join(f"{quoted(field.name)}{'::float8' if _numeric(field) else ''}" for field in chosen) or "1"
    where = f" WHERE {condition}" if condition else ""
    plain = pa.schema([field.remove_metadata() for field in chosen])

    def batches() -> Iterator[pa.RecordBatch]:
        with connected(options, what) as connection, connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
            cursor.execute(f"SELECT {words} FROM {relation}{where}")  # noqa: S608
            for batch in cursor.fetch_record_batch():
                yield _as(batch, plain)

    return pa.RecordBatchReader.from_batches(plain, batches())


def rows_of(options: Options, relation: str, timestamp: str, what: str) -> Rows:
    """A relation as the engine's source; rows of other times stay in Postgres.

    Args:
        timestamp: column of the event time, empty if unknown; without a time zone it counts as UTC.
    """
    schema = schema_of(options, relation, what)

    def batches(wanted: Wanted) -> Iterator[pa.RecordBatch]:
        within = between(timestamp, wanted.earliest, wanted.latest) if timestamp else ""
        yield from read(options, relation, schema, what, within, wanted.columns)

    import pyarrow as pa

    return Rows(schema=pa.schema([field.remove_metadata() for field in schema]), read=batches)


def between(timestamp: str, start: datetime | None, end: datetime | None) -> str:
    """A condition that keeps a time, ends included."""
    parts = [
        f"{quoted(timestamp)} {sign} TIMESTAMPTZ '{moment.isoformat(sep=' ')}'"
        for sign, moment in ((">=", start), ("<=", end))
        if moment is not None
    ]
    return " AND ".join(parts)


def write(options: Options, table: str, rows: pa.Table, *, replace: bool = False) -> None:
    """Append rows to a table in one transaction, or put them in the place of one.

    Args:
        table: its name, `schema.table` or `table`.
        replace: make the table anew.
    """
    schema, _, name = table.replace('"', "").rpartition(".")
    with connected(options, f"table {table}") as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(name, rows, mode="replace" if replace else "append", db_schema_name=schema or None)


def exists(options: Options, table: str) -> bool:
    """Whether a table is there."""
    with connected(options, f"table {table}") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass($1) IS NOT NULL", (table,))
        found: bool = cursor.fetchone()[0]
        return found


def quoted(name: str) -> str:
    """A name as stands in SQL."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _numeric(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"ADBC:postgresql:typname") == b"numeric"


def _as(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    if batch.schema.equals(schema):
        return batch
    columns = [batch.column(place).cast(field.type) for place, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
