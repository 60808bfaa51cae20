"""Two retentions of one pipeline at once, and drops that fail, on a real Postgres."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from almanac.pipeline import Pipeline
from serving_cache import postgres_retention
from serving_cache.layout import child_name, table_name
from serving_cache.postgres import PostgresStore
from tests.generations import NOON, grid_pipeline, migrated, published_generation
from tests.streams import eventually

LATER = NOON + timedelta(days=20)
PATIENCE_SECONDS = 30
DETACHING = """
SELECT 1 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhdetachpending AND c.relname = %s
"""


@pytest.fixture
def pipeline(store: PostgresStore, postgres_url: str) -> Pipeline:
    """Four generations, two of which retention lets go."""
    found = migrated(postgres_url, grid_pipeline(generations_kept=1))
    for day in range(4):
        published_generation(store, found, float(day), NOON + timedelta(days=day))
    return found


def tables(people: psycopg.Connection, pipeline: Pipeline) -> list[int]:
    """Generations that have a table."""
    rows = people.execute(
        "SELECT n FROM generate_series(1, 9) AS n WHERE to_regclass(%s || n) IS NOT NULL ORDER BY n",
        (child_name(pipeline.name, 0)[:-1],),
    )
    return [row[0] for row in rows]


def test_a_second_retention_leaves_the_drops_to_the_first(
    pipeline: Pipeline, store: PostgresStore, people: psycopg.Connection, postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="serving_cache.postgres_retention")
    with (
        PostgresStore(postgres_url) as other,
        psycopg.connect(postgres_url) as reader,
        ThreadPoolExecutor(1) as pool,
    ):
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute(f"SELECT count(*) FROM {table_name(pipeline.name)}")  # the detach waits for this reader
        first = pool.submit(store.retire, pipeline, now=LATER)
        eventually(lambda: people.execute(DETACHING, (child_name(pipeline.name, 1),)).fetchone() is not None)
        assert other.retire(pipeline, now=LATER) == []
        assert tables(people, pipeline) == [1, 2, 3, 4]
        assert not first.done()
        assert "somebody else" in caplog.text
        reader.rollback()
        assert first.result(PATIENCE_SECONDS) == [1, 2]
        assert tables(people, pipeline) == [3, 4]
        assert "kept table=" not in caplog.text
        for value in (5.0, 6.0):
            published_generation(other, pipeline, value, NOON + timedelta(days=9))
        assert other.retire(pipeline, now=LATER) == [3, 4]
        assert tables(people, pipeline) == [5, 6]  # nobody is held off any more


def test_a_drop_that_is_refused_fails_no_publish_and_is_tried_again(
    pipeline: Pipeline, store: PostgresStore, people: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="serving_cache.postgres_retention")
    child = child_name(pipeline.name, 1)
    people.execute(f"CREATE VIEW kept_by_{child} AS SELECT * FROM {child}")  # DROP TABLE refuses: that is no outage
    assert store.retire(pipeline, now=LATER) == [1, 2]
    assert tables(people, pipeline) == [1, 3, 4]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"kept table={child} for now" in caplog.text
    people.execute(f"DROP VIEW kept_by_{child}")
    assert store.retire(pipeline, now=LATER) == []
    assert tables(people, pipeline) == [3, 4]


def test_the_lock_is_let_go_even_where_the_connection_broke(
    pipeline: Pipeline, store: PostgresStore, people: psycopg.Connection, postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real = PostgresStore._drop

    def broken(self: PostgresStore, name: str, generation: int) -> None:
        with self._client.session() as connection:
            people.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        real(self, name, generation)

    monkeypatch.setattr(postgres_retention.Retention, "_drop", broken)
    assert store.retire(pipeline, now=LATER) == [1, 2]
    monkeypatch.undo()
    with PostgresStore(postgres_url) as other:
        assert other.retire(pipeline, now=LATER) == []
    assert tables(people, pipeline) == [3, 4]
