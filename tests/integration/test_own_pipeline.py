"""The pipeline that docs/add-a-pipeline.md shows, on real Postgres, Redis, Kafka and Feast; without Airflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from almanac.clock import utc_now
from almanac.declarations import load_pipelines
from almanac.pipeline import Pipeline
from almanac.registry import Registry
from almanac.settings import Settings, load_settings
from jobs.check import gate_features, gate_predictions
from jobs.plan import Plan, plan
from jobs.publish import clean_up, publish
from jobs.score import score_shard
from jobs.train import train
from serving_cache.migrate import migrate
from serving_cache.records import State
from tests import guide

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.slow,
]

STATIONS = 40


@dataclass(frozen=True)
class Own:
    """The page's pipeline with its files, a trained model and a migrated store."""

    settings: Settings
    pipeline: Pipeline
    folder: Path
    steps: list[str]

    def with_files(self, folder: Path) -> Settings:
        return self.settings.model_copy(update={"feature_repo": str(folder)})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_url: str) -> Own:
    folder = guide.written(tmp_path_factory.mktemp("own") / "bikes")
    found = load_settings(
        state_dir=tmp_path_factory.mktemp("own-state"),
        postgres_url=postgres_url,
        redis_url=redis_url,
        feature_repo=str(folder),
    )
    pipeline = load_pipelines(str(folder / "bikes.py"))["bikes"]
    migrate(postgres_url, [pipeline])
    steps: list[str] = []
    train(pipeline, found, now=utc_now(), progress=steps.append)
    return Own(found, pipeline, folder, steps)


def run(own: Own, run_key: str) -> Plan:
    """Every step of the DAG but the last, in its order."""
    made = plan(own.pipeline, own.settings, run_key=run_key, cutoff=utc_now(), now=utc_now())
    report = gate_features(own.pipeline, own.settings, made)
    assert not report.failing
    for shard in made.shards_without(report.failing):
        score_shard(own.pipeline, own.settings, made, shard)
    gate_predictions(own.pipeline, own.settings, made)
    return made


def test_training_beats_a_constant(own: Own) -> None:
    version = Registry(own.settings.models_dir).resolve(own.pipeline.model)
    metric = version.manifest.metrics["rides_24h"]
    assert set(metric.baselines) == {"mean", "median"}
    assert metric.ratio < 1
    assert [column.name for column in version.manifest.inputs] == ["rides", "open", "rides_day", "hour"]
    assert version.manifest.held_out is not None
    assert version.manifest.training is not None
    # No row learns from a truth that was not known when the held-out window began.
    assert version.manifest.training.end <= version.manifest.held_out.start


def test_a_generation_holds_every_station(own: Own) -> None:
    made = run(own, "first")
    newest = pd.read_parquet(own.folder / "now.parquet")["event_timestamp"].max().to_pydatetime()
    assert made.moment == newest
    kept = list((own.settings.state_dir / "runs" / "bikes").glob("g*/*.arrow"))
    assert len(kept) == len(made.shards)
    published = publish(own.pipeline, own.settings, made, now=utc_now())
    assert (published.state, published.coverage, published.rows) == (State.CURRENT, 1.0, STATIONS)
    assert not clean_up(own.pipeline, own.settings, made)
    assert not list((own.settings.state_dir / "runs" / "bikes").glob("g*"))
