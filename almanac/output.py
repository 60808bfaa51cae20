"""What commands print: a table for a person, JSON for a script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from almanac.plain_text import plain, plain_json


def print_json(value: Any) -> None:
    """One JSON document on stdout; times and other objects as text."""
    print(plain_json(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """A table as wide as its terminal; 120 columns where there is none. No cell is read as markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    headings = [Column(Text(plain(column))) for column in columns]
    heading = None if title is None else Text(plain(title))
    table = Table(*headings, title=heading, box=box.SIMPLE_HEAD, title_justify="left")
    for row in rows:
        table.add_row(*(Text("–" if value is None else plain(str(value))) for value in row))
    console.print(table)
