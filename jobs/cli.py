"""Commands of the batch side: `pipelines`, `trigger`, `materialize`, and those of models."""

from __future__ import annotations

from datetime import datetime

import typer

from almanac.clock import PARTITION_KEY_FORMAT

RUN_TIMEOUT_SECONDS = 1800.0


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    from jobs import plan_cli, quality_cli
    from jobs.checks import cli as features_cli
    from jobs.training import models_cli

    app.command("pipelines")(list_pipelines)
    app.command("trigger")(trigger)
    app.command("materialize")(materialize)
    plan_cli.register(app)
    models_cli.register(app)
    quality_cli.register(app)
    features_cli.register(app)


def list_pipelines(as_json: bool = typer.Option(False, "--json", help="Machine-readable.")) -> None:
    """List the declared pipelines."""
    from almanac.declarations import pipelines
    from almanac.output import print_json, print_table

    rows = [
        {
            "name": p.name,
            "entity": p.entity,
            "partitions": p.partitions.count,
            "outputs": list(p.output_names),
            "schedule": p.schedule,
            "model": p.model,
            "stream": p.stream.topic if p.stream else None,
        }
        for p in pipelines().values()
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["pipeline", "entity", "partitions", "outputs", "schedule", "model", "stream"],
        [[", ".join(v) if isinstance(v, list) else v for v in row.values()] for row in rows],
    )


def trigger(
    pipeline: str,
    as_of: str = typer.Option(
        "", help="Partition key in UTC, such as 2026-03-31T06:00Z; default: the last full hour, or a later tick."
    ),
    anew: bool = typer.Option(False, "--anew", help="Score everything, what did not change too."),
    follow: bool = typer.Option(True, help="Wait and print each task as it ends."),
) -> None:
    """Start a batch run through Airflow's API and follow it."""
    from almanac.airflow_api import AirflowApi
    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.errors import AlmanacError
    from almanac.settings import settings

    found = declared(pipeline)
    name = found.name
    key = partition_key(as_of, found.schedule, utc_now())
    with AirflowApi(settings()) as airflow:
        params = {"anew": True} if anew else {}
        run = airflow.trigger(name, partition_key=key, note="almanac trigger", params=params)
        typer.echo(f"run {run} of {pipeline} for {key}")
        if airflow.is_paused(pipeline):
            typer.echo(
                f"the DAG {pipeline} is paused: the run waits until somebody unpauses it in the Airflow UI", err=True
            )
        if not follow:
            return
        state = ""
        for step in airflow.follow(pipeline, run, timeout_seconds=RUN_TIMEOUT_SECONDS):
            if isinstance(step, str):
                state = step
            else:
                typer.echo(f"  {step.state:>12}  {step.title}")
        why = airflow.why_failed(pipeline, run) if state != "success" else None
    typer.echo(f"run {state}")
    if state != "success":
        told = why or "open the failed task's log in the Airflow UI"
        raise AlmanacError(f"run {run} of {pipeline} ended {state}: {told}")


def partition_key(as_of: str, schedule: str, now: datetime) -> str:
    """The partition key of a run: `as_of` as it was typed, or the later of the last full hour and the last tick.

    So a run by hand always does for the tick that the schedule asks for.

    Raises:
        UsageError: not a time of that form, or one that is still to come.
    """
    from almanac.clock import floor_hour
    from almanac.errors import UsageError
    from almanac.schedule import tick_before
    from jobs.moments import moment_of

    if not as_of:
        hour, tick = floor_hour(now), tick_before(schedule, now)
        return max(hour, tick or hour).strftime(PARTITION_KEY_FORMAT)
    moment = moment_of("--as-of", as_of)
    if moment > now:
        raise UsageError(f"--as-of {as_of} lies in the future: give a past hour")
    return moment.strftime(PARTITION_KEY_FORMAT)


def materialize(
    pipeline: str,
    since: str = typer.Option(
        "", "--from", help="Oldest event time, as 2026-03-31T06:00Z; default: what is not online yet."
    ),
    until: str = typer.Option("", "--to", help="Newest event time; default: now."),
    full: bool = typer.Option(False, "--full", help="Everything that has not expired, not only what is new."),
) -> None:
    """Bring offline features up, and what is new of them into the online store; a newer row there stays."""
    from almanac.declarations import pipeline as declared
    from almanac.settings import settings
    from jobs.materialize import materialize_by_hand

    typer.echo(materialize_by_hand(declared(pipeline), settings(), since=since, until=until, full=full))
