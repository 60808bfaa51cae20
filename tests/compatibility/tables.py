"""Tables of docs/compatibility.md: each row runs the project's own code, and its cell says what came of it.

A table is a module of `tests.compatibility.cases` with a `TABLE`. An attempt gives `Taken` or `Converted`, or raises
one of Almanac's errors, whose message is the cell. Any other exception is a fault of the project.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from almanac.errors import AlmanacError
from features.declared_types import Misfit
from tests.compatibility import cases

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
MESSAGE_SHOWN_MAX = 320
"""Characters of a message in the page."""
START, END = "<!-- table {name}: written by `python -m {writer} --write` -->", "<!-- end {name} -->"
WRITER = "tests.compatibility"
OTHER_WRITERS = {"public_files": "tests.public_files"}
"""Tables whose rows are not cases: what makes them needs a package index."""


@dataclass(frozen=True)
class Taken:
    """What was given is used as it is."""

    as_what: str = ""


@dataclass(frozen=True)
class Converted:
    """What was given is used as something equal."""

    to: str


@dataclass(frozen=True)
class Case:
    """One thing that somebody brings.

    Attributes:
        given: it, as Markdown.
        attempt: runs the project's own code over it.
    """

    given: str
    attempt: Callable[[], Taken | Converted]


@dataclass(frozen=True)
class Table:
    """Cases of one kind; `given` is the first column's heading."""

    given: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `taken`, `converted` or `refused`, and the message or the value."""

    word: str
    says: str


def outcome(case: Case) -> Outcome:
    """Run one case."""
    try:
        answer = case.attempt()
    except (AlmanacError, Misfit) as error:
        return Outcome("refused", _message(str(error)))
    if isinstance(answer, Converted):
        return Outcome("converted", answer.to)
    return Outcome("taken", answer.as_what)


def tables() -> dict[str, Table]:
    """Each table by its name, as the modules of `cases` define them."""
    names = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
    return {name: importlib.import_module(f"{cases.__name__}.{name}").TABLE for name in names}


def rendered(table: Table) -> str:
    """The table in Markdown, each row from a run."""
    lines = [f"| {table.given} | | as what, or the message |", "|---|---|---|"]
    for case in table.cases:
        came = outcome(case)
        lines.append(f"| {case.given} | {came.word} | {came.says} |")
    return "\n".join(lines)


def section(page: str, name: str) -> str:
    """What stands in the page between a table's marks; empty if it has none."""
    start, end = START.format(name=name, writer=OTHER_WRITERS.get(name, WRITER)), END.format(name=name)
    if page.count(start) != 1 or page.count(end) != 1:
        return ""
    return page.split(start, 1)[1].split(end, 1)[0].strip()


def with_section(page: str, name: str, table: str) -> str:
    """The page with another table between these marks.

    Raises:
        ValueError: the page has no such marks.
    """
    start, end = START.format(name=name, writer=OTHER_WRITERS.get(name, WRITER)), END.format(name=name)
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"{PAGE.name} needs these two lines once, around table {name}: {start} and {end}")
    before, rest = page.split(start, 1)
    return f"{before}{start}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"


def cell(text: str) -> str:
    """Text as Markdown's cell of a table shows it: code, without a line's end or a bar that would end it."""
    plain = text.replace("\n", " ").replace("|", "\\|")
    ticks = "``" if "`" in plain else "`"
    space = " " if "`" in plain else ""
    return f"{ticks}{space}{plain}{space}{ticks}"


def _message(text: str) -> str:
    """A message without the folders of this run, within its limit."""
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s:,'\"]*/", "", text)
    return cell(text if len(text) <= MESSAGE_SHOWN_MAX else text[:MESSAGE_SHOWN_MAX] + "…")
