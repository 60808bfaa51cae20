"""Opening a registry takes one connection; nothing is kept afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from features.store_pool import SparingPool, one_connection


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[Engine, list[str]]]:
    """A database behind the pool, and what became of its connections."""
    engine = create_engine(f"sqlite:///{tmp_path / 'registry.db'}", poolclass=SparingPool)
    seen: list[str] = []
    event.listen(engine, "connect", lambda *_: seen.append("opened"))
    event.listen(engine, "close", lambda *_: seen.append("closed"))
    yield engine, seen
    engine.dispose()


def ask(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(text("SELECT 1")).scalar()


def test_each_question_has_a_connection_of_its_own(registry: tuple[Engine, list[str]]) -> None:
    engine, seen = registry
    assert [ask(engine), ask(engine)] == [1, 1]
    assert seen == ["opened", "closed"] * 2


def test_questions_that_belong_together_share_one_which_is_closed_at_the_end(
    registry: tuple[Engine, list[str]],
) -> None:
    engine, seen = registry
    with one_connection():
        assert [ask(engine), ask(engine)] == [1, 1]
        with one_connection():
            assert ask(engine) == 1
        assert seen == ["opened"]
        with engine.connect() as first, engine.connect() as second:  # two at once are two
            assert [one.execute(text("SELECT 1")).scalar() for one in (first, second)] == [1, 1]
        assert seen == ["opened", "opened", "closed"]
    assert seen == ["opened", "opened", "closed", "closed"]
    assert ask(engine) == 1
    assert seen[4:] == ["opened", "closed"]


def test_an_error_closes_it_too(registry: tuple[Engine, list[str]]) -> None:
    engine, seen = registry

    def fail() -> None:
        with one_connection():
            ask(engine)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert seen == ["opened", "closed"]
