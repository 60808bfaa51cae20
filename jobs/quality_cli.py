"""Commands about outcomes: `outcomes`, `quality`, `rehearse`."""

from __future__ import annotations

from pathlib import Path

import typer

REHEARSED_HOURS = 8


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("outcomes")(outcomes)
    app.command("quality")(quality)
    app.command("rehearse")(rehearse)


def outcomes(pipeline: str) -> None:
    """Compare what was served with what has been observed since, as each batch run does."""
    from almanac.clock import format_time, utc_now
    from almanac.declarations import pipeline as declared
    from almanac.settings import settings
    from jobs.outcomes import compute

    found = declared(pipeline)
    done = compute(found, settings(), cutoff=utc_now())
    through = "nothing is settled yet" if done.through is None else f"settled up to {format_time(done.through)}"
    typer.echo(f"{done.outcomes:,} outcomes of {found.name}; {through}")


def quality(
    pipeline: str,
    since: str = typer.Option("", help="Only moments from then on: 2026-11-21T06:00Z, or 90m, 24h, 7d ago."),
    plot: Path | None = typer.Option(None, help="Write the plot to this SVG file as well."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable."),
) -> None:
    """Show the error of what was served: stream beside the batch it stood in for, and each source by itself."""
    from almanac.clock import format_time, utc_now
    from almanac.declarations import pipeline as declared
    from almanac.errors import UsageError
    from almanac.output import print_json
    from almanac.settings import settings
    from jobs import quality_report as report
    from serving_cache.prediction_log import PredictionLog

    found = declared(pipeline)
    if plot is not None and plot.suffix != ".svg":
        raise UsageError(f"--plot {plot} is no SVG file: give a name that ends in .svg")
    start = report.since(since, utc_now())
    with PredictionLog(settings().need("postgres_url")) as log:
        errors, progress = log.errors(found.name, start), log.progress(found)
    if as_json:
        print_json(
            {
                "pipeline": found.name,
                "paired": report.paired_rows(found, errors),
                "sources": report.source_rows(found, errors),
                "settled_through": None if progress.settled is None else format_time(progress.settled),
                "logged": progress.logged,
                "next_due": None if progress.next_due is None else format_time(progress.next_due),
            }
        )
    elif not errors:
        typer.echo(report.nothing_yet(found, progress))
    else:
        report.print_report(found, errors, progress)
    if plot is not None and errors:
        try:
            report.draw(plot, found, errors)
        except OSError as error:
            raise UsageError(f"--plot {plot} cannot be written ({error.strerror}): give another place") from None


def rehearse(
    pipeline: str,
    hours: int = typer.Option(REHEARSED_HOURS, min=2, help="How many hours back to begin."),
    until: int = typer.Option(0, min=0, help="How many hours back to end: the last events are of that hour."),
) -> None:
    """Go through the last hours as they happened, batch and events in turn, on a store that serves nothing newer."""
    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.settings import settings
    from jobs.rehearse import rehearse as go_through

    go_through(declared(pipeline), settings(), hours=hours, until=until, now=utc_now(), progress=typer.echo)
