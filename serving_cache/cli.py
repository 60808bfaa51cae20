"""Commands of the store: `generations`, `rollback`, `repartition`, `rebuild`; and those of the lookup service."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import typer

from serving_cache import backup_cli

if TYPE_CHECKING:
    from datetime import datetime

    from serving_cache.records import GenerationRecord

LIST_LIMIT = 20


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command("generations")(generations)
    app.command("rollback")(rollback)
    app.command("rebuild")(rebuild)
    app.command("repartition")(repartition)
    backup_cli.register(app)
    if importlib.util.find_spec("serving_cache.lookup_cli") is not None:
        importlib.import_module("serving_cache.lookup_cli").register(app)


def generations(
    pipeline: str,
    limit: int = typer.Option(LIST_LIMIT, min=1, help="How many of the latest to show."),
    stages: int | None = typer.Option(
        None, metavar="GENERATION", help="Show instead what each attempt at this generation's stages took."
    ),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable."),
) -> None:
    """List the latest generations of a pipeline, newest first; or the stages of one."""
    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.output import print_json, print_table
    from almanac.settings import settings
    from serving_cache.postgres import PostgresStore

    name = declared(pipeline).name
    if stages is not None:
        _print_stages(name, stages, as_json=as_json)
        return
    now = utc_now()
    with PostgresStore(settings().need("postgres_url")) as store:
        rows = [_shown(record, now) for record in store.generations(name, limit)]
        held = store.held(name)
    if as_json:
        print_json(rows)
        return
    columns = ["number", "state", "epoch", "as_of", "age", "model", "rows", "coverage", "published", "reason"]
    if not rows:
        typer.echo(f"pipeline {name} has no generation yet: `almanac trigger {name}` makes one")
        return
    print_table(columns, [[_cell(row, column) for column in columns] for row in rows])
    for row in rows:
        if row["alert"]:
            typer.echo(f"generation {row['generation']} was unusual when it was published: {row['alert']}")
    if held is not None:
        typer.echo(
            f"generation {held} was rolled back: nothing is published over that until `almanac rollback {name} --clear`"
        )


def _print_stages(pipeline: str, generation: int, *, as_json: bool) -> None:
    from almanac.clock import format_time
    from almanac.errors import UsageError
    from almanac.output import print_json, print_table
    from almanac.settings import settings
    from serving_cache.postgres import PostgresStore

    with PostgresStore(settings().need("postgres_url")) as store:
        if store.generation(pipeline, generation) is None:
            raise UsageError(
                f"pipeline {pipeline} has no generation {generation}: see `almanac generations {pipeline}`"
            )
        found = store.stage_times(pipeline, generation)
    if as_json:
        names = ("stage", "shard", "seconds", "partitions", "rows", "unchanged", "outcome", "reason", "steps")
        print_json(
            [{"started_at": format_time(f.started_at), **{name: getattr(f, name) for name in names}} for f in found]
        )
        return
    rows = [
        (
            f.stage, f.shard, f"{format_time(f.started_at)[5:19]}Z", f"{f.seconds:.2f} s", f.partitions, f.rows,
            f.unchanged or None,
            ", ".join(f"{name} {f.steps[name]:.2f}" for name in sorted(f.steps, key=f.steps.__getitem__, reverse=True)),
            f.outcome, f.reason,
        )
        for f in found
    ]  # fmt: skip
    columns = ("stage", "shard", "started", "took", "partitions", "rows", "unchanged", "of which", "outcome", "reason")
    print_table(columns, rows)


def rollback(
    pipeline: str,
    to: int | None = typer.Option(
        None, "--to", metavar="GENERATION", help="Which one to go back to; the previous one unless told."
    ),
    clear: bool = typer.Option(
        False, "--clear", help="Move nothing: let generations be published again over what was rolled back."
    ),
) -> None:
    """Make an earlier generation current again; nothing is published over that until it is cleared."""
    from contextlib import nullcontext

    from almanac.declarations import pipeline as declared
    from almanac.errors import UsageError
    from almanac.settings import settings
    from serving_cache.postgres import PostgresStore
    from serving_cache.redis import RedisStore
    from serving_cache.rollback import roll_back

    found = declared(pipeline)
    if clear and to is not None:
        raise UsageError("--clear moves nothing and --to does: give one of them")
    with PostgresStore(settings().need("postgres_url")) as store:
        if clear:
            held = store.clear_rollback(found.name)
            was = "nothing was held" if held is None else f"generation {held} stays rolled back"
            typer.echo(f"{found.name}: {was}; the next generation is published as usual")
            return
        url = settings().redis_url
        with nullcontext() if url is None else RedisStore(url) as cache:
            outcome, trouble = roll_back(found, store, cache, to)
        held = store.held(found.name)
    typer.echo(f"{found.name} is back at generation {outcome.generation}, epoch {outcome.epoch}")
    if held is not None:
        typer.echo(f"nothing is published over that until you run `almanac rollback {found.name} --clear`")
    if trouble:
        typer.echo(f"Redis follows later: {trouble}", err=True)


def repartition(pipeline: str) -> None:
    """Agree that the next generation has the partitioning that is declared now."""
    from almanac.declarations import pipeline as declared
    from almanac.settings import settings
    from serving_cache.postgres import PostgresStore

    found = declared(pipeline)
    with PostgresStore(settings().need("postgres_url")) as store:
        store.agree_to_partitioning(found)
    typer.echo(f"the next generation of {found.name} may have {found.partitions!r}: `almanac trigger {found.name}`")


def rebuild(pipeline: str) -> None:
    """Write all of a pipeline that Redis holds anew, from Postgres; lookups go on."""
    from almanac.declarations import pipeline as declared
    from almanac.settings import settings
    from serving_cache.postgres import PostgresStore
    from serving_cache.redis import RedisStore
    from serving_cache.sync import rebuild_redis

    found = declared(pipeline)
    urls = settings()
    with PostgresStore(urls.need("postgres_url")) as store, RedisStore(urls.need("redis_url")) as cache:
        rebuild_redis(found, store, cache)
        pointer = cache.pointer(found.name)
    if pointer is None:
        typer.echo(f"{found.name} has nothing published; Redis holds nothing of it")
    else:
        typer.echo(f"{found.name} is in Redis again: generation {pointer.generation.generation}, epoch {pointer.epoch}")


def _shown(record: GenerationRecord, now: datetime) -> dict[str, Any]:
    from almanac.clock import format_time
    from almanac.freshness import age_of

    return {
        "pipeline": record.pipeline,
        "generation": record.generation,
        "state": record.state.value,
        "epoch": record.epoch,
        "as_of": format_time(record.as_of),
        "age_seconds": round(age_of(record.as_of, now).total_seconds(), 3),
        "model": record.model,
        "rows": record.rows,
        "coverage": record.coverage,
        "published_at": None if record.published_at is None else format_time(record.published_at),
        "reason": record.reason,
        "alert": record.alert,
        "run_key": record.run_key,
        "clock_shift_seconds": record.clock_shift_seconds,
        "dropped_at": None if record.dropped_at is None else format_time(record.dropped_at),
    }


def _cell(row: dict[str, Any], column: str) -> Any:
    """One cell of the table: times without year and seconds, the age in hours, the coverage in percent."""
    if column == "age":
        minutes = int(row["age_seconds"] // 60)
        return f"{minutes // 60}:{minutes % 60:02d} h"
    value = row[{"number": "generation", "published": "published_at"}.get(column, column)]
    if column in ("as_of", "published") and value is not None:
        return f"{value[5:16]}Z"
    if column == "coverage":
        return f"{value:.1%}"
    if column == "state" and row["dropped_at"] is not None:
        return f"{value}, dropped"
    return value
