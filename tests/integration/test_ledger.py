"""The ledger on real Postgres: what did not change is carried forward by reference, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from almanac.clock import HOUR
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.records import Attempt, StagedPartition, State
from tests.generations import NOON, grid_pipeline, migrated, published_generation, staged_parts, start_of

CODE, SOURCE = "code-1", "source-1"


@pytest.fixture
def pipeline(postgres_url: str) -> Pipeline:
    made = migrated(postgres_url, grid_pipeline())
    return made


def opened(store: PostgresStore, pipeline: Pipeline, hour: int, **changes: object) -> Attempt:
    moment = NOON + hour * HOUR
    fields: dict[str, object] = {"code_digest": CODE, "source_digest": SOURCE, **changes}
    return store.begin_generation(pipeline, start_of(pipeline, f"run {hour}", moment, **fields), now=moment)


def stage(store: PostgresStore, pipeline: Pipeline, attempt: Attempt, hour: int, partitions: range) -> None:
    parts = staged_parts(pipeline, float(hour), NOON + hour * HOUR, partitions)
    store.stage(attempt, [replace(part, input_digest=f"d{part.partition}") for part in parts])


def test_equal_inputs_are_carried_by_reference_with_the_new_as_of_and_the_old_computed_at(
    store: PostgresStore, pipeline: Pipeline
) -> None:
    first = opened(store, pipeline, 0)
    assert store.carry_unchanged(first, {0: "d0"}) == []  # there is nothing to carry yet
    stage(store, pipeline, first, 0, range(16))
    store.publish(first, pipeline, now=NOON)

    second = opened(store, pipeline, 1)
    assert store.carry_unchanged(second, {0: "d0", 1: "other", 2: "d2"}) == [0, 2]
    assert store.carry_unchanged(second, {0: "d0"}) == []  # decided already
    assert 0 not in store.pending(second, range(16))
    stage(store, pipeline, second, 1, range(1, 16))
    published = store.publish(second, pipeline, now=NOON + HOUR)
    assert (published.state, published.coverage, published.carried) == (State.CURRENT, 1.0, 2)
    entries = store.manifest(pipeline.name, second.generation)
    assert (entries[0].origin, entries[0].as_of, entries[0].computed_at) == (first.generation, NOON + HOUR, NOON)
    assert (entries[0].reason, entries[1].origin) == ("", second.generation)

    # What was carried is carried again, and its rows stay while anything refers to them.
    third = opened(store, pipeline, 2)
    assert store.carry_unchanged(third) == list(range(16))
    for hour in (3, 4, 5):
        store.retire(replace(pipeline, generations_kept=1), now=NOON + hour * HOUR)
    published = store.publish(third, pipeline, now=NOON + 2 * HOUR)
    assert published.rows == 64
    entry = store.manifest(pipeline.name, third.generation)[0]
    assert (entry.origin, entry.as_of) == (first.generation, NOON + 2 * HOUR)
    assert set(store.blocks(pipeline, first.generation, [0])) == {entry.block_hash}


@pytest.mark.parametrize(
    "changes",
    [{"code_digest": "code-2"}, {"model_hash": "1" * 64}, {"code_digest": ""}, {"backfill": True}],
    ids=["code", "model", "no code digest", "backfill"],
)
def test_other_code_or_model_carries_nothing(
    store: PostgresStore, pipeline: Pipeline, changes: dict[str, object]
) -> None:
    first = opened(store, pipeline, 0)
    stage(store, pipeline, first, 0, range(16))
    store.publish(first, pipeline, now=NOON)
    second = opened(store, pipeline, 1, **changes)
    assert store.carry_unchanged(second, {0: "d0"}) == []
    assert store.carry_unchanged(second) == []


def test_another_source_or_one_that_changed_between_two_attempts_is_looked_at(
    store: PostgresStore, pipeline: Pipeline
) -> None:
    first = opened(store, pipeline, 0)
    stage(store, pipeline, first, 0, range(8))
    first = opened(store, pipeline, 0, source_digest="source-2")  # the retry finds another source
    stage(store, pipeline, first, 0, range(8, 16))
    store.publish(first, pipeline, now=NOON)
    second = opened(store, pipeline, 1, source_digest="source-2")
    assert store.carry_unchanged(second) == []
    assert store.carry_unchanged(second, {3: "d3"}) == [3]


def test_a_partition_that_was_quarantined_is_scored_again_though_its_inputs_are_the_same(
    store: PostgresStore, people: psycopg.Connection, pipeline: Pipeline
) -> None:
    first = opened(store, pipeline, 0)
    stage(store, pipeline, first, 0, range(16))
    store.publish(first, pipeline, now=NOON)
    second = opened(store, pipeline, 1)
    store.quarantine(second, 5, "too cold", report="quarantine/report.html")
    stage(store, pipeline, second, 1, range(16))
    store.publish(second, pipeline, now=NOON + HOUR)
    entry = people.execute(
        "SELECT state, report, reason FROM ledger WHERE pipeline = %s AND generation = %s AND partition = 5",
        (pipeline.name, second.generation),
    ).fetchone()
    assert entry == ("quarantined", "quarantine/report.html", "too cold (see quarantine/report.html)")
    third = opened(store, pipeline, 2)
    assert store.carry_unchanged(third) == [part for part in range(16) if part != 5]


def test_a_backfill_is_archived_even_if_readers_have_nothing(store: PostgresStore, pipeline: Pipeline) -> None:
    attempt = opened(store, pipeline, 0, backfill=True)
    stage(store, pipeline, attempt, 0, range(16))
    assert store.publish(attempt, pipeline, now=NOON).state is State.ARCHIVED
    assert store.pointer(pipeline.name) is None


def test_rows_without_digests_are_never_carried(store: PostgresStore, pipeline: Pipeline) -> None:
    published_generation(store, pipeline, 1.0)
    second = opened(store, pipeline, 1)
    assert store.carry_unchanged(second, {0: ""}) == []


def with_digests(pipeline: Pipeline, hour: int, partitions: range, text: bytes) -> list[StagedPartition]:
    parts = staged_parts(pipeline, float(hour), NOON + hour * HOUR, partitions)
    return [replace(part, input_digest=f"d{part.partition}", entity_digests=text) for part in parts]


def test_what_entities_were_scored_from_is_known_while_their_rows_are(
    store: PostgresStore, people: psycopg.Connection, pipeline: Pipeline
) -> None:
    first = opened(store, pipeline, 0)
    store.stage(first, with_digests(pipeline, 0, range(16), b"first"))
    assert store.known_blocks(first, range(16)) == []  # readers have nothing yet
    store.quarantine(first, 5, "too cold")
    store.publish(first, pipeline, now=NOON)

    second = opened(store, pipeline, 1)
    known = {one.partition: one for one in store.known_blocks(second, range(16))}
    assert known.keys() == set(range(16)) - {5}
    entry = store.manifest(pipeline.name, first.generation)[0]
    assert known[0] == (0, first.generation, first.generation, entry.block_hash, b"first")
    # Other inputs led to the same block: it is carried forward, and is known to be made from these.
    assert store.carry_equal(second, {known[0]: ("new", b"again"), known[1]._replace(block_hash="0"): ("", b"")}) == [0]
    assert store.carry_equal(second, {}) == []
    store.stage(second, with_digests(pipeline, 1, range(1, 16), b"second"))
    store.publish(second, pipeline, now=NOON + HOUR)
    third = opened(store, pipeline, 2)
    assert [(one.origin, one.digests) for one in store.known_blocks(third, [0, 1])] == [
        (first.generation, b"again"),
        (second.generation, b"second"),
    ]
    assert store.carry_unchanged(third, {0: "new", 1: "other"}) == [0]
    assert store.known_blocks(opened(store, pipeline, 3, model_hash="1" * 64), [0]) == []
    assert store.known_blocks(opened(store, pipeline, 4, code_digest="code-2"), [0]) == []
    assert kept(people, pipeline) == {first.generation: 15, second.generation: 15}

    # A rejected generation and rows that are dropped leave nothing behind.
    store.stage(third, with_digests(pipeline, 2, range(1, 16), b"third"))
    assert kept(people, pipeline)[third.generation] == 15
    store.reject(third, "never mind")
    last = opened(store, pipeline, 5)
    store.stage(last, with_digests(pipeline, 5, range(16), b"last"))
    store.publish(last, pipeline, now=NOON + 5 * HOUR)
    for hour in (30, 60):
        store.retire(replace(pipeline, generations_kept=1), now=NOON + hour * HOUR)
    assert kept(people, pipeline) == {first.generation: 15, second.generation: 15, last.generation: 16}
    after = opened(store, pipeline, 6)
    store.stage(after, with_digests(pipeline, 6, range(16), b"after"))
    store.publish(after, pipeline, now=NOON + 6 * HOUR)
    store.retire(replace(pipeline, generations_kept=1), now=NOON + 60 * HOUR)
    assert kept(people, pipeline) == {last.generation: 16, after.generation: 16}


def kept(people: psycopg.Connection, pipeline: Pipeline) -> dict[int, int]:
    """Partitions of each generation whose entities' digests are kept."""
    found = people.execute(
        "SELECT generation, count(*)::int FROM entity_digests WHERE pipeline = %s GROUP BY generation", (pipeline.name,)
    ).fetchall()
    return {int(generation): int(count) for generation, count in found}
