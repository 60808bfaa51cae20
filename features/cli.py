"""Commands of the features part: Feast's own command line on this project's store."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""

    @app.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )
    def feast(context: typer.Context) -> None:
        """Run Feast's command line on this store: almanac feast apply, plan, feature-views list, ui …"""
        run_feast(context.args)


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
