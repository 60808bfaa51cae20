"""`almanac plan`: what a run would do and why, without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from jobs.preview import PartitionPlan, Preview


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


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
    return (
        f"{scored} of {len(made.partitions)} partitions would be scored: {made.rows:,} rows in "
        f"{made.shards} shard{'' if made.shards == 1 else 's'}, {cost}; nothing was run"
    )


def _label(group: list[PartitionPlan]) -> str:
    return group[0].label if len(group) == 1 else f"{group[0].label} … {group[-1].label} ({len(group)})"


def _rows(group: list[PartitionPlan]) -> str | None:
    rows = [plan.rows for plan in group if plan.rows is not None]
    return f"{sum(rows):,}" if rows else None
