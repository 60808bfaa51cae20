"""The page on adding a pipeline: what it shows is short, whole, and accepted."""

from __future__ import annotations

import ast
from pathlib import Path

from almanac.declarations import load_pipelines
from almanac.partitioning import Buckets
from tests import guide

LINES_MAX = 30


def test_the_declaration_has_at_most_thirty_lines() -> None:
    lines = [line for line in guide.shown()["bikes.py"].splitlines() if line.strip()]
    assert 10 < len(lines) <= LINES_MAX


def test_every_file_is_python() -> None:
    files = guide.shown()
    assert set(files) == {"make_data.py", "feast_bikes.py", "bikes.py"}
    for name, text in files.items():
        ast.parse(text, name)


def test_the_declaration_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "bikes.py"
    path.write_text(guide.shown()["bikes.py"])
    (bikes,) = load_pipelines(str(path)).values()
    assert isinstance(bikes.partitions, Buckets)
    assert bikes.source is None
    assert bikes.event_values == {"rides": (0, 1000), "open": bool}
