"""The pipeline that docs/add-a-pipeline.md shows, on real Postgres, Redis, Kafka and Feast; without Airflow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from almanac.blocks import decode
from almanac.clock import format_time, utc_now
from almanac.declarations import load_pipelines
from almanac.errors import FeatureError, GateError, ModelError
from almanac.manifest import Description, Input
from almanac.partitioning import Buckets
from almanac.pipeline import Pipeline
from almanac.registry import Registry
from almanac.settings import Settings, load_settings
from features.materialize.run import materialize
from features.online import OnlineFeatures, observation_row
from jobs.check import gate_features, gate_predictions
from jobs.checks.integrity import check_features
from jobs.plan import Plan, plan
from jobs.preview import preview
from jobs.publish import clean_up, publish
from jobs.score import score_shard
from jobs.training.adding import add_lightgbm, add_onnx, own_form
from jobs.training.train import train
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.records import Publication, State
from streaming.publish import Outgoing
from streaming.publish import publish as publish_events
from streaming.records import read_dead_letter
from tests import guide
from tests.lookups import running_lookup
from tests.streams import eventually, read_topic

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.slow,
]

STATIONS = 40
STOP_SECONDS_MAX = 30


@dataclass(frozen=True)
class Own:
    """The page's pipeline with its files, a trained model and a migrated store."""

    settings: Settings
    pipeline: Pipeline
    folder: Path
    steps: list[str]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_url: str, kafka_bootstrap: str) -> Own:
    folder = guide.written(tmp_path_factory.mktemp("own") / "bikes")
    found = load_settings(
        state_dir=tmp_path_factory.mktemp("own-state"),
        postgres_url=postgres_url,
        redis_url=redis_url,
        kafka_bootstrap=kafka_bootstrap,
        feature_repo=str(folder / "feast_bikes.py"),
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


def report(station: str, rides: object, moment: str) -> Outgoing:
    body = {"station": station, "observed_at": moment, "rides": rides, "open": True}
    return Outgoing(value=json.dumps(body).encode(), key=station.encode())


@contextmanager
def running_stream(variables: dict[str, str], log: Path) -> Iterator[None]:
    """`python -m streaming` until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "streaming"], env=variables, cwd=guide.ROOT, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS_MAX)
        finally:
            process.kill()
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def published(own: Own) -> Publication:
    made = publish(own.pipeline, own.settings, run(own, "looked up"), now=utc_now())
    materialize(own.pipeline, own.settings, made_as_of(own))
    return made


def made_as_of(own: Own) -> datetime:
    return pd.read_parquet(own.folder / "now.parquet")["event_timestamp"].max().to_pydatetime()  # type: ignore[no-any-return]


def test_a_station_is_looked_up_and_one_event_changes_it(own: Own, published: Publication, tmp_path: Path) -> None:
    """By REST, with the stream as a process of its own."""
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ALMANAC_")},
        "PYTHONPATH": str(guide.ROOT),
        "ALMANAC_STATE_DIR": str(own.settings.state_dir),
        "ALMANAC_PIPELINES": str(own.folder / "bikes.py"),
        "ALMANAC_FEATURE_REPO": str(own.folder / "feast_bikes.py"),
        "ALMANAC_POSTGRES_URL": own.settings.need("postgres_url"),
        "ALMANAC_REDIS_URL": own.settings.need("redis_url"),
        "ALMANAC_KAFKA_BOOTSTRAP": own.settings.need("kafka_bootstrap"),
    }
    path = "/v1/bikes/entities/station-07"
    with running_lookup(variables, tmp_path / "lookup.log") as client:
        first = client.get(path).json()
        assert (first["entity"], first["source"], first["verdict"]) == ("station-07", "batch", "fresh"), first
        assert first["outputs"]["rides_24h"]["valid_at"] is not None
        assert client.get("/v1/bikes/entities/station-99").status_code == 404
        with running_stream(variables, tmp_path / "stream.log"):
            moment = format_time(utc_now())
            sent = [report("station-07", 300.0, moment), report("station-08", 61_000, moment)]
            publish_events(sent, own.pipeline, own.settings)
            second = eventually(
                lambda: found if (found := client.get(path).json())["source"] == "stream" else None,
                (tmp_path / "stream.log").read_text,
            )
    assert second["as_of"] == moment
    assert second["outputs"]["rides_24h"]["value"] != first["outputs"]["rides_24h"]["value"]
    (letter,) = [read_dead_letter(found) for found in read_topic(own.settings, own.pipeline.dead_letter_topic)]
    assert (letter.reason, letter.key) == ("out-of-range", b"station-08")


def test_its_features_are_checked_and_an_event_is_in_flight_until_the_files_have_it(
    own: Own, published: Publication
) -> None:
    value = {"rides": 12.0, "open": 1.0}
    row = observation_row(own.pipeline, "station-11", utc_now(), value)
    OnlineFeatures(own.pipeline, own.settings).push(pa.Table.from_pylist([row]))
    check = check_features(own.pipeline, own.settings, now=utc_now())
    assert check.sampled == STATIONS
    views = {view.view: view for view in check.views}
    compared = {one: one.skew.compared for one in check.features if one.skew is not None}
    assert sum(one.skew.unequal for one in check.features if one.skew is not None) == 0
    assert compared == {one: STATIONS - views[one.view].in_flight for one in check.features}
    assert [view.in_flight > 0 for view in check.views] == [view.pushed for view in check.views]
    assert {view.bounds_version for view in check.views} == {1}


def test_entities_come_and_go(own: Own, published: Publication) -> None:
    files = {name: pd.read_parquet(own.folder / f"{name}.parquet") for name in ("now", "habits")}
    newest = made_as_of(own)
    try:
        for name, frame in files.items():
            gone = frame[(frame["station"] != "station-03") | (frame["event_timestamp"] < newest - timedelta(hours=9))]
            come = frame[(frame["station"] == "station-01") & (frame["event_timestamp"] == newest)]
            changed = pd.concat([gone, come.assign(station="new é station")])
            changed.to_parquet(own.folder / f"{name}.parquet", index=False, coerce_timestamps="us")
        asked = preview(own.pipeline, own.settings, cutoff=utc_now(), now=utc_now())
        made = publish(own.pipeline, own.settings, run(own, "come and gone"), now=utc_now())
    finally:
        for name, frame in files.items():
            frame.to_parquet(own.folder / f"{name}.parquet", index=False, coerce_timestamps="us")
    assert made.rows == STATIONS
    keys = known(own, made.generation)
    # What was to be scored are the entities of now, and not those of the generation before.
    partitions = own.pipeline.partitions
    assert isinstance(partitions, Buckets)
    now = Counter(partitions.partitions_of(sorted(keys)))
    before = Counter(partitions.partitions_of(sorted(known(own, published.generation))))
    assert now != before
    assert {one.partition: one.rows for one in asked.partitions} == {at: now[at] for at in range(partitions.count)}
    assert "new é station" in keys
    assert "station-03" not in keys


def known(own: Own, generation: int) -> set[str]:
    with PostgresStore(own.settings.need("postgres_url")) as store:
        manifest = store.manifest(own.pipeline.name, generation)
        blocks = store.blocks(own.pipeline, generation, list(manifest))
    return {key.decode() for data in blocks.values() for key in decode(data).keys}


DAGS = """
import sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
assert "rides_24h" in bag.dags["bikes"].doc_md
batch, features = bag.dags["bikes"].tasks, bag.dags["bikes_features"].tasks
assert {task.weight_rule for task in [*batch, *features]} == {"absolute"}
assert min(task.priority_weight for task in batch) > max(task.priority_weight for task in features)
assert bag.dags["bikes_features"].get_task("materialize").max_active_tis_per_dagrun == 1
print(*sorted(stats.file.rpartition("/")[2] for stats in bag.dagbag_stats))
print(*sorted(bag.dags), *bag.dags["bikes"].task_ids)
"""


def test_airflow_takes_the_dag_files_alone_and_makes_its_dags(own: Own, tmp_path: Path) -> None:
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ALMANAC_")},
        "PYTHONPATH": str(guide.ROOT),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "ALMANAC_PIPELINES": str(own.folder / "bikes.py"),
    }
    command = [sys.executable, "-c", DAGS, str(guide.ROOT / "dags")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    files, found = done.stdout.splitlines()[-2:]
    assert files.split() == sorted(path.name for path in (guide.ROOT / "dags").glob("almanac_*.py"))
    assert {"bikes", "bikes_features", "bikes_integrity", "plan", "gate_features"} <= set(found.split())


def test_a_missing_number_quarantines_its_bucket_alone(own: Own, published: Publication) -> None:
    whole = pd.read_parquet(own.folder / "habits.parquet")
    hit = (whole["station"] == "station-05") & (whole["event_timestamp"] == made_as_of(own))
    lenient = replace(own, pipeline=replace(own.pipeline, coverage_min=0.5))
    bucket = own.pipeline.partitions.partition_of("station-05")
    try:
        holes = whole.assign(hour=whole["hour"].astype("Int64").mask(hit), rides_day=whole["rides_day"].mask(hit))
        holes.to_parquet(own.folder / "habits.parquet", index=False, coerce_timestamps="us")
        made = plan(lenient.pipeline, own.settings, run_key="holes", cutoff=utc_now(), now=utc_now())
        assert not gate_features(lenient.pipeline, own.settings, made).failing  # no gate is declared on features
        results = [score_shard(lenient.pipeline, own.settings, made, shard) for shard in made.shards]
        assert materialize(own.pipeline, own.settings, made_as_of(own)) > 0  # a hole is written as one
    finally:
        whole.to_parquet(own.folder / "habits.parquet", index=False, coerce_timestamps="us")
    (reasons,) = [result.quarantined for result in results if result.quarantined]
    assert list(reasons) == [bucket]
    assert "hour" in reasons[bucket] or "rides_day" in reasons[bucket]
    done = publish(lenient.pipeline, own.settings, made, now=utc_now())
    assert done.coverage == 7 / 8
    with PostgresStore(own.settings.need("postgres_url")) as store:
        manifest = store.manifest(own.pipeline.name, done.generation)
    assert [part for part, entry in manifest.items() if entry.reason] == [bucket]
    # A page shows the rows, as of what a gate refused.
    (place,) = re.findall(r"\(see (quarantine/.*-inputs-\d+\.html)\)", manifest[bucket].reason or "")
    page = (own.settings.state_dir / place).read_text()
    for said in (
        "inputs that cannot be scored",
        "hour has a finite value",
        "rides_day has a finite value",
        "station-05",
    ):
        assert said in page, said


def test_a_run_that_is_rejected_for_coverage_names_column_and_entity(own: Own, published: Publication) -> None:
    whole = pd.read_parquet(own.folder / "habits.parquet")
    hit = (whole["station"] == "station-05") & (whole["event_timestamp"] == made_as_of(own))
    strict = replace(own.pipeline, coverage_min=1.0)
    try:
        holes = whole.assign(rides_day=whole["rides_day"].mask(hit))
        holes.to_parquet(own.folder / "habits.parquet", index=False, coerce_timestamps="us")
        made = plan(strict, own.settings, run_key="strict", cutoff=utc_now(), now=utc_now())
        gate_features(strict, own.settings, made)
        for shard in made.shards:
            score_shard(strict, own.settings, made, shard)
    finally:
        whole.to_parquet(own.folder / "habits.parquet", index=False, coerce_timestamps="us")
    said = (
        r"covers 7 of 8 partitions, below coverage_min 1 \(.*rides_day is missing .*station station-05.*see quarantine/"
    )
    with pytest.raises(GateError, match=said):
        publish(strict, own.settings, made, now=utc_now())
    with PostgresStore(own.settings.need("postgres_url")) as store:
        record = store.generation(own.pipeline.name, made.generation)
    assert record is not None
    assert re.search(said, record.reason)


def test_a_model_from_elsewhere_is_tried_on_the_newest_rows(own: Own, tmp_path: Path) -> None:
    registry = Registry(own.settings.models_dir)
    mine = registry.resolve(own.pipeline.model)
    text = tmp_path / "model.txt"
    text.write_bytes(mine.read("model-rides_24h.txt"))

    def progress(_: str) -> None: ...

    added = add_lightgbm(own.pipeline, own.settings, {"rides_24h": text}, now=utc_now(), progress=progress)
    assert added.hash == mine.hash  # the same trees on the same columns are the same graph
    assert added.manifest.training is None
    assert added.manifest.parity.rows == STATIONS
    assert registry.resolve(own.pipeline.model).id == mine.id  # no alias moved
    graph = tmp_path / "model.onnx"
    graph.write_bytes(mine.read("model.onnx"))
    given = add_onnx(own.pipeline, own.settings, graph, inputs=(), now=utc_now(), progress=progress)
    assert [column.name for column in given.manifest.inputs] == ["rides", "open", "rides_day", "hour"]
    with pytest.raises(ModelError, match=r"reads weight, which FeatureService bikes_v1 does not have") as caught:
        add_onnx(
            own.pipeline,
            own.settings,
            graph,
            inputs=("rides", "open", "rides_day", "weight"),
            now=utc_now(),
            progress=progress,
        )
    assert "\n" not in str(caught.value)
    foreign = replace(own.pipeline, features="weather_v1")
    with pytest.raises(FeatureError, match="has the join keys cell_id, pipeline bikes predicts for station"):
        add_onnx(foreign, own.settings, graph, inputs=(), now=utc_now(), progress=progress)


def test_a_model_on_other_features_stops_the_run_before_anything_is_written(own: Own, published: Publication) -> None:
    registry = Registry(own.settings.models_dir)
    mine = registry.resolve(own.pipeline.model)
    fields = {name: getattr(mine.manifest, name) for name in Description.__struct_fields__}
    graph = own_form("m.onnx", mine.read("model.onnx"), own.pipeline, ("rides", "open", "rides_day", "temperature"))
    inputs = tuple(Input(name=name) for name in ("rides", "open", "rides_day", "temperature"))
    other = registry.register(
        "others", {"model.onnx": graph}, Description(**{**fields, "inputs": inputs}), now=utc_now()
    )
    registry.set_alias("others", "champion", other.version)
    pipeline = replace(own.pipeline, model="others@champion")
    with pytest.raises(ModelError, match="model others-v1 reads temperature, which FeatureService bikes_v1"):
        plan(pipeline, own.settings, run_key="others", cutoff=utc_now(), now=utc_now())
    with PostgresStore(own.settings.need("postgres_url")) as store:
        assert "others" not in {found.run_key for found in store.generations("bikes")}
