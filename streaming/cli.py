"""Commands of the stream: `publish`, `dead-letters` and `redrive`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from almanac.pipeline import Interactions

if TYPE_CHECKING:
    from almanac.pipeline import Pipeline
    from streaming.publish import Outgoing, Oversized

RAW_CHARS_SHOWN = 60


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command("publish")(publish)
    app.command("dead-letters")(dead_letters)
    app.command("redrive")(redrive)


def publish(
    name: str = typer.Argument(help="Pipeline.", metavar="PIPELINE"),
    file: str | None = typer.Option(
        None, "--file", "-f", help="JSON lines, one event each; `-`, the default, for stdin."
    ),
    replay: bool = typer.Option(False, "--replay", help="Send the latest observations of the pipeline's source."),
    hours: int = typer.Option(1, "--hours", help="With --replay: hours of observations."),
    rate: float | None = typer.Option(None, "--rate", min=0.001, help="Events a second; default: at once."),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Send at most so many events."),
    check: bool = typer.Option(False, "--check", help="Send nothing if any event is malformed."),
) -> None:
    """Send events to a pipeline's stream and wait until the broker has confirmed them.

    Lines are sent as they are, malformed ones too, unless --check is given.
    """
    from almanac.clock import utc_now
    from almanac.errors import UsageError
    from almanac.settings import settings
    from streaming.publish import check_all
    from streaming.publish import publish as send

    if file is not None and replay:
        raise UsageError("--file and --replay exclude each other: give one")
    if file is None and not replay:
        if sys.stdin.isatty():
            raise UsageError("say what to send: --file FILE, lines on stdin, or --replay")
        file = "-"
    pipeline = _streamed(name)
    settings().need("kafka_bootstrap")
    with _events(pipeline, file, hours) as found:
        events: Iterable[Outgoing | Oversized] = islice(found, limit)
        if check:
            events = check_all(events, pipeline, utc_now())
        with _progress(limit) as progress:
            sent = send(events, pipeline, settings(), rate=rate, progress=progress)
    print(f"{sent} event{'' if sent == 1 else 's'} delivered to {pipeline.stream.topic if pipeline.stream else ''}")


def _streamed(name: str) -> Pipeline:
    """The pipeline, if it has a stream."""
    from almanac.declarations import pipeline
    from almanac.errors import UsageError

    found = pipeline(name)
    if found.stream is None:
        raise UsageError(f"pipeline {name} has no stream: declare stream=Stream(topic=…)")
    return found


@contextmanager
def _events(pipeline: Pipeline, file: str | None, hours: int) -> Iterator[Iterator[Outgoing | Oversized]]:
    from almanac.clock import utc_now
    from almanac.errors import UsageError
    from almanac.settings import settings
    from streaming.publish import from_lines, replayable, replayed

    if file is None and isinstance(pipeline.source, Interactions):
        from features.sources.lines import open_lines
        from streaming.replaying import replayed_baskets

        yield replayed_baskets(pipeline, open_lines(pipeline, settings()), utc_now(), hours)
    elif file is None:
        from features.sources import open_source

        replayable(pipeline)
        yield replayed(pipeline, open_source(pipeline, settings()), utc_now(), hours)
    elif file == "-":
        yield from_lines(sys.stdin.buffer, pipeline)
    else:
        with ExitStack() as stack:
            try:
                opened = stack.enter_context(Path(file).open("rb"))
            except OSError as error:
                raise UsageError(f"{file} cannot be read ({error.strerror}): name a file of JSON lines") from None
            yield from_lines(opened, pipeline)


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (TextColumn("events sent"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda sent: bar.update(task, completed=sent)


def dead_letters(
    name: str = typer.Argument(help="Pipeline.", metavar="PIPELINE"),
    limit: int = typer.Option(20, "--limit", min=1, max=10_000, help="How many, the newest."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable."),
) -> None:
    """List events that could not be handled: why, where they stood, and how they began."""
    from almanac.clock import format_time
    from almanac.output import print_json, print_table
    from almanac.settings import settings
    from streaming.dead_letters import dead_letters as listed

    rows = [
        {
            "at": format_time(found.at),
            "reason": found.letter.reason,
            "message": found.letter.message,
            "topic": found.letter.topic,
            "partition": found.letter.partition,
            "offset": found.letter.offset,
            "key": _text(found.letter.key),
            "raw": _text(found.letter.raw),
        }
        for found in listed(_streamed(name), settings(), limit)
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["at", "reason", "message", "where", "raw"],
        [
            [
                row["at"],
                row["reason"],
                row["message"],
                f"{row['topic']}/{row['partition']}@{row['offset']}",
                str(row["raw"])[:RAW_CHARS_SHOWN],
            ]
            for row in rows
        ],
        title=f"Dead letters of {name}: {len(rows)}",
    )


def redrive(
    name: str = typer.Argument(help="Pipeline.", metavar="PIPELINE"),
    reason: str | None = typer.Option(None, "--reason", help="Only those with this reason."),
    since: str | None = typer.Option(None, "--since", help="Only those since this time, such as 2026-11-21T13:00Z."),
    limit: int = typer.Option(1_000, "--limit", min=1, max=40_000, help="At most so many, the oldest first."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be sent."),
) -> None:
    """Send dead letters again, as the same events: none is counted twice; what fails again is a dead letter again."""
    from collections import Counter

    from almanac.clock import parse_time
    from almanac.errors import UsageError
    from almanac.settings import settings
    from streaming.redrive import Choice, find, unproved
    from streaming.redrive import redrive as send

    pipeline = _streamed(name)
    try:
        moment = None if since is None else parse_time(since)
    except ValueError:
        raise UsageError(f"--since {since!r} is no time with an offset: give one such as 2026-11-21T13:00Z") from None
    found = find(pipeline, settings(), Choice(reason=reason, since=moment, limit=limit))
    chosen = found.chosen
    counts = ", ".join(f"{n} {why}" for why, n in sorted(Counter(each.letter.reason for each in chosen).items()))
    if found.cut:
        print(
            f"{found.cut} more cannot be sent again: they were too large to be kept whole, or do not say where they "
            "stood; `almanac dead-letters` shows how they begin",
            file=sys.stderr,
        )
    if found.unread:
        print(f"{found.unread} older ones were not looked at: together they are too large to be read", file=sys.stderr)
    if without := unproved(chosen):
        print(
            f"{without} of them carry no proof of where they first stood: they count as new events, also when they "
            "are sent a second time",
            file=sys.stderr,
        )
    sent = len(chosen) if dry_run else send(pipeline, settings(), chosen)
    print(
        f"{sent} dead letter{'' if sent == 1 else 's'} {'would be ' if dry_run else ''}sent again to "
        f"{pipeline.stream.topic if pipeline.stream else ''}" + (f": {counts}" if counts else "")
    )


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "backslashreplace")
