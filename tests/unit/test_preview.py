"""Why a partition would be scored: pure decisions, in the order of a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from almanac.pipeline import Gate
from jobs.plan_cli import grouped, summary
from jobs.preview import UNCHANGED, Now, PartitionPlan, Preview, reason_of
from jobs.row_gates import row_by_row
from serving_cache.records import Basis, GenerationRecord, State
from tests.generations import NOON

HERE = Now(model="m-v1", model_hash="h1", code="c1", source="s1", outputs=("x",), partitioning="tiles")
WAS = Basis(
    origin=3, rows=4, reason="", input_digest="d", model="m-v1", model_hash="h1", code_digest="c1", outputs=("x",),
    partitioning="tiles", kept=True,
)  # fmt: skip
CURRENT = GenerationRecord(
    pipeline="p", generation=4, run_key="r", cutoff=NOON, as_of=NOON, state=State.CURRENT, model="m-v1",
    model_hash="h1", epoch=4, rows=4, coverage=1.0, reason="", partitioning="tiles", outputs=("x",),
    clock_shift_seconds=0.0, created_at=NOON, published_at=NOON,
)  # fmt: skip


@pytest.mark.parametrize(
    ("was", "here", "said"),
    [
        ({}, {}, UNCHANGED),
        ({"reason": "quarantined: too cold"}, {}, "not scored before: quarantined: too cold"),
        ({}, {"model": "m-v2", "model_hash": "h2"}, "model changed: m-v1 -> m-v2"),
        ({}, {"outputs": ("x", "y")}, "code changed: another partitioning or other outputs"),
        ({}, {"code": "c2"}, "code changed: what reads"),
        ({"kept": False}, {}, "rows are brought together: few partitions are left of generation 3"),
        ({"input_digest": ""}, {}, "inputs not known"),
        ({}, {"whole": True}, "all is scored: a gate is about the whole table"),
        ({}, {"source": "s2"}, None),
        ({}, {"source": ""}, None),
    ],
)
def test_each_reason_is_named(was: dict[str, Any], here: dict[str, Any], said: str | None) -> None:
    found = reason_of(msgspec.structs.replace(WAS, **was), replace(HERE, **here), CURRENT, NOON, "s1")
    assert found == said or (said is not None and found is not None and found.startswith(said))


def test_what_is_not_there_yet_is_new() -> None:
    assert reason_of(None, HERE, None, NOON, "") == "new: nothing is published yet"
    assert reason_of(None, HERE, CURRENT, NOON, "s1") == "new: the current generation does not have it"
    past = reason_of(WAS, HERE, CURRENT, NOON - timedelta(hours=1), "s1")
    assert past == "new: a generation of the past, the current one is as of 2026-03-01T12:00:00Z"


def test_neighbours_of_one_fate_stand_in_one_line() -> None:
    plans = [
        PartitionPlan(partition=n, label=f"tile {n}", action=action, reason=reason, rows=2)  # type: ignore[arg-type]
        for n, (action, reason) in enumerate([("carry", UNCHANGED)] * 3 + [("score", "new")])
    ]
    made = Preview(
        pipeline="p", cutoff=NOON, as_of=NOON, model="m-v1", current=4, partitions=tuple(plans), shards=1, rows=2,
        seconds=None,
    )  # fmt: skip
    assert [len(group) for group in grouped(made)] == [3, 1]
    assert summary(made).startswith("1 of 4 partitions would be scored: 2 rows in 1 shard, its cost is known after")
    assert "about 3.5 s" in summary(replace(made, seconds=3.5))


@pytest.mark.parametrize(
    ("expectation", "kwargs", "alone"),
    [
        ("expect_column_values_to_be_between", {"column": "x", "min_value": 0}, True),
        ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "x", "column_B": "y"}, True),
        ("expect_column_values_to_be_between", {"column": "x", "min_value": 0, "mostly": 0.9}, False),
        ("expect_column_values_to_be_unique", {"column": "x"}, False),
        ("expect_table_row_count_to_be_between", {"min_value": 1}, False),
        ("expect_column_mean_to_be_between", {"column": "x", "min_value": 0}, False),
    ],
)
def test_a_gate_about_the_whole_table_is_told_from_one_about_rows(
    expectation: str, kwargs: dict[str, Any], alone: bool
) -> None:
    rows = Gate(on="features", expectation="expect_column_values_to_not_be_null", kwargs={"column": "x"})
    assert row_by_row([rows, Gate(on="predictions", expectation=expectation, kwargs=kwargs)]) is alone
    assert row_by_row([])
