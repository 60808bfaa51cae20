"""Commands of the stack: up, down, status, stop, start, restart."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from almanac.stack.places import Places

EXIT_UNHEALTHY = 5
Program = Annotated[str, typer.Argument(help="A program, as `almanac status` names it.")]
Programs = Annotated[list[str], typer.Argument(help="Programs, as `almanac status` names them.")]


def register(app: typer.Typer) -> None:
    """Add the stack's commands to the command line."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(stop)
    app.command()(start)
    app.command()(restart)


def _places() -> Places:
    """The state directory the environment names; the addresses written down in it are not needed, nor read."""
    from almanac.stack.places import Places
    from almanac.stack.programs import environment_settings

    return Places.of(environment_settings().state_dir)


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
    from almanac.stack.up import up as run_up

    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    run_up(names, detach=detach)


def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove all data: databases, topics, models, features, reports, logs.")
    ] = False,
) -> None:
    """Stop everything that `almanac up` started; data stays."""
    from almanac.stack.down import down as run_down

    places = _places()
    ran = run_down(places, lambda text: print(text, file=sys.stderr), purge=purge)
    print("stopped" if ran else "nothing was running", end="")
    print(f"; the data of {places.state_dir} is removed" if purge else "")


def status(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Show each program: its process, its address, and whether it is healthy. Exits 0 only if all are."""
    from almanac.stack.status import report

    if not report(_places(), as_json=as_json):
        raise typer.Exit(EXIT_UNHEALTHY)


def stop(programs: Programs) -> None:
    """Stop programs of the stack, in this order, until they are started again."""
    from almanac.stack.control import stop as run_stop

    for program in programs:
        run_stop(_places(), program)
        print(f"{program} is stopped")


def start(programs: Programs) -> None:
    """Start programs of the stack, in this order, and wait until each is healthy."""
    from almanac.stack.control import start as run_start

    for program in programs:
        run_start(_places(), program)
        print(f"{program} is healthy")


def restart(
    program: Program,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of a setting to change for this program until its next restart."),
    ] = None,
) -> None:
    """Restart one program, with settings changed by --set, or back as `almanac up` started it."""
    from almanac.stack.control import restart as run_restart

    run_restart(_places(), program, change or [])
    print(f"{program} is healthy")
