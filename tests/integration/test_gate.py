"""Gates run real Great Expectations, and rows that fail name their partitions."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from almanac.errors import DeclarationError, GateError
from almanac.pipeline import Gate
from jobs.check import check_coverage
from jobs.gate import PARTITION, check
from pipelines.weather import weather

TABLE = pa.table(
    {
        "cell_id": [0, 1, 8, 9],
        PARTITION: pa.array([0, 0, 1, 1], pa.int32()),
        "t2m": pa.array([281.0, 282.0, None, 999.0], pa.float32()),
    }
)


def between(**kwargs: object) -> Gate:
    return Gate(on="features", expectation="expect_column_values_to_be_between", kwargs={"column": "t2m", **kwargs})


def test_rows_that_fail_are_mapped_to_their_partition() -> None:
    report = check(TABLE, [between(min_value=180, max_value=340)], entity="cell_id")
    assert report.rows == 4
    assert list(report.failing) == [1]
    assert "failed for cell_id 9 (999.0)" in report.failing[1]


def test_a_null_fails_only_its_own_partition() -> None:
    gate = Gate(on="features", expectation="expect_column_values_to_not_be_null", kwargs={"column": "t2m"})
    assert list(check(TABLE, [gate], entity="cell_id").failing) == [1]


def test_all_good_rows_pass() -> None:
    report = check(TABLE.slice(0, 2), [between(min_value=180, max_value=340)], entity="cell_id")
    assert (report.failing, report.expectations) == ({}, 1)


def test_an_expectation_of_the_whole_table_refuses() -> None:
    gate = Gate(on="features", expectation="expect_table_row_count_to_be_between", kwargs={"min_value": 10})
    with pytest.raises(GateError, match="whole table: 4"):
        check(TABLE, [gate], entity="cell_id")


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (Gate(on="features", expectation="expect_nonsense"), "not one of Great Expectations'"),
        (between(minimum=3), "not one of Great Expectations'"),
        (
            Gate(on="features", expectation="expect_column_values_to_not_be_null", kwargs={"column": "t3m"}),
            '"t3m".*does not exist',
        ),
    ],
)
def test_a_wrong_gate_is_a_wrong_declaration(gate: Gate, said: str) -> None:
    with pytest.raises(DeclarationError, match=said) as caught:
        check(TABLE, [gate], entity="cell_id")
    assert "\n" not in str(caught.value)


def test_coverage_decides_whether_a_gate_stops_the_run() -> None:
    check_coverage(weather, {3: "one bad tile"}, "features")
    with pytest.raises(GateError, match=r"2 of 35 partitions fail, 94% left, 95% needed.*tile r0 c3: bad"):
        check_coverage(weather, {3: "bad", 4: "bad"}, "features")
    check_coverage(replace(weather, coverage_min=0.9), {3: "bad", 4: "bad"}, "features")
