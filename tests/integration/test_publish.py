"""Publishing on a real Postgres: fencing, coverage, carry-forward, archive, rollback, retention."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest

from almanac.blocks import Block
from almanac.clock import HOUR
from almanac.errors import BlockError, GateError, PredictionError, Superseded, UsageError
from almanac.partitioning import Grid
from almanac.pipeline import horizons
from serving_cache.layout import child_name, view_name
from serving_cache.postgres import PostgresStore
from serving_cache.records import Attempt, StagedPartition, State
from tests.generations import (
    NOON,
    block_of,
    grid_pipeline,
    migrated,
    published_generation,
    staged_generation,
    staged_parts,
    start_of,
)


def begin(store: PostgresStore, pipeline, run_key: str = "run", **changes) -> Attempt:  # type: ignore[no-untyped-def]
    return store.begin_generation(pipeline, start_of(pipeline, run_key, **changes), now=NOON)


def states(store: PostgresStore, name: str) -> dict[int, str]:
    return {record.generation: record.state.value for record in store.generations(name)}


def test_a_retry_resumes_and_scores_only_the_rest(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    first = begin(store, pipeline)
    assert store.pending(first, [3, 2, 1]) == [3, 2, 1]
    assert store.stage(first, staged_parts(pipeline, 1.0, partitions=[1, 2])) == [1, 2]
    retry = begin(store, pipeline)
    assert (retry.generation, retry.token) == (first.generation, first.token + 1)
    assert store.pending(retry, [3, 2, 1]) == [3]
    assert store.stage(retry, staged_parts(pipeline, 9.0, partitions=[1, 2, 3])) == [3]
    rows = store.staged_rows(retry)
    assert rows.column_names == ["partition", "cell_id", "t2m_1h", "t2m_6h"]
    assert rows.num_rows == 12
    assert sorted(set(zip(*(rows.column(c).to_pylist() for c in ("partition", "t2m_1h")), strict=True))) == [
        (1, 1.0),
        (2, 1.0),
        (3, 9.0),
    ]


def test_a_retry_with_other_inputs_does_not_mix_them(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    first = begin(store, pipeline)
    store.stage(first, staged_parts(pipeline, 1.0))
    second = begin(store, pipeline, model="weather-v2", model_hash="1" * 64)
    assert second.generation == first.generation + 1
    assert states(store, pipeline.name) == {1: "rejected", 2: "staged"}
    with pytest.raises(GateError, match="planned anew"):
        store.publish(first, pipeline, now=NOON)


def test_a_finished_run_key_opens_a_new_generation(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    again = store.begin_generation(pipeline, start_of(pipeline, f"run 1.0 {NOON}"), now=NOON)
    assert again.generation == 2


def test_a_zombie_changes_nothing(store: PostgresStore, people: psycopg.Connection, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    zombie = begin(store, pipeline)
    store.stage(zombie, staged_parts(pipeline, 1.0, partitions=[0]))
    heir = store.take_over(pipeline.name, zombie.generation)

    def ledger() -> list[tuple[object, ...]]:
        return people.execute(
            "SELECT * FROM ledger WHERE pipeline = %s ORDER BY partition", (pipeline.name,)
        ).fetchall()

    before = ledger(), store.staged_rows(heir)
    for attempt in (
        lambda: store.pending(zombie, [1]),
        lambda: store.stage(zombie, staged_parts(pipeline, 2.0, partitions=[1])),
        lambda: store.quarantine(zombie, 0, "bad"),
        lambda: store.reject(zombie, "bad"),
        lambda: store.staged_rows(zombie),
        lambda: store.publish(zombie, pipeline, now=NOON),
    ):
        with pytest.raises(Superseded, match="taken over"):
            attempt()
    after = ledger(), store.staged_rows(heir)
    assert after[0] == before[0]
    assert after[1].equals(before[1])
    assert store.pointer(pipeline.name) is None


def test_two_attempts_at_once_stage_each_partition_once(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = begin(store, pipeline)

    def stage(value: float) -> list[int]:
        with PostgresStore(postgres_url) as own:
            return own.stage(attempt, staged_parts(pipeline, value))

    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(stage, [1.0, 2.0, 3.0, 4.0]))
    assert sorted(partition for part in claimed for partition in part) == list(range(16))
    assert store.staged_rows(attempt).num_rows == 64
    assert store.publish(attempt, pipeline, now=NOON).coverage == 1.0
    store.blocks(pipeline, 1, range(16))  # rows and hashes agree


def test_publishing_twice_is_publishing_once(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = staged_generation(store, pipeline, 1.0)
    first = store.publish(attempt, pipeline, now=NOON)
    assert store.publish(attempt, pipeline, now=NOON + HOUR) == first
    later = published_generation(store, pipeline, 2.0)
    heir = store.take_over(pipeline.name, 1)
    assert store.publish(heir, pipeline, now=NOON + HOUR) == first
    pointer = store.pointer(pipeline.name)
    assert pointer is not None
    assert (pointer.epoch, pointer.generation.generation) == (2, later.generation)
    with pytest.raises(Superseded):
        store.publish(attempt, pipeline, now=NOON)
    with pytest.raises(UsageError, match="nothing is added"):
        store.stage(heir, staged_parts(pipeline, 2.0))


def test_publications_at_once_take_turns(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempts = [staged_generation(store, pipeline, float(n)) for n in range(5)]

    def publish(attempt: Attempt) -> int | None:
        with PostgresStore(postgres_url) as own:
            return own.publish(attempt, pipeline, now=NOON).epoch

    with ThreadPoolExecutor(5) as pool:
        epochs = list(pool.map(publish, attempts))
    assert sorted(epochs) == [1, 2, 3, 4, 5]  # type: ignore[type-var]
    assert sorted(states(store, pipeline.name).values()) == ["current", "previous", "previous", "previous", "previous"]


def test_below_coverage_the_current_generation_stays(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline(coverage_min=0.75))
    published_generation(store, pipeline, 1.0)
    before = store.pointer(pipeline.name)
    attempt = begin(store, pipeline, "poor")
    store.stage(attempt, staged_parts(pipeline, 2.0, partitions=range(11)))
    for _ in range(2):
        with pytest.raises(GateError, match=r"covers 11 of 16 partitions, below coverage_min 0\.75"):
            store.publish(attempt, pipeline, now=NOON)
    assert store.pointer(pipeline.name) == before
    record = store.generation(pipeline.name, 2)
    assert record is not None
    assert (record.state, record.coverage, record.epoch) == (State.REJECTED, 11 / 16, None)
    assert people.execute("SELECT to_regclass(%s)", (child_name(pipeline.name, 2),)).fetchone() == (None,)
    store.reject(attempt, "again")  # what is rejected stays as it is
    assert store.generation(pipeline.name, 2) == record


def test_a_quarantined_partition_is_carried_forward_with_its_old_as_of(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    for generation, hour in ((2, 1), (3, 2)):  # twice: it is carried on from the generation that first wrote it
        attempt = begin(store, pipeline, f"run {hour}", as_of=NOON + hour * HOUR)
        store.stage(attempt, staged_parts(pipeline, generation, NOON + hour * HOUR, partitions=range(15)))
        store.quarantine(attempt, 4, "t2m_1h is 900\nfar out of range")
        outcome = store.publish(attempt, pipeline, now=NOON)
        assert (outcome.state, outcome.coverage, outcome.carried, outcome.rows) == (State.CURRENT, 14 / 16, 2, 64)
        manifest = store.manifest(pipeline.name, generation)
        assert (manifest[4].origin, manifest[4].as_of) == (1, NOON)
        assert manifest[4].reason == "quarantined: t2m_1h is 900 far out of range"
        assert (manifest[15].origin, manifest[15].reason) == (1, f"not scored by generation {generation}")
        assert (manifest[0].origin, manifest[0].as_of, manifest[0].reason) == (generation, NOON + hour * HOUR, "")
    shown = people.execute(
        f"SELECT t2m_1h, origin, as_of, count(*) FROM {view_name(pipeline.name)} GROUP BY 1, 2, 3 ORDER BY 1"
    ).fetchall()
    assert shown == [(1.0, 1, NOON, 8), (3.0, 3, NOON + 2 * HOUR, 56)]
    assert len(store.blocks(pipeline, 3, range(16))) == 16


@pytest.mark.parametrize(
    "changed",
    [
        {"partitions": Grid(rows=8, cols=8, tile=2, north=57.0)},
        {"outputs": horizons("t2m", hours=(1, 6, 12))},
    ],
)
def test_nothing_is_carried_forward_from_another_declaration(
    store: PostgresStore, postgres_url: str, changed: dict[str, object]
) -> None:
    old = migrated(postgres_url, grid_pipeline())
    published_generation(store, old, 1.0)
    new = migrated(postgres_url, grid_pipeline(old.name, **changed))
    if "partitions" in changed:
        before = store.pointer(old.name)
        with pytest.raises(UsageError, match=f"almanac repartition {old.name}"):
            begin(store, new, "other")
        assert store.pointer(old.name) == before
        store.agree_to_partitioning(new)
    attempt = begin(store, new, "other")
    store.stage(attempt, staged_parts(new, 2.0, partitions=range(15)))
    outcome = store.publish(attempt, new, now=NOON)
    assert (outcome.carried, outcome.rows) == (0, 60)
    assert 15 not in store.manifest(new.name, 2)
    assert len(store.blocks(new, 1, range(16))) == 16  # the old one is still whole


def test_a_backfill_of_the_past_is_archived(
    store: PostgresStore, people: psycopg.Connection, postgres_url: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    published_generation(store, pipeline, 1.0)
    before = store.pointer(pipeline.name)
    attempt = begin(store, pipeline, "past", as_of=NOON - HOUR)
    store.stage(attempt, staged_parts(pipeline, 2.0, NOON - HOUR, partitions=range(12)))
    outcome = store.publish(attempt, pipeline, now=NOON)
    assert (outcome.state, outcome.epoch, outcome.carried, outcome.rows) == (State.ARCHIVED, None, 0, 48)
    assert "backfill" in outcome.reason
    assert store.publish(attempt, pipeline, now=NOON) == outcome
    assert store.pointer(pipeline.name) == before
    table = f"predictions_{pipeline.name}"
    assert people.execute(f"SELECT count(*) FROM {table} WHERE generation = 2").fetchone() == (48,)


def test_a_later_attempt_mends_a_quarantined_partition(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = staged_generation(store, pipeline, 1.0)
    store.quarantine(attempt, 7, "too warm")
    assert store.staged_rows(attempt).num_rows == 60
    assert store.pending(attempt, [6, 7]) == []  # this attempt has decided about both
    later = store.take_over(pipeline.name, attempt.generation)
    assert store.pending(later, [6, 7]) == [7]
    assert store.stage(later, staged_parts(pipeline, 2.0, partitions=[7])) == [7]
    assert store.publish(later, pipeline, now=NOON).coverage == 1.0
    with pytest.raises(UsageError, match="nothing is added"):
        store.quarantine(later, 7, "too late")


def test_of_two_tasks_with_one_token_the_first_to_decide_about_a_partition_stands(
    store: PostgresStore, postgres_url: str
) -> None:
    """Airflow may think a scoring task dead that is not: both hold the plan's token."""
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = begin(store, pipeline, "twice")
    assert store.stage(attempt, staged_parts(pipeline, 1.0, partitions=[3])) == [3]
    assert not store.quarantine(attempt, 3, "the other task lacked a feature", staged_too=False)
    assert store.quarantine(attempt, 4, "this one lacked a feature", staged_too=False)
    assert store.stage(attempt, staged_parts(pipeline, 2.0, partitions=[3, 4, 5])) == [5]
    assert store.quarantine(attempt, 5, "the gate on predictions refused it")
    assert store.stage(attempt, staged_parts(pipeline, 2.0, partitions=[5])) == []  # the zombie ends after the gate
    rows = store.staged_rows(attempt).to_pydict()
    assert set(rows["partition"]) == {3}
    assert set(rows["t2m_1h"]) == {1.0}
    with pytest.raises(UsageError, match="did not plan partition 16"):
        store.quarantine(attempt, 16, "no such", staged_too=False)
    with pytest.raises(UsageError, match="did not plan partition 16"):
        store.quarantine(begin(store, pipeline, "other"), 16, "no such")


def test_rollback_moves_the_pointer_and_no_data(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    with pytest.raises(UsageError, match="published nothing yet"):
        store.rollback(pipeline.name, now=NOON)
    for value in (1.0, 2.0, 3.0):
        published_generation(store, pipeline, value)
    outcome = store.rollback(pipeline.name, now=NOON)
    assert (outcome.generation, outcome.epoch) == (2, 4)
    assert states(store, pipeline.name) == {1: "previous", 2: "current", 3: "rolled_back"}
    assert store.rollback(pipeline.name, now=NOON).generation == 1
    with pytest.raises(UsageError, match="no previous generation"):
        store.rollback(pipeline.name, now=NOON)
    with pytest.raises(GateError, match="generation 3 was rolled back"):
        published_generation(store, pipeline, 4.0)
    assert store.clear_rollback(pipeline.name) == 3
    assert store.publish(store.take_over(pipeline.name, 4), pipeline, now=NOON).epoch == 6
    pointer = store.pointer(pipeline.name)
    assert pointer is not None
    assert pointer.previous is not None
    assert (pointer.generation.generation, pointer.previous.generation) == (4, 1)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda b: Block(b.keys, {**b.columns, "t2m_6h": np.full(4, np.nan, np.float32)}), PredictionError, "4 of 4"),
        (
            lambda b: Block(b.keys, {**b.columns, "t2m_6h": np.array([1, np.inf, 2, -np.inf], np.float32)}),
            PredictionError,
            "2 of 4",
        ),
        (lambda b: Block(b.keys, {"t2m_1h": b.columns["t2m_1h"]}), BlockError, "t2m_6h"),
        (lambda b: Block(np.sort(b.keys.astype("S8")), b.columns), BlockError, "whole numbers"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_whole(  # type: ignore[no-untyped-def]
    store: PostgresStore, postgres_url: str, change, error, match: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = begin(store, pipeline)
    parts = staged_parts(pipeline, 1.0, partitions=[0, 1, 2])
    bad = StagedPartition(partition=3, block=change(block_of(pipeline, 3, 1.0)), as_of=NOON, computed_at=NOON)
    with pytest.raises(error, match=match):
        store.stage(attempt, [*parts, bad])
    assert store.staged_rows(attempt).num_rows == 0
    assert store.pending(attempt, range(16)) == list(range(16))


def test_an_entity_in_two_partitions_is_rejected(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = begin(store, pipeline)
    parts = staged_parts(pipeline, 1.0)
    parts[5] = StagedPartition(partition=5, block=parts[4].block, as_of=NOON, computed_at=NOON)
    store.stage(attempt, parts)
    with pytest.raises(GateError, match="two partitions"):
        store.publish(attempt, pipeline, now=NOON)
    assert states(store, pipeline.name) == {1: "rejected"}


def test_partitions_of_another_pipeline_are_refused(store: PostgresStore, postgres_url: str) -> None:
    pipeline = grid_pipeline()
    with pytest.raises(UsageError, match=r"serving_cache\.migrate"):
        begin(store, pipeline)
    migrated(postgres_url, pipeline)
    with pytest.raises(UsageError, match="0 to 15"):
        begin(store, pipeline, partitions=(16,))
    with pytest.raises(UsageError, match="no generation 9"):
        store.take_over(pipeline.name, 9)
