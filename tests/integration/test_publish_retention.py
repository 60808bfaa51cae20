"""What retention drops and keeps, and migrations, on a real Postgres."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import psycopg
import pytest

from almanac.clock import utc_now
from almanac.decisions import STAGED_KEPT
from almanac.errors import DeclarationError, GateError, Superseded, UsageError
from almanac.pipeline import horizons
from serving_cache.layout import table_name, view_name
from serving_cache.migrate import VERSION_TABLE, known_versions, migrate
from serving_cache.postgres import PostgresStore
from serving_cache.records import State
from tests.generations import (
    NOON,
    bucket_pipeline,
    grid_pipeline,
    migrated,
    overlay_of,
    published_generation,
    staged_generation,
    staged_parts,
    start_of,
)

LATER = NOON + timedelta(hours=1)
"""When a generation that was left at noon need no longer be kept for its time."""


def children(people: psycopg.Connection, name: str) -> list[int]:
    """Generations that have a table, attached or not."""
    rows = people.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND starts_with(relname, %s)", (f"{table_name(name)}_g",)
    )
    return sorted(int(row[0].rpartition("_g")[2]) for row in rows)


def idle_since(people: psycopg.Connection, name: str, moment: datetime) -> None:
    """Make the ledger say that nothing was done since: it has the server's clock, retention is given one."""
    people.execute("UPDATE ledger SET updated_at = %s WHERE pipeline = %s", (moment, name))


def test_generations_beyond_those_kept_are_dropped(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(generations_kept=2))
    for value in range(5):
        published_generation(store, pipeline, float(value))
    unfinished = staged_generation(store, pipeline, 9.0)
    assert store.retire(pipeline, now=LATER) == [1, 2]
    assert store.retire(pipeline, now=LATER) == []
    assert children(people, pipeline.name) == [3, 4, 5, 6]
    assert store.manifest(pipeline.name, 2) == {}
    assert len(store.manifest(pipeline.name, 3)) == 16
    assert store.publish(unfinished, pipeline, now=NOON).epoch == 6
    dropped = store.generation(pipeline.name, 1)
    assert dropped is not None
    assert (dropped.dropped_at, dropped.state) == (LATER, State.RETIRED)


def test_rows_that_are_carried_forward_stay(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(generations_kept=1))
    published_generation(store, pipeline, 0.0)
    for value in range(1, 5):
        attempt = store.begin_generation(pipeline, start_of(pipeline, f"run {value}"), now=NOON)
        store.stage(attempt, staged_parts(pipeline, float(value), partitions=range(1, 16)))
        store.publish(attempt, pipeline, now=NOON)
        store.retire(pipeline, now=LATER)
    assert children(people, pipeline.name) == [1, 4, 5]
    assert store.manifest(pipeline.name, 5)[0].origin == 1
    assert len(store.blocks(pipeline, 5, range(16))) == 16
    rows = people.execute(f"SELECT count(*), min(t2m_1h) FROM {view_name(pipeline.name)}").fetchone()
    assert rows == (64, 0.0)
    published_generation(store, pipeline, 6.0)
    published_generation(store, pipeline, 7.0)
    store.retire(pipeline, now=LATER)
    assert children(people, pipeline.name) == [6, 7]


def test_a_reader_is_neither_waited_for_nor_made_to_wait(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving_cache.postgres_retention.DETACH_TIMEOUT_SECONDS", 1)
    pipeline = migrated(postgres_url, grid_pipeline(generations_kept=1))
    for value in range(3):
        published_generation(store, pipeline, float(value))
    with psycopg.connect(postgres_url) as reader:
        reader.execute(f"SELECT count(*) FROM {table_name(pipeline.name)}")  # and now it holds its locks
        assert store.retire(pipeline, now=LATER) == [1]
        assert children(people, pipeline.name) == [1, 2, 3]
        published_generation(store, pipeline, 4.0)  # publishing goes on
        assert people.execute(f"SELECT count(*) FROM {view_name(pipeline.name)}").fetchone() == (64,)
    store.retire(pipeline, now=LATER)
    assert children(people, pipeline.name) == [3, 4]


def test_a_run_that_was_left_unfinished_is_given_up(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = staged_generation(store, pipeline, 1.0)
    idle_since(people, pipeline.name, NOON)
    store.retire(pipeline, now=NOON + STAGED_KEPT)
    assert children(people, pipeline.name) == [1]
    store.retire(pipeline, now=NOON + STAGED_KEPT + timedelta(seconds=1))
    assert children(people, pipeline.name) == []
    with pytest.raises(Superseded):
        store.publish(attempt, pipeline, now=NOON)
    with pytest.raises(GateError, match="unfinished"):
        store.publish(store.take_over(pipeline.name, 1), pipeline, now=NOON)


def test_a_run_that_goes_on_is_not_given_up_however_old_its_generation_is(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    began = utc_now() - STAGED_KEPT - timedelta(hours=1)
    for act in ("resumes", "stages", "quarantines"):
        attempt = store.begin_generation(pipeline, start_of(pipeline, act), now=began)
        store.stage(attempt, staged_parts(pipeline, 1.0, partitions=range(8)))
        idle_since(people, pipeline.name, began)
        if act == "resumes":
            attempt = store.begin_generation(pipeline, start_of(pipeline, act), now=utc_now())
        elif act == "stages":
            store.stage(attempt, staged_parts(pipeline, 1.0, partitions=[8]))
        else:
            store.quarantine(attempt, 8, "bad")
        store.retire(pipeline, now=utc_now())
        assert children(people, pipeline.name) == [attempt.generation], act
        store.stage(attempt, staged_parts(pipeline, 1.0, partitions=range(9, 16)))
        idle_since(people, pipeline.name, began)
        store.retire(pipeline, now=utc_now())
        assert children(people, pipeline.name) == [], act


def test_what_was_decided_in_rejected_generations_is_forgotten_but_of_the_latest(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(generations_kept=2))
    published_generation(store, pipeline, 0.0)
    for value in range(1, 6):
        store.reject(staged_generation(store, pipeline, float(value)), "bad")

    def known() -> dict[int, int]:
        found = people.execute(
            "SELECT generation, count(*) FROM ledger WHERE pipeline = %s GROUP BY generation", (pipeline.name,)
        )
        return dict(found.fetchall())

    assert sorted(known()) == [1, 2, 3, 4, 5, 6]
    assert store.retire(pipeline, now=NOON) == []
    assert known() == dict.fromkeys([1, 4, 5, 6], 16)  # 6 is what the monitor shows
    published_generation(store, pipeline, 7.0)
    unfinished = staged_generation(store, pipeline, 8.0)
    assert store.retire(pipeline, now=NOON) == []
    assert known() == dict.fromkeys([1, 5, 6, 7, 8], 16)
    assert [found.state for found in store.generations(pipeline.name) if found.generation == 2] == [State.REJECTED]
    with pytest.raises(GateError, match="bad"):
        store.publish(store.take_over(pipeline.name, 2), pipeline, now=NOON)
    assert store.publish(unfinished, pipeline, now=NOON).rows == 64


def test_expired_overlays_go(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    store.put_overlays(pipeline.name, [overlay_of("1", NOON, 1), overlay_of("2", NOON - timedelta(days=3), 2)])
    store.retire(pipeline, now=LATER)
    assert [o.entity for o in store.overlays(pipeline.name, "weather-v1", NOON - timedelta(days=9))] == ["1"]


def test_overlays_of_models_that_nobody_comes_back_to_go(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)  # by weather-v1
    now = utc_now()
    models = ("weather-v1", "weather-v2", "weather-v3")
    store.put_overlays(pipeline.name, [overlay_of("1", now, 1, model=model) for model in models])
    with psycopg.connect(postgres_url, autocommit=True) as people:
        people.execute(
            "UPDATE overlay SET written_at = %s WHERE pipeline = %s AND model <> 'weather-v3'",
            (now - timedelta(days=2), pipeline.name),
        )
    store.retire(pipeline, now=now)
    left = [model for model in models if store.overlays(pipeline.name, model, NOON)]
    assert left == ["weather-v1", "weather-v3"]  # a generation is by the first, the alias's model writes still


def test_migrations_at_once_leave_one_schema(postgres_url: str, people: psycopg.Connection) -> None:
    pipelines = [grid_pipeline(), bucket_pipeline()]
    with ThreadPoolExecutor(3) as pool:
        versions = set(pool.map(lambda _: migrate(postgres_url, pipelines), range(3)))
    assert versions == {known_versions()[-1]}
    for pipeline in pipelines:
        assert people.execute("SELECT count(*) FROM pointers WHERE pipeline = %s", (pipeline.name,)).fetchone() == (1,)
        assert people.execute(f"SELECT count(*) FROM {view_name(pipeline.name)}").fetchone() == (0,)


def test_a_gained_output_becomes_a_column_even_of_a_run_under_way(store: PostgresStore, postgres_url: str) -> None:
    old = migrated(postgres_url, grid_pipeline())
    under_way = staged_generation(store, old, 1.0)
    new = grid_pipeline(old.name, outputs=horizons("t2m", hours=(1, 6, 12)))
    migrated(postgres_url, new)
    assert store.publish(under_way, new, now=NOON).rows == 64
    assert store.generation(old.name, 1).outputs == ("t2m_1h", "t2m_6h")  # type: ignore[union-attr]
    assert published_generation(store, new, 2.0).rows == 64
    for generation in (1, 2):
        assert store.blocks(new, generation, range(16))
    migrated(postgres_url, old)  # a lost output's column stays
    assert store.blocks(new, 2, [3])


def test_another_entity_needs_another_name(postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    with pytest.raises(DeclarationError, match="another name"):
        migrated(postgres_url, bucket_pipeline(pipeline.name))
    migrated(postgres_url, pipeline)


@pytest.mark.parametrize("kind", ["TABLE", "VIEW", "partition"])
def test_a_table_that_is_something_else_is_not_taken_for_the_pipelines(
    kind: str, store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = grid_pipeline()
    table = table_name(pipeline.name)
    if kind == "partition":  # declared by a version that let a pipeline have the name of another's generation
        other = migrated(postgres_url, grid_pipeline())
        published_generation(store, other, 1.0)
        object.__setattr__(pipeline, "name", f"{other.name}_g1")
        table = f"{table_name(other.name)}_g1"
        assert table == table_name(pipeline.name)
    else:
        people.execute(f"CREATE {kind} {table} AS SELECT 1 AS generation, 1 AS partition, 1::bigint AS cell_id")
    with pytest.raises(DeclarationError, match=rf"pipeline {pipeline.name}: .*has {table} already.*another name"):
        migrated(postgres_url, pipeline)
    assert people.execute("SELECT 1 FROM pointers WHERE pipeline = %s", (pipeline.name,)).fetchone() is None


def test_an_unmigrated_database_says_what_to_do(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS bare")
    elsewhere = f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-csearch_path%3Dbare"
    with psycopg.connect(elsewhere) as probe:
        assert probe.execute("SHOW search_path").fetchone() == ("bare",)
    with PostgresStore(elsewhere) as store, pytest.raises(UsageError, match=r"serving_cache\.migrate"):
        store.generations("weather")


def test_a_database_of_a_newer_version_is_left_alone(postgres_url: str, people: psycopg.Connection) -> None:
    newest = migrate(postgres_url, [])
    people.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    try:
        with pytest.raises(UsageError, match="upgrade Almanac"):
            migrate(postgres_url, [])
    finally:
        people.execute(f"UPDATE {VERSION_TABLE} SET version_num = %s", (newest,))
