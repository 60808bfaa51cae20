"""Bring the database to this version, and make each declared pipeline's tables: `python -m serving_cache.migrate`.

Safe to run at any time and several times at once: everything happens in one
transaction, under an advisory lock.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from psycopg import sql

from almanac.errors import AlmanacError, DeclarationError, Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.plain_text import one_line
from almanac.postgres_url import postgres_address
from almanac.ranking_declared import ITEMS_COLUMN
from serving_cache.layout import table_name, view_name
from serving_cache.postgres_client import CONNECT_TIMEOUT_SECONDS, Client, described

log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 60
NEWEST = "head"
VERSION_TABLE = "almanac_schema_version"
_LOCK = 0x616C6D616E6163  # "almanac" in ASCII: the advisory lock's number


def migrate(url: str, pipelines: Iterable[Pipeline]) -> str:
    """Run what is missing of the migrations, then make the pipelines' tables; returns the schema's version.

    Raises:
        Unavailable: Postgres does not answer, or another migration takes longer than a minute.
        UsageError: the database is of a newer version of this program.
        DeclarationError: a table exists with another entity than the declaration has, or something else has its name.
    """
    version = _run_alembic(url)
    with Client(url) as client, client.transaction() as connection:
        _lock(connection)
        for pipeline in pipelines:
            _make_tables(connection, pipeline)
    return version


def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def known_versions() -> tuple[str, ...]:
    """Schema versions that this program knows, oldest first."""
    from alembic.script import ScriptDirectory

    revisions = ScriptDirectory.from_config(_config()).walk_revisions()
    return tuple(reversed([revision.revision for revision in revisions]))


def _run_alembic(url: str) -> str:
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.util.exc import CommandError
    from sqlalchemy import create_engine, exc, pool, text

    engine = create_engine(
        postgres_address(url).engine_url("psycopg"),
        poolclass=pool.NullPool,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS},
    )
    config = _config()
    options = {"version_table": VERSION_TABLE}
    try:
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
            config.attributes.update(connection=connection, **options)
            command.upgrade(config, NEWEST)
            return str(MigrationContext.configure(connection, opts=options).get_current_revision())
    except exc.DBAPIError as error:
        raise Unavailable(f"Postgres at {described(url)} could not be migrated ({_first_line(error.orig)})") from error
    except CommandError as error:
        raise UsageError(
            f"the database at {described(url)} does not fit this version of Almanac ({error}): upgrade Almanac"
        ) from error
    finally:
        engine.dispose()


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _lock(connection: Any) -> None:
    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


def _make_tables(connection: Any, pipeline: Pipeline) -> None:
    """The partitioned table with a column per output or part of a list, the view for people, and the pointer's row.

    A column that the declaration gained becomes a column, empty in older
    generations; one that it lost stays, for the generations that have it.
    """
    kind = sql.SQL("bigint" if pipeline.partitions.key_type is int else 'text COLLATE "C"')
    table = sql.Identifier(table_name(pipeline.name))
    types = _types(pipeline)
    outputs = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(kind)) for n, kind in types.items())
    _need_free(connection, pipeline.name)
    connection.execute(
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (generation bigint NOT NULL, partition integer NOT NULL, "
            "{} {} NOT NULL, {}) PARTITION BY LIST (generation)"
        ).format(table, sql.Identifier(pipeline.entity), kind, outputs)
    )
    present = connection.execute(
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (table_name(pipeline.name),),
    ).fetchall()
    wanted = (pipeline.entity, "bigint" if pipeline.partitions.key_type is int else "text")
    if tuple(present[2]) != wanted:
        raise DeclarationError(
            f"pipeline {pipeline.name}: its table has the entity {present[2][0]} ({present[2][1]}), the declaration "
            f"{wanted[0]} ({wanted[1]}): give the changed pipeline another name"
        )
    columns = {str(name): str(kind) for name, kind in present[3:]}
    for name, wanted_type in types.items():
        if name not in columns:
            added = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}")
            connection.execute(added.format(table, sql.Identifier(name), sql.SQL(wanted_type)))
        elif columns[name] != wanted_type:
            raise DeclarationError(
                f"pipeline {pipeline.name}: its table has {name} as {columns[name]}, the declaration as {wanted_type}: "
                "give the changed pipeline another name"
            )
        columns[name] = wanted_type
    _make_view(connection, pipeline, list(columns))
    connection.execute("INSERT INTO pointers (pipeline) VALUES (%s) ON CONFLICT DO NOTHING", (pipeline.name,))


def _need_free(connection: Any, pipeline: str) -> None:
    """Refuse a relation under the table's name that holds no pipeline's predictions: it would pass for the table.

    Raises:
        DeclarationError: there is one, such as another pipeline's generation.
    """
    name = table_name(pipeline)
    row = connection.execute("SELECT relkind FROM pg_class WHERE oid = to_regclass(%s)", (name,)).fetchone()
    if row is not None and row[0] != "p":
        raise DeclarationError(
            f"pipeline {pipeline}: the database has {name} already, and not as a table of this kind (it may be a "
            "generation of another pipeline): give the pipeline another name, or remove it if it is nobody's"
        )


def _types(pipeline: Pipeline) -> dict[str, str]:
    """The type of each column of a prediction."""
    if pipeline.ranking is None:
        return dict.fromkeys(pipeline.stored_columns, "real")
    return {name: "text[]" if name == ITEMS_COLUMN else "real[]" for name in pipeline.stored_columns}


def _make_view(connection: Any, pipeline: Pipeline, columns: list[str]) -> None:
    """What readers see now, a row per prediction, with where each one comes from."""
    connection.execute(
        sql.SQL(
            "CREATE OR REPLACE VIEW {view} AS SELECT q.epoch, q.generation, g.model, m.partition, m.origin, "
            "m.as_of, m.computed_at, m.reason, p.{entity}, {columns} "
            "FROM pointers q JOIN generation_partitions m USING (pipeline, generation) "
            "JOIN generations g ON g.pipeline = q.pipeline AND g.generation = m.origin "
            "JOIN {table} p ON p.generation = m.origin AND p.partition = m.partition WHERE q.pipeline = {pipeline}"
        ).format(
            view=sql.Identifier(view_name(pipeline.name)),
            entity=sql.Identifier(pipeline.entity),
            columns=sql.SQL(", ").join(sql.SQL("p.{}").format(sql.Identifier(name)) for name in columns),
            table=sql.Identifier(table_name(pipeline.name)),
            pipeline=sql.Literal(pipeline.name),
        )
    )


def main() -> int:
    """Migrate the database of the settings, with every declared pipeline."""
    from almanac.declarations import pipelines
    from almanac.logs import configure
    from almanac.settings import settings

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        configure("migrate", settings().log_format)
        found = pipelines()
        version = migrate(settings().need("postgres_url"), found.values())
    except AlmanacError as error:
        print(f"migrate: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    log.info("migrated version=%s pipelines=%s", version, ",".join(found) or "none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
