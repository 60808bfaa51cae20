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
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Gate, Output, Pipeline, Stream, Training, horizons
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


def test_shards_hold_every_partition_once() -> None:
    shards = weather.shards()
    assert [partition for shard in shards for partition in shard] == list(range(weather.partitions.count))
    assert max(len(shard) for shard in shards) == weather.shard_partitions
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
