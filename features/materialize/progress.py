"""How far a materialization is: a bar for a person at a terminal, a log line now and then for everybody else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
"""Time between two log lines about one run."""


class Progress(Protocol):
    """Is told what a run does."""

    def expect(self, entities: int) -> None:
        """About how many entities the run will write in all."""

    def begin(self, what: str) -> None:
        """What is worked on from now on."""

    def advance(self, entities: int) -> None:
        """So many entities more are written."""


class Lines:
    """Log lines, at most one in `LINE_SECONDS`."""

    def __init__(self) -> None:
        self._total = self._done = 0
        self._what = ""
        self._said = time.monotonic()

    def expect(self, entities: int) -> None:
        """As in `Progress`."""
        self._total = entities

    def begin(self, what: str) -> None:
        """As in `Progress`."""
        self._what = what

    def advance(self, entities: int) -> None:
        """As in `Progress`."""
        self._done += entities
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            log.info("materializing %s: %s of about %s entities", self._what, f"{self._done:,}", f"{self._total:,}")


class _Bar:
    def __init__(self, bar: object, task: object) -> None:
        self._bar, self._task = bar, task

    def expect(self, entities: int) -> None:
        self._bar.update(self._task, total=entities)  # type: ignore[attr-defined]

    def begin(self, what: str) -> None:
        self._bar.update(self._task, description=what)  # type: ignore[attr-defined]

    def advance(self, entities: int) -> None:
        self._bar.advance(self._task, entities)  # type: ignore[attr-defined]


@contextmanager
def shown() -> Iterator[Progress]:
    """A bar on stderr where that is a terminal, log lines otherwise."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task("reading", total=None))
