"""Commands `backup` and `restore`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(help="The backup's file; - for standard output or input.")]
STREAMED = Path("-")
COPY_BYTES = 1024 * 1024


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(file: File) -> None:
    """Write the record, the models and the offline features into one file; nothing has to be stopped."""
    from almanac.clock import utc_now
    from almanac.settings import settings
    from serving_cache.backup import backup as run_backup
    from serving_cache.backup import summary, working_folder

    found = settings()
    with working_folder(found.state_dir) as folder:
        target = folder / "backup" if file == STREAMED else file
        made = summary(run_backup(target, found, utc_now()))
        size = target.stat().st_size / 1e3
        if file == STREAMED:  # only now: what is cut off must not look like a backup
            with target.open("rb") as source:
                shutil.copyfileobj(source, sys.stdout.buffer, COPY_BYTES)
            sys.stdout.buffer.flush()
    counts = f"schema {made['schema']}, {made['models']} files of models, {made['features']} of features"
    typer.echo(f"{file}: {size:,.0f} kB, {counts}", err=file == STREAMED)


def restore(
    file: File,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what the record and the folders hold.")] = False,
) -> None:
    """Put a backup in the place of what is there; a backup of an older version is brought up to date."""
    from almanac.declarations import pipelines
    from almanac.settings import settings
    from serving_cache.backup import restore as run_restore
    from serving_cache.backup import working_folder
    from serving_cache.migrate import migrate

    found = settings()
    declared = pipelines()
    with working_folder(found.state_dir) as folder:
        source = file
        if file == STREAMED:
            source = folder / "standard input"
            with source.open("wb") as target:
                shutil.copyfileobj(sys.stdin.buffer, target, COPY_BYTES)
        manifest = run_restore(source, found, lambda text: typer.echo(text, err=True), replace=replace)
    schema = migrate(found.need("postgres_url"), declared.values())
    typer.echo(f"restored the state of {manifest.made_at}, schema {schema}; now `almanac rebuild` each pipeline")
