"""`almanac generations`, `rollback` and `rebuild`, as a person runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from almanac.cli import main
from almanac.declarations import pipelines
from almanac.errors import GateError
from almanac.settings import settings
from jobs.stages import stage
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from tests.generations import grid_pipeline, migrated, new_name, published_generation, staged_parts, start_of
from tests.integration.test_reconciler import DECLARATION

Command = Callable[..., str]


@pytest.fixture
def name() -> str:
    return new_name()


@pytest.fixture
def almanac(
    name: str,
    postgres_url: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Command]:
    """Runs a command; returns what it printed, errors after `error: `."""
    declaration = tmp_path / "declared.py"
    declaration.write_text(DECLARATION.format(name=name))
    monkeypatch.setenv("ALMANAC_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("ALMANAC_REDIS_URL", redis_url)
    monkeypatch.setenv("ALMANAC_PIPELINES", str(declaration))
    monkeypatch.setenv("ALMANAC_STATE_DIR", str(tmp_path))
    settings.cache_clear()
    pipelines.cache_clear()

    def run(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed.err
        return printed.out + (f"error: {printed.err}" if printed.err else "")

    yield run
    settings.cache_clear()
    pipelines.cache_clear()


def test_generations_are_listed(almanac: Command, name: str, postgres_url: str, people: psycopg.Connection) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(name))
    assert "no generation yet" in almanac("generations", name)
    assert json.loads(almanac("generations", name, "--json")) == []
    with PostgresStore(postgres_url) as store:
        published_generation(store, pipeline, 1.0)
        store.begin_generation(pipeline, start_of(pipeline, "other"), now=start_of(pipeline, "x").as_of)
    second, first = json.loads(almanac("generations", name, "--json"))
    assert (first["generation"], first["state"], first["epoch"], first["coverage"], first["rows"]) == (
        1,
        "current",
        1,
        1.0,
        64,
    )
    assert first["as_of"] == "2026-03-01T12:00:00Z"
    assert first["age_seconds"] > 0
    assert (second["state"], second["published_at"]) == ("staged", None)
    table = almanac("generations", name)
    assert "current" in table
    assert "weather-v1" in table
    assert "100.0%" in table
    assert "03-01T12:00Z" in table
    people.execute("UPDATE generations SET alert = 'it is too warm' WHERE pipeline = %s AND generation = 1", (name,))
    assert "generation 1 was unusual when it was published: it is too warm" in almanac("generations", name)


def test_rollback_and_rebuild(almanac: Command, name: str, postgres_url: str, redis_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(name))
    assert "nothing published" in almanac("rebuild", name)
    assert "published nothing yet" in almanac("rollback", name, code=2)
    with PostgresStore(postgres_url) as store, RedisStore(redis_url) as cache:
        published_generation(store, pipeline, 1.0)
        published_generation(store, pipeline, 2.0)
        for to, why in (("99", "has no generation 99"), ("2", "is current already")):
            said = almanac("rollback", name, "--to", to, code=2)
            assert why in said
            assert said.count("\n") == 1
        assert "generation 1, epoch 3" in almanac("rollback", name)
        table = almanac("generations", name)
        assert "generation 2 was rolled back: nothing is published over that" in table
        assert cache.pointer(name) == store.pointer(name)
        cache.clear(name)
        assert "generation 1, epoch 3" in almanac("rebuild", name)
        assert cache.pointer(name) == store.pointer(name)
        assert "is published over" not in almanac("rollback", name, "--to", "2")  # undone: nothing holds any more


def test_rollback_works_without_redis(
    almanac: Command, name: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(name))
    with PostgresStore(postgres_url) as store:
        published_generation(store, pipeline, 1.0)
        attempt = store.begin_generation(pipeline, start_of(pipeline, "two"), now=start_of(pipeline, "x").as_of)
        store.stage(attempt, staged_parts(pipeline, 2.0))
        store.publish(attempt, pipeline, now=start_of(pipeline, "x").as_of)
    monkeypatch.setenv("ALMANAC_REDIS_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    said = almanac("rollback", name)
    assert "generation 1, epoch 3" in said
    assert "Redis follows later" in said
    assert "did not answer" in almanac("rebuild", name, code=6)


def test_stages_of_a_generation_are_shown(almanac: Command, name: str, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(name))
    with PostgresStore(postgres_url) as store:
        number = published_generation(store, pipeline, 1.0).generation
    with pytest.raises(GateError), stage("gate_features", name, settings(), generation=number):
        raise GateError("half of it is missing")
    (found,) = json.loads(almanac("generations", name, "--stages", str(number), "--json"))
    assert (found["stage"], found["outcome"], found["reason"]) == (
        "gate_features",
        "GateError",
        "half of it is missing",
    )
    assert "gate_features" in almanac("generations", name, "--stages", str(number))
    assert "no generation 99" in almanac("generations", name, "--stages", "99", code=2)


def test_unknown_pipelines_and_servers_are_named(almanac: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for command in ("generations", "rollback", "rebuild"):
        said = almanac(command, "nope", code=2)
        assert "nope" in said
        assert said.count("\n") == 1
    monkeypatch.setenv("ALMANAC_POSTGRES_URL", "postgresql://127.0.0.1:1/almanac")
    settings.cache_clear()
    said = almanac("generations", name, code=6)
    assert "127.0.0.1:1" in said
    assert said.count("\n") == 1
