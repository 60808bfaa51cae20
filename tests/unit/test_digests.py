"""Digests say whether a partition would come out the same; shards stay far below what Airflow can map."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from msgspec import structs

from almanac.code import following
from almanac.code.following import code_of, own_code_of
from almanac.partitioning import Grid
from almanac.pipeline import Gate, GridObservations, Output, Pipeline, Ranking
from almanac.settings import load_settings
from jobs.costs import Costs, measured
from jobs.digests import PARTITION, STEPS, UNCOUNTED_FIELDS, code_digest, partition_digests, said
from jobs.shards import SHARDS_MAX, cut, rows_of_grid
from serving_cache.stage_times import StageTime
from tests.generations import NOON, bucket_pipeline, grid_pipeline

OWNERS = [4, 4, 2, 2, 2]


def table(**changes: list[object]) -> pa.Table:
    columns: dict[str, list[object]] = {
        "user_id": ["a", "b", "c", "d", "é"],
        "spend": [1.0, 2.0, None, 4.0, 5.0],
        "visits": [1.0, 2.0, 3.0, 4.0, 5.0],
        "event_timestamp": [1, 1, 1, 1, 1],
        PARTITION: list(OWNERS),
        **changes,
    }
    kinds = {"user_id": pa.string(), PARTITION: pa.int32(), "event_timestamp": pa.timestamp("us", tz="UTC")}
    return pa.table({name: pa.array(values, kinds.get(name, pa.float32())) for name, values in columns.items()})


def test_equal_features_have_equal_digests_whatever_the_moment_the_order_of_columns_and_the_neighbours() -> None:
    found = partition_digests(table(), [2, 4, 7])
    assert len(set(found.values())) == 3  # 7 has no rows, and a digest
    later = table(event_timestamp=[2, 2, 2, 2, 2])
    assert partition_digests(later.select(sorted(later.column_names)), [2, 4, 7]) == found
    assert partition_digests(table().slice(0, 2), [4]) == {4: found[4]}
    assert partition_digests(pa.concat_tables([table().slice(0, 3), table().slice(3)]), [2])[2] == found[2]
    assert partition_digests(table().slice(0, 0), [7]) == {7: found[7]}


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"visits": [1.0, 2.0, 3.0, 4.0, 6.0]}, {2}),
        ({"spend": [1.0, 2.0, 0.0, 4.0, 5.0]}, {2}),  # a zero is not a null
        ({"spend": [1.0, None, None, 4.0, 5.0]}, {4}),
        ({"user_id": ["a", "bb", "c", "d", "é"]}, {4}),
        ({PARTITION: [4, 4, 4, 2, 2]}, {2, 4}),
        ({"more": [0.0] * 5}, {2, 4}),
    ],
)
def test_whatever_differs_shows_in_its_partition_alone(changes: dict[str, list[object]], differ: set[int]) -> None:
    before, after = partition_digests(table(), [2, 4]), partition_digests(table(**changes), [2, 4])
    assert {part for part in before if before[part] != after[part]} == differ


def test_what_the_declaration_says_of_predictions_counts_and_the_rest_does_not() -> None:
    pipeline = grid_pipeline("same")
    gate = Gate(on="features", expectation="expect_column_values_to_not_be_null", kwargs={"column": "t2m"})
    assert code_digest(replace(pipeline, schedule="5 * * * *", coverage_min=0.5)) == code_digest(pipeline)
    others = [
        replace(pipeline, gates=(gate,)),
        replace(pipeline, features="weather_v2"),
        replace(pipeline, partitions=Grid(rows=8, cols=8, tile=4)),
        bucket_pipeline("same"),
    ]
    assert len({code_digest(other) for other in [pipeline, *others]}) == 5


OTHERWISE: dict[str, object] = {
    "name": "other",
    "entity": "place_id",
    "partitions": Grid(rows=8, cols=8, tile=4),
    "outputs": (Output(name="t2m"),),
    "features": "weather_v2",
    "source": GridObservations(variable="t2m", unit="K", valid_range=(180.0, 341.0)),
    "gates": (Gate(on="features", expectation="expect_column_values_to_not_be_null", kwargs={"column": "t2m"}),),
    "ranking": Ranking(item="book", features="books"),
}
"""Each field of a declaration that predictions depend on, declared otherwise."""


def test_every_field_of_a_declaration_counts_or_is_known_to_change_no_prediction() -> None:
    """A field that is new counts, until somebody says that no prediction depends on it."""
    pipeline = grid_pipeline("same")
    names = {field.name for field in fields(Pipeline)}
    assert names >= UNCOUNTED_FIELDS
    assert names - UNCOUNTED_FIELDS == set(OTHERWISE)
    for name, value in OTHERWISE.items():
        other = replace(pipeline)
        object.__setattr__(other, name, value)  # without the checks: one field may contradict another
        assert code_digest(other) != code_digest(pipeline), name
    for name in UNCOUNTED_FIELDS:
        other = replace(pipeline)
        object.__setattr__(other, name, "otherwise")
        assert code_digest(other) == code_digest(pipeline), name


def test_what_is_declared_is_said_in_one_order() -> None:
    def gate(*columns: str) -> Gate:
        kwargs = {"column": "x", "value_set": frozenset(columns)}
        return Gate(on="features", expectation="expect_column_values_to_be_in_set", kwargs=kwargs)

    assert said(gate("a", "b", "c")) == said(gate("c", "b", "a"))
    assert said(gate("a", "b")) != said(gate("a", "c"))
    assert said({"a": 1, "b": 2.0}) == said({"b": 2.0, "a": 1})
    assert said({"a": 1}) != said({"a": 1.0})


EXPECTATION = """\
from dataclasses import fields, replace
from pathlib import Path
from pipelines.weather import weather as _weather
from {helper} import MOST

weather = replace(_weather, description={description!r})


class ExpectColumnValuesToBeOurs:
    def judge(self, value):
        return value < MOST
"""


def _limit(most: float, *, least: float = 0.0) -> Any:
    def inner(value: float) -> bool:
        return least <= value <= most

    return inner


def _around(function: Any) -> Any:
    def outer(value: float) -> bool:
        return not function(value) or outer(0.0)

    return outer


def test_what_a_function_was_made_with_counts_and_long_values_to_their_middle() -> None:
    numbers = np.arange(5000.0)
    others = numbers.copy()
    others[2500] = 0.5
    pairs: list[tuple[Any, Any]] = [
        (_limit(3), _limit(4)),
        (_limit(3, least=1), _limit(3, least=2)),
        (_around(_limit(3)), _around(_limit(4))),
        (partial(_limit, 3), partial(_limit, 4)),
        (partial(_limit, 3, least=1), partial(_limit, 3, least=2)),
        (lambda value, most=3: value < most, lambda value, most=4: value < most),
        (numbers, others),
        (re.compile("a" * 500 + "b"), re.compile("a" * 500 + "c")),
        (re.compile("a"), re.compile("a", re.IGNORECASE)),
    ]
    for one, other in pairs:
        assert json.dumps(said(one)) != json.dumps(said(other))
    assert said(_around(_limit(3))) == said(_around(_limit(3)))
    assert said(partial(_limit, 3)) == said(partial(_limit, 3))
    assert said(_around(threading.Lock())) == said(_around(threading.Lock()))  # which has another address


def test_code_that_a_declaration_s_module_brings_along_counts_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper, file = f"limits_of_{tmp_path.name}".replace("-", "_"), tmp_path / "ours.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("jobs.digests.settings", lambda: load_settings(pipelines=str(file)))
    monkeypatch.setattr("jobs.digests.code_of", lambda roots, code=code_of(STEPS): code)
    pipeline = grid_pipeline("same")

    def digest(most: str, description: str = "ours", code: str = EXPECTATION) -> str:
        (tmp_path / f"{helper}.py").write_text(f"MOST = {most}\n")
        file.write_text(code.format(helper=helper, description=description))
        for one in (own_code_of, code_of, following._module, following._spec, following._beside):
            one.cache_clear()
        return code_digest(pipeline)

    before = digest("5")
    assert digest("5  # as agreed") == before
    assert digest("55") != before
    assert digest("5", code=EXPECTATION.replace("value <", "value <=")) != before
    only_declares = EXPECTATION.partition("\n\nclass")[0]
    assert digest("5", "one", only_declares) == digest("5", "another", only_declares)
    own_code_of.cache_clear()
    following._module.cache_clear()


def test_shards_are_few_at_any_size_of_the_grid() -> None:
    pipeline = grid_pipeline(partitions=Grid(rows=2000, cols=2000, tile=8, step=0.01), shard_partitions=12)
    every = range(pipeline.partitions.count)
    shards = cut(pipeline, every)
    assert len(shards) <= SHARDS_MAX
    assert [part for shard in shards for part in shard] == list(every)
    assert [len(shard) for shard in cut(pipeline, range(30))] == [12, 12, 6]
    assert cut(pipeline, []) == []


def test_shards_last_tens_of_seconds_by_what_was_measured() -> None:
    pipeline = grid_pipeline(partitions=Grid(rows=1000, cols=1000, tile=10, step=0.01))
    every, rows = range(10_000), rows_of_grid(pipeline.partitions)
    assert (len(rows), sum(rows.values())) == (10_000, 1_000_000)
    shards = cut(pipeline, every, Costs(run=1.0, shard=1.0, row=0.0003), rows)
    assert (len(shards), {len(shard) for shard in shards}) == (10, {1000})  # 300 s
    assert [part for shard in shards for part in shard] == list(every)
    assert len(cut(pipeline, every, Costs(run=1.0, shard=1.0, row=0.00001), rows)) == 1  # 10 s: one task
    assert len(cut(pipeline, every, Costs(run=1.0, shard=1.0, row=0.00002), rows)) == 2  # 20 s: both at once
    assert len(cut(pipeline, every, Costs(run=1.0, shard=1.0, row=0.00008), rows)) == 4  # 80 s: in pairs
    assert len(cut(pipeline, every, Costs(run=1.0, shard=1.0, row=1.0), rows)) == SHARDS_MAX
    uneven = cut(pipeline, range(5), Costs(run=1.0, shard=1.0, row=1.0), {0: 100, 1: 1, 2: 1, 3: 1, 4: 90})
    assert uneven[0] == [0]
    assert all(uneven)


def stage_time(stage: str, seconds: float, rows: int, **steps: float) -> StageTime:
    return StageTime(
        pipeline="p", generation=1, stage=stage, shard=None, started_at=NOON, seconds=seconds, partitions=1, rows=rows,
        outcome="done", steps=steps,
    )  # fmt: skip


def test_a_run_costs_what_it_would_if_as_many_entities_change_as_for_the_newest_one() -> None:
    whole = stage_time("score", 11.0, 1000, score=8.0, model=1.0)
    tenth = structs.replace(whole, generation=2, seconds=3.8, unchanged=900, steps={"score": 0.8, "model": 1.0})
    found = measured([tenth, whole])
    assert found is not None
    assert found.scored == pytest.approx(0.1)
    assert found.row == pytest.approx((2.0 + 2.0) / 2000 + 0.1 * 8.8 / 1100)


def test_costs_are_those_of_the_stages_and_unknown_before_anything_was_scored() -> None:
    assert measured([stage_time("plan", 2.0, 0), stage_time("score", 1.0, 0)]) is None
    found = measured(
        [
            stage_time("plan", 2.0, 0),
            stage_time("gate_features", 10.0, 1000),
            stage_time("score", 6.0, 500, model=1.0),
            stage_time("score", 6.0, 500, model=1.0),
            stage_time("publish", 1.0, 1000),
        ]
    )
    assert found == Costs(run=3.0, shard=1.0, row=0.02)
    assert found.seconds(1000, 2) == pytest.approx(3 + 2 + 20)
