"""Lists go to Postgres and come back as the blocks they were, whatever their items are called; damage is noticed."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almanac.errors import BlockError, DeclarationError, PredictionError
from almanac.list_blocks import ListBlock, empty_block
from almanac.pipeline import Pipeline
from almanac.ranked import RankedList
from serving_cache.postgres import PostgresStore
from serving_cache.records import Attempt, StagedPartition
from tests.generations import NOON, bucket_pipeline, list_pipeline, lists_of, migrated, staged_generation, start_of
from tests.integration.test_rows import KEYS, VALUES

LISTS = st.lists(KEYS, unique=True, max_size=6).flatmap(
    lambda items: st.lists(VALUES, min_size=len(items), max_size=len(items)).map(
        lambda scores: RankedList(
            tuple(items), tuple(sorted(scores, reverse=True)), {"price": tuple(len(item) / 3 for item in items)}
        )
    )
)


def staged(store: PostgresStore, pipeline: Pipeline, block: object) -> Attempt:
    """A generation of this block, and of one without rows."""
    attempt = store.begin_generation(pipeline, start_of(pipeline, "run", partitions=(2, 3)), now=NOON)
    empty = empty_block(pipeline.stored_columns, whole_keys=False)
    parts = [
        StagedPartition(partition=number, block=one, as_of=NOON, computed_at=NOON)  # type: ignore[arg-type]
        for number, one in ((2, block), (3, empty))
    ]
    assert store.stage(attempt, parts) == [2, 3]
    return attempt


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(lists=st.dictionaries(KEYS, LISTS, min_size=1, max_size=8))
def test_lists_of_any_items_come_back_as_they_went(
    store: PostgresStore, postgres_url: str, lists: dict[str, RankedList]
) -> None:
    pipeline = migrated(postgres_url, list_pipeline(coverage_min=0.1))
    block = block_of(lists)
    attempt = staged(store, pipeline, block)
    table = store.staged_rows(attempt)
    keys = sorted(lists, key=str.encode)
    assert table.column("user_id").to_pylist() == keys
    assert table.column("items").to_pylist() == [len(lists[key].items) for key in keys]
    assert [x == x for x in table.column("scores_least").to_pylist()] == [bool(lists[key].items) for key in keys]
    store.publish(attempt, pipeline, now=NOON)
    assert store.blocks(pipeline, attempt.generation, [2])[block.hash] == block.encoded


def block_of(lists: dict[str, RankedList]) -> ListBlock:
    """Lists by user as a block."""
    keys = sorted(lists, key=str.encode)
    return lists_of(np.array([key.encode() for key in keys]), [lists[key] for key in keys])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {} SET items[1] = 'another'",
        "UPDATE {} SET scores[1] = scores[1] + 1",
        "UPDATE {} SET items[1] = NULL",
        "UPDATE {} SET scores[1] = NULL",
        "UPDATE {} SET items = NULL",
        "UPDATE {} SET price[1] = 9 WHERE user_id = 'user-1é'",
        "UPDATE {} SET scores = scores[1:1]",
        "UPDATE {} SET items = items || 'one more'::text",
        "ALTER TABLE {} ALTER scores TYPE float8[]",
        "UPDATE {} SET items = ARRAY[items, items] WHERE cardinality(items) > 0",
    ],
)
def test_lists_that_somebody_changed_are_no_block(store: PostgresStore, postgres_url: str, change: str) -> None:
    pipeline = migrated(postgres_url, list_pipeline())
    attempt = staged_generation(store, pipeline, 2.0)
    with psycopg.connect(postgres_url, autocommit=True) as people:
        people.execute(change.format(f"predictions_{pipeline.name}_g{attempt.generation}"))  # type: ignore[arg-type]
    with pytest.raises(BlockError, match="somebody changed"):
        store.publish(attempt, pipeline, now=NOON)
    assert store.pointer(pipeline.name) is None


def test_a_score_that_is_no_number_is_not_staged(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, list_pipeline())
    block = block_of({"a": RankedList(("x", "y"), (2.0, 1.0), {"price": (1.0, 2.0)})})
    block.scores[1] = float("nan")
    with pytest.raises(PredictionError, match="1 of 2 values of scores are NaN"):
        staged(store, pipeline, block)


def test_numbers_and_lists_are_not_mixed(store: PostgresStore, postgres_url: str) -> None:
    pipeline = migrated(postgres_url, list_pipeline())
    numbers = bucket_pipeline()
    with pytest.raises(BlockError, match="stage these"):
        staged(store, pipeline, empty_block(numbers.stored_columns, whole_keys=False))
    with psycopg.connect(postgres_url, autocommit=True) as people:
        people.execute(f"ALTER TABLE predictions_{pipeline.name} ADD COLUMN weight real")  # type: ignore[arg-type]
    assert pipeline.ranking is not None
    heavier = list_pipeline(
        pipeline.name, ranking=type(pipeline.ranking)(item="item_id", features="items_v1", attributes=("weight",))
    )
    with pytest.raises(DeclarationError, match=r"its table has weight as real, the declaration as real\[\]"):
        migrated(postgres_url, heavier)
