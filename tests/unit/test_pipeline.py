"""A declaration that contradicts itself is refused where it is written, with what to change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from almanac.declarations import load_pipelines
from almanac.errors import DeclarationError
from almanac.partitioning import Buckets, Grid
from almanac.pipeline import (
    SHARD_PARTITIONS,
    Freshness,
    Gate,
    GridObservations,
    Output,
    Pipeline,
    Stream,
    Training,
    horizons,
)
from pipelines.weather import weather


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Weather!"}, "Pipeline.name is 'Weather!'"),
        ({"outputs": ()}, "outputs has 0 entries"),
        ({"outputs": (*weather.outputs, weather.outputs[0])}, "repeats a name"),
        ({"outputs": (Output(name="cell_id"),)}, "also the entity"),
        ({"model": "weather"}, "model is 'weather'"),
        ({"schedule": "hourly"}, "cron expression of five fields"),
        ({"coverage_min": 0}, "coverage_min is 0"),
        ({"generations_kept": 0}, "generations_kept is 0"),
        ({"default": {"t2m_1h": 280.0}}, "give each output one value"),
        ({"partitions": Buckets(count=4)}, "declare a Grid"),
        ({"partitions": "tiles"}, "give a Grid or Buckets"),
        ({"freshness": Freshness(fresh_for=timedelta(days=2), usable_for=timedelta(days=3))}, "outlives every horizon"),
        ({"shard_partitions": 0}, "shard_partitions is 0"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said) as caught:
        replace(weather, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Freshness(fresh_for=timedelta(hours=2), usable_for=timedelta(hours=1)), "shorter than fresh_for"),
        (lambda: Freshness(fresh_for=timedelta(0), usable_for=timedelta(hours=1)), "above 0"),
        (lambda: Stream(topic="no spaces please"), "Stream.topic"),
        (lambda: Gate(on="weather", expectation="expect_x"), "Gate.on"),  # type: ignore[arg-type]
        (lambda: Gate(on="features", expectation="between"), "starts with expect_"),
        (lambda: Training(holdout=timedelta(days=40)), "shorter than window"),
        (lambda: Output(name="x", horizon=timedelta(0)), "horizon is 0:00:00"),
    ],
)
def test_parts_check_themselves(make: Any, said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        make()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Freshness(fresh_for="abc", usable_for=timedelta(1)), r"Freshness.fresh_for is 'abc': give a duration"),
        (lambda: Freshness(fresh_for=90, usable_for=timedelta(1)), r"Freshness.fresh_for is 90: give a duration"),
        (lambda: horizons("t2m", hours="1"), r"horizons\(hours='1'\): give a tuple of whole hours"),
        (lambda: horizons("t2m", hours=(1.5,)), r"1.5 is 1.5: give a whole number of at least 1"),
        (lambda: Grid(rows=3.5, cols=2, tile=1), "Grid.rows is 3.5: give a whole number of at least 1"),
        (lambda: Grid(rows=True, cols=2, tile=1), "Grid.rows is True: give a whole number"),
        (
            lambda: Grid(rows=999, cols=999, tile=1, step=0.01),
            "has 998,001 partitions, more than 65,536: enlarge `tile`",
        ),
        (lambda: Grid(rows=3, cols=2, tile=1, step="0.25"), "Grid.step is '0.25': give a number"),
        (lambda: Buckets(count="8"), "Buckets.count is '8': give a whole number from 1 to 65,536"),
        (lambda: Buckets(count=8, keys=int), "Buckets.keys is <class 'int'>: give 'string' or 'integer'"),
        (lambda: Output(name="x", horizon=1), "output x: horizon is 1: give a duration"),
        (lambda: Output(name="x", unit=1), "output x: unit is 1: give text"),
        (
            lambda: GridObservations(variable="t", unit="K", valid_range=5),
            r"valid_range is 5: give \(least, greatest\)",
        ),
        (lambda: GridObservations(variable="t", unit="K", valid_range=("a", "b")), "valid_range is"),
        (lambda: Stream(topic="t", values=("a",)), "Stream.values is"),
        (
            lambda: Stream(topic="t", values={"a": (2, 1)}),
            r"Stream.values\['a'\] is \(2, 1\): give \(least, greatest\)",
        ),
        (lambda: Stream(topic="t", values={"a": int}), r"Stream.values\['a'\] is <class 'int'>"),
        (lambda: Stream(topic="t", values={"a b": None}), "a column of Stream.values is 'a b'"),
        (lambda: Gate(on="features", expectation="expect_x", kwargs="column"), "Gate.kwargs is 'column'"),
        (lambda: Training(window="30 days"), "Training.window is '30 days': give a duration"),
        (lambda: Training(trees=1.5), "Training.trees is 1.5: give a whole number of at least 1"),
        (lambda: Training(objective="accuracy"), "Training.objective is 'accuracy': give one of regression_l1"),
        (lambda: Training(labels="No Such"), "Training.labels is 'No Such'"),
        (lambda: replace(weather, outputs="t2m"), "outputs is 't2m': give a tuple of Output"),
        (lambda: replace(weather, outputs=weather.outputs[0]), "outputs is Output.*give a tuple of Output"),
        (lambda: replace(weather, gates=("x",)), r"gates is \('x',\): give a tuple of Gate"),
        (lambda: replace(weather, schedule=60), "schedule is 60: give text"),
        (lambda: replace(weather, freshness=timedelta(1)), "freshness is .*: give Freshness"),
        (lambda: replace(weather, stream="topic"), "stream is 'topic': give Stream"),
        (lambda: replace(weather, coverage_min="all"), "coverage_min is 'all': give a number from 0 to 1"),
        (lambda: replace(weather, shard_partitions=2.5), "shard_partitions is 2.5: give a whole number"),
        (lambda: replace(weather, default=280), "default is 280: give a dictionary"),
        (lambda: replace(weather, default=dict.fromkeys(weather.output_names, "x")), "default.* is 'x': give a number"),
        (lambda: replace(weather, source=None), "stream says nothing of what events carry"),
        (lambda: replace(weather, stream=Stream(topic="t", values={"a": None})), "events carry the source's variable"),
        (lambda: replace(weather, training=Training(labels="truth")), "the source is the truth"),
        (
            lambda: replace(weather, source=None, stream=Stream(topic="t", values={"cell_id": None})),
            "events cannot carry 'cell_id'",
        ),
    ],
)
def test_a_wrong_type_is_one_line_with_field_and_remedy(make: Any, said: str) -> None:
    with pytest.raises(DeclarationError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_shards_hold_every_partition_once() -> None:
    shards = weather.shards()
    assert [partition for shard in shards for partition in shard] == list(range(weather.partitions.count))
    assert max(len(shard) for shard in shards) == SHARD_PARTITIONS
    assert weather.shard_label(shards[0]) == "tile r0 c0 … tile r1 c4 (12)"


def test_horizons_name_their_outputs() -> None:
    outputs = horizons("t2m", hours=(1, 24), unit="K")
    assert [(o.name, o.horizon, o.unit) for o in outputs] == [
        ("t2m_1h", timedelta(hours=1), "K"),
        ("t2m_24h", timedelta(hours=24), "K"),
    ]


def test_a_file_with_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("from almanac.pipeline import Pipeline\nbroken = Pipeline(name='broken')\n")
    with pytest.raises(DeclarationError, match=r"broken\.py.*missing.*complete or correct the declaration") as caught:
        load_pipelines(str(path))
    assert "\n" not in str(caught.value)


def test_two_pipelines_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "again.py"
    path.write_text(
        "from dataclasses import replace\nfrom pipelines.weather import weather\nw = replace(weather, owner='x')\n"
    )
    with pytest.raises(DeclarationError, match="two pipelines are named 'weather'"):
        load_pipelines(f"pipelines,{path}")


def test_declarations_import_nothing_heavy() -> None:
    script = (
        "import sys, almanac.declarations as d; assert isinstance(d.pipeline('weather').name, str); "
        "heavy = {'airflow', 'feast', 'confluent_kafka', 'pandas', 'numpy', 'redis'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pipeline_type_is_frozen() -> None:
    with pytest.raises(AttributeError):
        weather.name = "other"  # type: ignore[misc]
    assert isinstance(weather, Pipeline)


def test_a_file_without_a_pipeline_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(DeclarationError, match=r"no pipeline is declared in .*empty\.py"):
        load_pipelines(str(path))


def test_whatever_a_declaration_raises_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text("raise RuntimeError('odd')\n")
    with pytest.raises(DeclarationError, match=r"odd\.py cannot be imported \(RuntimeError: odd\)"):
        load_pipelines(str(path))
