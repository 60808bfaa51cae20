"""Commands of the features part: what features are made from, and Feast's own command line on this project's store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from almanac.pipeline import Interactions, Pipeline
from almanac.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""

    @app.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )
    def feast(context: typer.Context) -> None:
        """Run Feast's command line on this store: almanac feast apply, plan, feature-views list, ui …"""
        run_feast(context.args)

    @app.command()
    def source(
        pipeline: Annotated[str, typer.Argument(help="A declared pipeline with a source.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """What a pipeline's features are made from; of a file of interactions, which rows were set aside, and why."""
        from almanac.declarations import pipeline as declared
        from almanac.output import print_json
        from almanac.settings import settings

        found = described_source(declared(pipeline), settings())
        if as_json:
            print_json(found)
            return
        from features.sources.gates import REASONS

        typer.echo(str(found["source"]))
        if found["rows"] is not None:
            aside = [(reason, count) for reason, count in found["set_aside"].items() if count]
            for name, count in ("rows read", found["rows"]), *aside, ("lines", found["lines"]):
                typer.echo(f"{count:>12,}  {name}{f': {REASONS[name]}' if name in REASONS else ''}")
            typer.echo(f"The rows that were set aside, each with its reason: {found['kept']}")


def described_source(pipeline: Pipeline, settings: Settings) -> dict[str, Any]:
    """What a source is, and of a file of interactions what became of its rows, which are kept where `kept` says.

    Raises:
        DeclarationError: the pipeline has no source.
        SourceError: it cannot be used.
    """
    if not isinstance(pipeline.source, Interactions):
        from features.sources import open_source

        return {"source": open_source(pipeline, settings).describe(), "rows": None}
    from features.interactions.ingest import SET_ASIDE, keep_aside
    from features.sources.lines import open_lines

    opened = open_lines(pipeline, settings)
    folder = settings.features_dir / pipeline.name / SET_ASIDE
    aside = dict(opened.set_aside)
    if opened.rows is None:
        return {"source": opened.describe(), "rows": None}
    keep_aside(opened, folder)
    return {
        "source": opened.describe(),
        "rows": opened.rows,
        "lines": opened.rows - sum(aside.values()),
        "set_aside": aside,
        "kept": str(folder),
    }


def run_feast(arguments: list[str]) -> None:
    """Become Feast's command line, with the store's configuration in its environment.

    `apply` is ours: the same objects, but of all folders, safe against a second one at the same time, and it
    removes what no file defines only when told to (`--prune`).

    Raises:
        UsageError: `apply` with an option that is not known.
        Unavailable: the registry's Postgres does not answer.
    """
    import os
    import sys

    from almanac.errors import UsageError
    from almanac.settings import PROJECT_ROOT, settings
    from features.definitions import REPO, places_of
    from features.store import apply, environment

    if arguments[:1] == ["apply"]:
        if set(arguments[1:]) - {"--prune"}:
            raise UsageError(f"`almanac feast apply` takes --prune alone, not {' '.join(arguments[1:])}: leave it out")
        apply(settings(), prune="--prune" in arguments)
        typer.echo(f"Feast's registry has the definitions of {', '.join(map(str, places_of(settings())))}.")
        return
    path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]))
    variables = {**os.environ, **environment(settings()), "PYTHONPATH": path}
    # Feast finds a definition's module by its path below the current directory.
    command = [sys.executable, "-m", "feast.cli.cli", "--chdir", str(REPO), *arguments]
    os.chdir(REPO)
    os.execve(sys.executable, command, variables)  # noqa: S606 - a fixed program, no shell
