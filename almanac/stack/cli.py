"""Commands of the stack: up, down, status, stop, start, restart."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

EXIT_UNHEALTHY = 5
Program = Annotated[str, typer.Argument(help="A program, as `almanac status` names it.")]


def register(app: typer.Typer) -> None:
    """Add the stack's commands to the command line."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(stop)
    app.command()(start)
    app.command()(restart)


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything is healthy.")] = False,
    only: Annotated[str | None, typer.Option(help="Start only these programs, separated by commas.")] = None,
) -> None:
    """Start the whole stack, or adopt one that is up; Ctrl-C takes it down again.

    PostgreSQL, Redis, Kafka, Airflow, the stream and the lookup, on localhost, on
    free ports, under one state directory. A server named by URL in the environment
    (ALMANAC_POSTGRES_URL, ALMANAC_REDIS_URL, ALMANAC_KAFKA_BOOTSTRAP,
    ALMANAC_AIRFLOW_URL) is used instead of starting one.
    """
    from almanac.settings import settings
    from almanac.stack.up import up as run_up

    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    run_up(settings().state_dir, names, detach=detach)


def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove all data: databases, topics, models, features, logs.")
    ] = False,
) -> None:
    """Stop everything that `almanac up` started; data stays."""
    from almanac.settings import settings
    from almanac.stack.down import down as run_down
    from almanac.stack.places import Places

    places = Places.of(settings().state_dir)
    ran = run_down(places, lambda text: print(text, file=sys.stderr), purge=purge)
    print("stopped" if ran else "nothing was running", end="")
    print(f"; the data of {places.state_dir} is removed" if purge else "")


def status(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Show each program: its process, its address, and whether it is healthy. Exits 0 only if all are."""
    from almanac.settings import settings
    from almanac.stack.status import report

    if not report(settings(), as_json=as_json):
        raise typer.Exit(EXIT_UNHEALTHY)


def stop(program: Program) -> None:
    """Stop one program of the stack until it is started again."""
    from almanac.settings import settings
    from almanac.stack.control import stop as run_stop
    from almanac.stack.places import Places

    run_stop(Places.of(settings().state_dir), program)
    print(f"{program} is stopped")


def start(program: Program) -> None:
    """Start one program of the stack and wait until it is healthy."""
    from almanac.settings import settings
    from almanac.stack.control import start as run_start
    from almanac.stack.places import Places

    run_start(Places.of(settings().state_dir), program)
    print(f"{program} is healthy")


def restart(
    program: Program,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of a setting to change for this program until its next restart."),
    ] = None,
) -> None:
    """Restart one program, with settings changed by --set, or back as `almanac up` started it."""
    from almanac.settings import settings
    from almanac.stack.control import restart as run_restart
    from almanac.stack.places import Places

    run_restart(Places.of(settings().state_dir), program, change or [])
    print(f"{program} is healthy")
