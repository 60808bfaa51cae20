"""The page of what is taken, converted or refused says what the code does."""

from __future__ import annotations

import re

import pytest

from tests.compatibility.tables import PAGE, rendered, section, tables

TABLES = tables()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_its_cases_do(name: str) -> None:
    assert section(PAGE.read_text(), name) == rendered(TABLES[name]), "run: python -m tests.compatibility --write"


def test_each_table_of_the_page_is_made_of_cases() -> None:
    assert sorted(re.findall(r"<!-- table (\w+):", PAGE.read_text())) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_no_case_stands_twice(name: str) -> None:
    given = [case.given for case in TABLES[name].cases]
    assert len(set(given)) == len(given)
