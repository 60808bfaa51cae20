"""The engine knows no pipeline: what one needs is a capability of the declaration, for all."""

from __future__ import annotations

import re
from pathlib import Path

from almanac.declarations import load_pipelines

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ("almanac", "jobs", "serving_cache", "features", "streaming", "dags")
NAMED_BY_DEMONSTRATIONS = ("almanac/demo",)
"""What shows one pipeline at work knows which; the Feast definitions are a pipeline's own, as its declaration is."""
OWN = ("features/repo", *NAMED_BY_DEMONSTRATIONS)


def test_nothing_in_the_engine_names_a_pipeline() -> None:
    names = "|".join(load_pipelines("pipelines"))
    assert "weather" in names
    assert "shop" in names
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ENGINE
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(OWN)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(names, line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_a_pipeline_of_lists_is_declared_in_thirty_lines() -> None:
    text = (ROOT / "pipelines" / "shop.py").read_text()
    assert len(text[text.index("shop = Pipeline(") :].splitlines()) <= 30
