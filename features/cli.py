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

    `apply` is ours: the same objects, but safe against a second one at the same time.

    Raises:
        Unavailable: the registry's Postgres does not answer.
    """
    import os
    import sys

    from almanac.settings import PROJECT_ROOT, settings
    from features.store import REPO, apply, environment

    if arguments == ["apply"]:
        apply(settings())
        typer.echo("Feast's registry has the definitions of features/repo/.")
        return
    path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]))
    variables = {**os.environ, **environment(settings()), "PYTHONPATH": path}
    # Feast finds a definition's module by its path below the current directory.
    command = [sys.executable, "-m", "feast.cli.cli", "--chdir", str(REPO), *arguments]
    os.chdir(REPO)
    os.execve(sys.executable, command, variables)  # noqa: S606 - a fixed program, no shell
