"""`almanac plan`: what a run would do and why, without running anything; `almanac backfill`: runs for the past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from jobs.preview import PartitionPlan, Preview


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("plan")(plan)
    app.command("backfill")(backfill)


def plan(
    pipeline: str,
    as_of: str = typer.Option("", help="Partition key in UTC, such as 2026-03-31T06:00Z; default: now."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable, a record for each partition."),
) -> None:
    """Say for each partition what a run would do and why, and what it would cost; nothing is run."""
    from almanac.clock import format_time, utc_now
    from almanac.declarations import pipeline as declared
    from almanac.output import print_json, print_table
    from almanac.settings import settings
    from jobs.moments import moment_of
    from jobs.preview import preview

    found, now = declared(pipeline), utc_now()
    cutoff = moment_of("--as-of", as_of) if as_of else now
    made = preview(found, settings(), cutoff=cutoff, now=now)
    if as_json:
        print_json(to_json(made))
        return
    print_table(
        ["partitions", "rows", "what", "why"],
        [[_label(group), _rows(group), group[0].action, group[0].reason] for group in grouped(made)],
        title=f"{made.pipeline} as of {format_time(made.as_of)} by {made.model}",
    )
    typer.echo(summary(made))


def backfill(
    pipeline: str,
    since: str = typer.Option(..., "--from", help="First partition key in UTC, such as 2026-03-31T06:00Z."),
    until: str = typer.Option(..., "--to", help="Last partition key; included."),
    dry_run: bool = typer.Option(False, "--dry-run", help="List what is missing and what it would cost; run nothing."),
    as_json: bool = typer.Option(False, "--json", help="With --dry-run: machine-readable."),
) -> None:
    """Make the generations that are missing in a past time, through Airflow; they are archived, never current."""
    from almanac.airflow_api import AirflowApi
    from almanac.clock import PARTITION_KEY_FORMAT, utc_now
    from almanac.declarations import pipeline as declared
    from almanac.errors import AlmanacError, UsageError
    from almanac.output import print_json, print_table
    from almanac.settings import settings
    from jobs.backfill import look, run
    from jobs.moments import moment_of

    found, now = declared(pipeline), utc_now()
    first, last = moment_of("--from", since), moment_of("--to", until)
    if as_json and not dry_run:
        raise UsageError("--json tells what is missing: give --dry-run with it")
    asked = look(found, settings(), first=first, last=last, now=now)
    if as_json:
        print_json({**asdict(asked), "missing": asked.missing})
        return
    print_table(
        ["partition key", "generation", "state"],
        [[tick.at.strftime(PARTITION_KEY_FORMAT), tick.generation, tick.state or "missing"] for tick in asked.ticks],
    )
    cost = "its cost is known after the first run" if asked.seconds is None else f"about {asked.seconds:.0f} s"
    typer.echo(
        f"{len(asked.missing)} of {len(asked.ticks)} generations are missing: about {asked.rows:,} rows each, {cost}"
    )
    if dry_run or not asked.missing:
        return
    with AirflowApi(settings()) as airflow:
        if airflow.is_paused(found.name):
            typer.echo(f"the DAG {found.name} is paused: the runs wait until somebody unpauses it", err=True)
        done = 0
        for tick in run(found, settings(), airflow, asked):
            done += 1
            key = tick.at.strftime(PARTITION_KEY_FORMAT)
            typer.echo(f"  {done}/{len(asked.missing)}  {key}  generation {tick.generation} {tick.state}")
    if done < len(asked.missing):
        raise AlmanacError(
            f"{len(asked.missing) - done} of {len(asked.missing)} generations are still missing: see the failed runs "
            "of the backfill in the Airflow UI, then run the same command again"
        )


def to_json(made: Preview) -> dict[str, Any]:
    """The preview as plain values; times are text."""
    return asdict(made)


def grouped(made: Preview) -> Iterator[list[PartitionPlan]]:
    """Neighbouring partitions that meet the same fate for the same reason."""
    for _, group in groupby(made.partitions, key=lambda plan: (plan.action, plan.reason)):
        yield list(group)


def summary(made: Preview) -> str:
    """One line: how much would be scored, and for how long."""
    scored = sum(plan.action == "score" for plan in made.partitions)
    cost = "its cost is known after the first run" if made.seconds is None else f"about {made.seconds:.1f} s"
    share = "" if made.scored >= 1 else f", {made.scored:.1%} of them scored if as many change as for the last run"
    return (
        f"{scored} of {len(made.partitions)} partitions would be scored: {made.rows:,} rows in "
        f"{made.shards} shard{'' if made.shards == 1 else 's'}{share}, {cost}; nothing was run"
    )


def _label(group: list[PartitionPlan]) -> str:
    return group[0].label if len(group) == 1 else f"{group[0].label} … {group[-1].label} ({len(group)})"


def _rows(group: list[PartitionPlan]) -> str | None:
    rows = [plan.rows for plan in group if plan.rows is not None]
    return f"{sum(rows):,}" if rows else None
