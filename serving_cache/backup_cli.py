"""Commands `backup` and `restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(help="The backup's file.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(file: File) -> None:
    """Write the record, the models and the offline features into one file; nothing has to be stopped."""
    from almanac.clock import utc_now
    from almanac.settings import settings
    from serving_cache.backup import backup as run_backup
    from serving_cache.backup import summary

    found = summary(run_backup(file, settings(), utc_now()))
    size = file.stat().st_size / 1e6
    typer.echo(
        f"{file}: {size:,.1f} MB, schema {found['schema']}, {found['models']} files of models, "
        f"{found['features']} of features"
    )


def restore(
    file: File,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what the record and the folders hold.")] = False,
) -> None:
    """Put a backup in the place of what is there; a backup of an older version is brought up to date."""
    from almanac.declarations import pipelines
    from almanac.settings import settings
    from serving_cache.backup import restore as run_restore
    from serving_cache.migrate import migrate

    found = settings()
    declared = pipelines()
    manifest = run_restore(file, found, lambda text: typer.echo(text, err=True), replace=replace)
    schema = migrate(found.need("postgres_url"), declared.values())
    typer.echo(f"restored the state of {manifest.made_at}, schema {schema}; now `almanac rebuild-cache` each pipeline")
