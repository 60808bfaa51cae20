"""The benchmarks of features: their parts can be chosen, their values are compared, the large join is watched."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from almanac.errors import StackError
from benchmarks import features_historical as historical
from benchmarks import join
from benchmarks.features import all_parts, chosen
from benchmarks.features_parts import Part, beside


def test_a_part_is_chosen_by_any_of_its_names() -> None:
    parts = [Part(names=("a", "b"), run=lambda bench: {}), Part(names=("c",), run=lambda bench: {})]
    assert chosen(parts, ["b"]) == parts[:1]
    assert chosen(parts, []) == parts


def test_every_object_of_the_line_has_one_part() -> None:
    assert [name for part in all_parts() for name in part.names] == [
        "historical_300k", "historical_10m", "materialize", "online_100", "online_1000", "redis_memory_ratio",
        "online_sdk_100", "online_sdk_1",
    ]  # fmt: skip


def test_figures_stand_beside_each_other() -> None:
    found = beside({"ours": [{"rate": 6.0}, {"rate": 8.0}], "peer": [{"rate": 2.0}], "floor": [{"rate": 14.0}]}, rows=3)
    assert found == {"ours": 7.0, "peer": 2.0, "floor": 14.0, "ratio_peer": 3.5, "ratio_floor": 0.5, "rows": 3}


def test_the_engine_gives_what_the_world_of_historical_says(tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    historical.write_source(path, keys=5, hours=30, features=historical.FEATURES)
    entities = historical.entity_rows(rows=50, keys=5, hours=30)
    source = pd.read_parquet(path).sort_values(historical.MOMENT)
    merged = pd.merge_asof(
        entities.to_pandas().sort_values(historical.MOMENT), source, on=historical.MOMENT, by=historical.KEY,
        tolerance=historical.TTL,
    )  # fmt: skip
    ours = historical.columnar(path, entities).to_pandas()
    historical.check_same(ours, merged)
    with pytest.raises(StackError, match="ours and the peer differ in feature_03"):
        historical.check_same(ours, merged.assign(feature_03=np.float32(2)))


def test_the_large_join_is_checked_value_by_value_and_watched(tmp_path: Path) -> None:
    join.write_source(tmp_path, keys=20, hours=50)
    assert 0 < join.joined(tmp_path, (10, 20, 50))["found"] <= 10
    other = tmp_path / "other"
    other.mkdir()
    join.write_source(other, keys=20, hours=49)  # the last hour is missing
    with pytest.raises(StackError, match="other values than the generator wrote"):
        join.joined(other, (500, 20, 50))
    found, peak = join.watched(
        [sys.executable, "-c", "import time; x = bytearray(64 << 20); time.sleep(0.5); print(7)"]
    )
    assert found == 7
    assert peak > 64
    with pytest.raises(StackError, match="no such thing"):
        join.watched([sys.executable, "-c", "raise SystemExit('no such thing')"])
