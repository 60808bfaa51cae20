"""Commands of the batch side: `pipelines`, `trigger`, and those of models."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    from jobs import models_cli

    app.command("pipelines")(list_pipelines)
    models_cli.register(app)


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
