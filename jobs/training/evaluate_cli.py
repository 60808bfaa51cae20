"""The command `almanac evaluate`: how good the lists of a registered model are on a time that it has not seen."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    pipeline: str,
    holdout: str = typer.Option(
        "", help="Measure the newest 30d, 720h, …; default: what the model's training held out."
    ),
    model: str = typer.Option("", help="A version or alias, such as bikes@3; default: the declared one."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable; no progress."),
) -> None:
    """Measure recall and NDCG of a model's lists, nightly and as of each basket, beside lists without a model."""
    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.output import print_json
    from almanac.settings import settings
    from jobs.training.evaluate_lists import evaluate_lists, span_of
    from jobs.training.models_cli import print_lists

    def progress(step: str) -> None:
        if not as_json:
            typer.echo(f"{pipeline}: {step}", err=True)

    found = evaluate_lists(
        declared(pipeline),
        settings(),
        model=model,
        holdout=span_of(holdout) if holdout else None,
        now=utc_now(),
        progress=progress,
    )
    if as_json:
        print_json(found.as_dict())
        return
    print_lists(found.model_id, found.lists, found.start, found.end)
    if found.warning:
        typer.echo(found.warning, err=True)
