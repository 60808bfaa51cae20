"""How `almanac up` and `almanac down` say what they are doing: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Reporter(Protocol):
    """What the steps tell their progress to; safe to call from several threads."""

    def begin(self, step: str) -> None:
        """A step has begun."""

    def note(self, step: str, text: str) -> None:
        """Something to know about a step that goes on."""

    def done(self, step: str) -> None:
        """A step has ended well."""

    def say(self, text: str) -> None:
        """A line that stays."""


class Progressing:
    """A context in which steps are shown on stderr: spinners on a terminal, a line for each end elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._began: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<24}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
        )

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def begin(self, step: str) -> None:
        """A step has begun."""
        self._began[step] = time.monotonic()
        if self._live:
            self._tasks[step] = self._progress.add_task(step, total=1, note="")

    def note(self, step: str, text: str) -> None:
        """Something to know about a step that goes on; shown on a terminal alone."""
        if self._live and step in self._tasks:
            self._progress.update(self._tasks[step], note=text)

    def done(self, step: str) -> None:
        """A step has ended well."""
        if self._live:
            self._progress.update(self._tasks[step], completed=1, note="")
        else:
            self._console.print(f"{step}: ready after {time.monotonic() - self._began[step]:.1f} s")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)
