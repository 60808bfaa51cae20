"""The page of what is trusted names tests and fuzzers that exist, and every fuzzer."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from tests.fuzz import doors

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "trust.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_[a-z0-9_]+\.py)(?:::(test_[a-z0-9_]+))?`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=["::".join(named) for named in NAMED])
def test_each_test_that_the_page_names_exists(file: str, test: str) -> None:
    places = list((ROOT / "tests").rglob(file))
    assert places
    assert not test or any(f"def {test}(" in path.read_text() for path in places)


def test_every_fuzzer_stands_in_the_page_and_none_that_is_not_there() -> None:
    there = {module.name for module in pkgutil.iter_modules(doors.__path__)}
    assert set(re.findall(r"fuzzer `([a-z_]+)`", PAGE)) == there
