"""The page of what is taken, converted or refused says what the code does."""

from __future__ import annotations

import re

import pytest

from tests.compatibility.tables import OTHER_WRITERS, PAGE, rendered, section, tables
from tests.public_files.files import FILES

TABLES = tables()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_its_cases_do(name: str) -> None:
    assert section(PAGE.read_text(), name) == rendered(TABLES[name]), "run: python -m tests.compatibility --write"


def test_each_table_of_the_page_is_made_of_cases() -> None:
    assert sorted(re.findall(r"<!-- table (\w+):", PAGE.read_text())) == sorted([*TABLES, *OTHER_WRITERS])


def test_the_page_says_what_came_of_each_public_file() -> None:
    """What came of it is checked by `make public-files`, which needs a package index."""
    rows = section(PAGE.read_text(), "public_files").splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [one.given for one in FILES]
    words = [row.split(" | ")[1] for row in rows]
    assert set(words) == {"taken", "refused"}
    assert len(rows) >= 30
    assert words.count("taken") >= 15


@pytest.mark.parametrize("name", TABLES)
def test_no_case_stands_twice(name: str) -> None:
    given = [case.given for case in TABLES[name].cases]
    assert len(set(given)) == len(given)
