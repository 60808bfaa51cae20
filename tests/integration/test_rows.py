"""Rows of a generation go to Postgres and come back as the blocks they were, whatever keys and values they have."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almanac.blocks import Block
from almanac.errors import BlockError
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline
from serving_cache.postgres import PostgresStore
from serving_cache.postgres_copying import ROWS_PER_WRITE
from serving_cache.records import Attempt, StagedPartition
from tests.generations import NOON, bucket_pipeline, grid_pipeline, migrated, staged_generation, start_of

KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False)


def staged(store: PostgresStore, pipeline: Pipeline, blocks: dict[int, Block]) -> Attempt:
    """A generation with these blocks."""
    attempt = store.begin_generation(pipeline, start_of(pipeline, "run", partitions=tuple(blocks)), now=NOON)
    parts = [StagedPartition(partition=p, block=b, as_of=NOON, computed_at=NOON) for p, b in blocks.items()]
    assert store.stage(attempt, parts) == sorted(blocks)
    return attempt


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=st.dictionaries(KEYS, st.tuples(VALUES, VALUES), max_size=30))
def test_texts_of_any_length_come_back_as_they_went(
    store: PostgresStore, postgres_url: str, rows: dict[str, tuple[float, float]]
) -> None:
    pipeline = migrated(postgres_url, bucket_pipeline(coverage_min=0.1))
    keys = sorted(key.encode() for key in rows)
    columns = {
        name: np.array([rows[key.decode()][n] for key in keys], dtype=np.float32)
        for n, name in enumerate(pipeline.output_names)
    }
    block = Block(np.array(keys or [], dtype=np.bytes_), columns)
    attempt = staged(store, pipeline, {2: block, 3: Block(np.empty(0, "S1"), {n: c[:0] for n, c in columns.items()})})
    table = store.staged_rows(attempt)
    assert table.column("user_id").to_pylist() == [key.decode() for key in keys]
    assert table.column("t2m_6h").to_numpy().tobytes() == columns["t2m_6h"].tobytes()
    store.publish(attempt, pipeline, now=NOON)
    assert store.blocks(pipeline, attempt.generation, [2])[block.hash] == block.encoded


def test_a_partition_larger_than_one_write_comes_back_as_it_went(store: PostgresStore, postgres_url: str) -> None:
    side = 8 * (1 + int(ROWS_PER_WRITE**0.5) // 8)
    grid = Grid(rows=2 * side, cols=side, tile=side)
    pipeline = migrated(postgres_url, grid_pipeline(partitions=grid))
    keys = [np.array(list(grid.entities(p)), dtype=np.int64) for p in range(2)]
    chance = np.random.default_rng(5)
    blocks = {
        p: Block(keys[p], {name: chance.normal(size=len(keys[p])).astype(np.float32) for name in pipeline.output_names})
        for p in range(2)
    }
    assert blocks[0].rows > ROWS_PER_WRITE
    attempt = staged(store, pipeline, blocks)
    assert store.publish(attempt, pipeline, now=NOON).rows == sum(block.rows for block in blocks.values())
    assert store.blocks(pipeline, attempt.generation, [0, 1]) == {b.hash: b.encoded for b in blocks.values()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("UPDATE {} SET t2m_6h = NULL WHERE partition = 3", "partition 3 .* lack values"),
        ("UPDATE {} SET t2m_6h = t2m_6h + 1 WHERE partition = 3", "partition 3 .* not those that were published"),
        ("ALTER TABLE {} ALTER t2m_6h TYPE float8", "lack values"),
    ],
)
def test_rows_that_somebody_changed_are_no_block(
    store: PostgresStore, postgres_url: str, people: psycopg.Connection[tuple[object, ...]], change: str, match: str
) -> None:
    pipeline = migrated(postgres_url, grid_pipeline())
    attempt = staged_generation(store, pipeline, 1.0)
    people.execute(change.format(f"predictions_{pipeline.name}_g1"))
    with pytest.raises(BlockError, match=match):
        store.publish(attempt, pipeline, now=NOON)
    assert store.pointer(pipeline.name) is None
