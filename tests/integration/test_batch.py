"""The batch side on real Postgres, Redis and Feast: plan, gate, score, gate, publish; without Airflow."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from almanac.blocks import decode
from almanac.errors import DataError, GateError, ModelError, Superseded, UnknownModel, UsageError
from almanac.pipeline import Gate, Pipeline
from almanac.registry import Registry
from almanac.scoring import Scorer
from almanac.settings import Settings, load_settings
from jobs.check import gate_features, gate_predictions
from jobs.plan import Plan, check_cutoff, check_watermark, plan
from jobs.preview import preview
from jobs.publish import UNFINISHED, clean_up, publish
from jobs.score import score_shard
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.records import State
from tests.acceptance.tiny_weather import weather as tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
WEATHER = replace(tiny, coverage_min=0.8, training=replace(tiny.training, challenger=None))


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_url: str) -> Settings:
    """Settings with a trained model and a migrated store."""
    from jobs.training.train import train

    found = load_settings(state_dir=tmp_path_factory.mktemp("batch"), postgres_url=postgres_url, redis_url=redis_url)
    migrate(postgres_url, [WEATHER])
    train(WEATHER, found, now=NOW, progress=lambda _text: None)
    return found


def scored(at: Settings, run_key: str, cutoff: datetime, pipeline: Pipeline = WEATHER) -> Plan:
    made = plan(pipeline, at, run_key=run_key, cutoff=cutoff, now=NOW)
    report = gate_features(pipeline, at, made)
    for shard in made.shards_without(report.failing):
        score_shard(pipeline, at, made, shard)
    gate_predictions(pipeline, at, made)
    return made


def judged_otherwise(most: float) -> Pipeline:
    """The same pipeline with one more gate, by which everything is scored though the inputs are the same."""
    expectation, kwargs = "expect_column_values_to_be_between", {"column": "t2m", "max_value": most}
    return replace(WEATHER, gates=(*WEATHER.gates, Gate(on="features", expectation=expectation, kwargs=kwargs)))


def rows_of(at: Settings, generation: int) -> dict[int, dict[str, float]]:
    """Every prediction of a generation, as its blocks in Postgres say."""
    found: dict[int, dict[str, float]] = {}
    with PostgresStore(at.need("postgres_url")) as store:
        manifest = store.manifest(WEATHER.name, generation)
        blocks = {
            digest: data
            for origin in {entry.origin for entry in manifest.values()}
            for digest, data in store.blocks(
                WEATHER, origin, [entry.partition for entry in manifest.values() if entry.origin == origin]
            ).items()
        }
    for entry in manifest.values():
        block = decode(blocks[entry.block_hash])
        for key in block.keys:
            found[int(key)] = dict(block.row(int(key)) or {})
    return found


def expected(at: Settings, moment: datetime) -> dict[str, np.ndarray[Any, Any]]:
    """The predictions made straight from the source's observations up to `moment`, and nothing later."""
    from features.grid import HISTORY_HOURS, grid_features
    from features.sources import open_source

    window = open_source(WEATHER, at).window(moment - timedelta(hours=HISTORY_HOURS), moment)
    columns = grid_features(window.values, window["time"].values, WEATHER.partitions, "t2m")  # type: ignore[arg-type]
    scorer = Scorer.load(Registry(at.models_dir).resolve(WEATHER.model), WEATHER)
    return scorer.score({name: np.ascontiguousarray(columns[name][-1].ravel()) for name in scorer.inputs})


def assert_is_right_for(at: Settings, generation: int, moment: datetime) -> None:
    rows, truth = rows_of(at, generation), expected(at, moment)
    assert sorted(rows) == list(range(WEATHER.partitions.cells))  # type: ignore[union-attr]
    for name in WEATHER.output_names:
        np.testing.assert_allclose([rows[cell][name] for cell in sorted(rows)], truth[name], atol=1e-3)


def test_a_run_is_published_and_right_and_a_past_one_is_archived_and_right(at: Settings) -> None:
    hour = NOW.replace(minute=0)
    first = publish(WEATHER, at, scored(at, "now", hour), now=NOW)
    assert (first.state, first.coverage, first.rows) == (State.CURRENT, 1.0, 99)
    assert_is_right_for(at, first.generation, hour)

    past = hour - timedelta(hours=30)
    backfill = publish(WEATHER, at, scored(at, "backfill", past), now=NOW)
    assert backfill.state == State.ARCHIVED
    assert_is_right_for(at, backfill.generation, past)
    with PostgresStore(at.need("postgres_url")) as store:
        pointer = store.pointer(WEATHER.name)
    assert pointer is not None
    assert pointer.generation.generation == first.generation


def test_a_retry_scores_only_what_is_missing(at: Settings) -> None:
    pipeline = judged_otherwise(401.0)
    made = plan(pipeline, at, run_key="retried", cutoff=NOW, now=NOW)
    assert score_shard(pipeline, at, made, made.shards[0]).staged == len(made.shards[0])
    again = plan(pipeline, at, run_key="retried", cutoff=NOW, now=NOW)
    assert again.generation == made.generation
    assert again.token > made.token
    assert again.shards == made.shards[1:]
    result = score_shard(pipeline, at, again, made.shards[0])
    assert (result.staged, result.skipped) == (0, len(made.shards[0]))
    with pytest.raises(Superseded):
        score_shard(pipeline, at, made, made.shards[1])  # the older attempt
    assert clean_up(WEATHER, at, again, now=NOW)
    cleared = plan(pipeline, at, run_key="retried", cutoff=NOW, now=NOW)
    assert (cleared.generation, cleared.shards) == (made.generation, made.shards[1:])
    with PostgresStore(at.need("postgres_url")) as store:
        times = store.stage_times(WEATHER.name, made.generation)
    assert [(found.stage, found.outcome) for found in times] == [
        ("plan", "done"),
        ("score", "done"),
        ("plan", "done"),
        ("score", "done"),
        ("score", "Superseded"),
        ("clean_up", "done"),
        ("plan", "done"),
    ]
    assert (times[1].partitions, times[3].rows) == (len(made.shards[0]), 0)
    assert times[1].rows > 0
    assert set(times[1].steps) == {"model", "features", "score", "waiting", "postgres", "redis"}


def _spoil(at: Settings, cells: set[int], day: datetime) -> Path:
    """Blank the newest observations of some cells, as a source with holes would."""
    return _overwrite(at, cells, day, None)


def _touch(at: Settings, cells: set[int], day: datetime) -> Path:
    """Give some cells another observation, as a source that corrects itself would."""
    return _overwrite(at, cells, day, 291.5)


def _overwrite(at: Settings, cells: set[int], day: datetime, value: float | None) -> Path:
    import pyarrow as pa
    import pyarrow.compute as pc

    (path,) = at.features_dir.glob(f"weather/cell_observation/{day:%Y-%m-%d}.parquet")
    table = pq.read_table(path)
    hit = pc.is_in(table["cell_id"], value_set=pa.array(sorted(cells), table["cell_id"].type))
    values = pc.if_else(hit, pa.scalar(value, pa.float32()), table["t2m"])
    index = table.column_names.index("t2m")
    pq.write_table(table.set_column(index, table.schema.field("t2m"), values), path)
    return path


def test_what_did_not_change_is_not_scored_again_and_speaks_as_of_the_new_run(at: Settings) -> None:
    hour = NOW.replace(minute=0)
    pipeline = judged_otherwise(404.0)
    first = plan(pipeline, at, run_key="first", cutoff=hour, now=NOW)
    assert first.unchanged == 0
    gate_features(pipeline, at, first)
    for shard in first.shards:
        score_shard(pipeline, at, first, shard)
    publish(pipeline, at, first, now=NOW)
    before = rows_of(at, first.generation)

    path = _touch(at, {9, 10}, hour)  # one tile's observations; the other files are as they were
    try:
        again = plan(pipeline, at, run_key="again", cutoff=NOW, now=NOW)
        assert again.unchanged == 0  # a file changed: the features are looked at
        report = gate_features(pipeline, at, again)
        assert (len(report.unchanged), report.failing) == (8, {})
        (shard,) = again.shards_without(report.settled)
        assert score_shard(pipeline, at, again, shard).staged == 1
        assert gate_predictions(pipeline, at, again).failing == {}
        published = publish(pipeline, at, again, now=NOW)
        assert (published.state, published.coverage, published.carried) == (State.CURRENT, 1.0, 8)
    finally:
        path.unlink()
    after = rows_of(at, again.generation)
    assert {cell for cell in before if before[cell] != after[cell]} <= set(WEATHER.partitions.entities(shard[0]))  # type: ignore[union-attr]
    assert before[9] != after[9]


def test_what_a_task_scored_by_other_code_than_was_planned_is_scored_again_by_the_next_run(
    at: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = judged_otherwise(407.0)
    hour = NOW.replace(minute=0)
    first = plan(pipeline, at, run_key="updated", cutoff=hour, now=NOW)
    updated, *others = first.shards
    with monkeypatch.context() as patch:  # a worker was updated between planning and its task
        patch.setattr("jobs.digests.code_digest", lambda pipeline: "of other code")
        score_shard(pipeline, at, first, updated)
    for shard in others:
        score_shard(pipeline, at, first, shard)
    publish(pipeline, at, first, now=NOW)
    again = preview(pipeline, at, cutoff=NOW, now=NOW)
    assert {part.partition for part in again.partitions if part.action == "score"} == set(updated)
    assert {part.partition for part in again.partitions if part.action == "carry"} == {
        part for shard in others for part in shard
    }


def test_cells_without_features_are_quarantined_and_carried_forward(at: Settings) -> None:
    hour = NOW.replace(minute=0)
    good = publish(WEATHER, at, scored(at, "good", hour), now=NOW)
    pipeline = judged_otherwise(402.0)
    made = plan(pipeline, at, run_key="holes", cutoff=hour, now=NOW)
    path = _spoil(at, {0, 1}, hour)
    try:
        report = gate_features(pipeline, at, made)
        assert list(report.failing) == [0]
        assert "cell_id 0" in report.failing[0]
        page = at.state_dir / report.reports[0]
        assert "tile r0 c0: 2 failing rows" in page.read_text()
        assert '"cell_id": 1' in page.with_suffix(".json").read_text()
        # The scorer by itself would have found them too.
        assert set(score_shard(pipeline, at, made, made.shards[0]).quarantined) <= {0}
        for shard in made.shards[1:]:
            score_shard(pipeline, at, made, shard)
        published = publish(pipeline, at, made, now=NOW)
        assert (published.carried, round(published.coverage, 3)) == (1, round(8 / 9, 3))
        with PostgresStore(at.need("postgres_url")) as store:
            entry = store.manifest(WEATHER.name, published.generation)[0]
        assert entry.origin == good.generation
        assert entry.reason.endswith(f"(see {report.reports[0]})")

        strict = replace(judged_otherwise(403.0), coverage_min=0.95)
        second = plan(strict, at, run_key="too many holes", cutoff=hour, now=NOW)
        with pytest.raises(GateError, match=r"1 of 9 partitions fail, 89% left, 95% needed"):
            gate_features(strict, at, second)
        assert clean_up(strict, at, second, now=NOW)
    finally:
        path.unlink()  # the next refresh makes it anew
    with PostgresStore(at.need("postgres_url")) as store:
        pointer = store.pointer(WEATHER.name)
        left = {g.run_key: g for g in store.generations(WEATHER.name)}["too many holes"]
    assert pointer is not None
    assert pointer.generation.generation == published.generation
    assert (left.state, left.reason) == (State.STAGED, UNFINISHED)


def test_an_unknown_alias_stops_before_anything_is_written(at: Settings) -> None:
    with pytest.raises(UnknownModel, match="weather"):
        plan(replace(WEATHER, model="weather@shadow"), at, run_key="no model", cutoff=NOW, now=NOW)
    with PostgresStore(at.need("postgres_url")) as store:
        assert "no model" not in {g.run_key for g in store.generations(WEATHER.name)}


@pytest.mark.parametrize("whole", [False, True], ids=["its file alone", "with its manifest"])
def test_a_model_that_changed_between_plan_and_publish_is_not_published(at: Settings, whole: bool) -> None:
    made = scored(at, f"model changed {whole}", NOW, judged_otherwise(407.0 + whole))
    with PostgresStore(at.need("postgres_url")) as store:
        before = store.pointer(WEATHER.name)
    folder = Registry(at.models_dir).resolve(WEATHER.model).path
    model, manifest = folder / "model.onnx", folder / "manifest.json"
    kept = model.read_bytes(), manifest.read_bytes()
    other = kept[0] + b"\x32\x00"  # an empty metadata field more: it loads, and is another file
    try:
        model.write_bytes(other)
        if whole:
            digests = [hashlib.sha256(data).hexdigest().encode() for data in (kept[0], other)]
            manifest.write_bytes(kept[1].replace(*digests))
        with pytest.raises(ModelError, match=rf"generation {made.generation} of .*the current generation stays"):
            publish(WEATHER, at, made, now=NOW)
    finally:
        model.write_bytes(kept[0])
        manifest.write_bytes(kept[1])
    with PostgresStore(at.need("postgres_url")) as store:
        assert store.pointer(WEATHER.name) == before
    assert publish(WEATHER, at, made, now=NOW).state == State.CURRENT  # it is as it was planned again


def test_a_run_for_the_future_is_refused() -> None:
    with pytest.raises(UsageError, match="lies in the future"):
        check_cutoff(NOW + timedelta(hours=1), NOW)


def test_a_source_that_ended_long_ago_is_refused() -> None:
    check_watermark(WEATHER, NOW, NOW - WEATHER.freshness.usable_for)
    with pytest.raises(DataError, match="bring the source up to date"):
        check_watermark(WEATHER, NOW, NOW - WEATHER.freshness.usable_for - timedelta(seconds=1))


def test_a_preview_says_what_a_run_would_do_and_writes_nothing(at: Settings) -> None:
    pipeline = judged_otherwise(405.0)
    hour = NOW.replace(minute=0)
    made = plan(pipeline, at, run_key="previewed", cutoff=hour, now=NOW)
    for shard in made.shards:
        score_shard(pipeline, at, made, shard)
    publish(pipeline, at, made, now=NOW)
    with PostgresStore(at.need("postgres_url")) as store:
        before = store.generations(WEATHER.name)

        same = preview(pipeline, at, cutoff=NOW, now=NOW)
        assert {(part.action, part.reason) for part in same.partitions} == {("carry", "unchanged")}
        assert (same.rows, same.shards) == (0, 0)
        later = preview(pipeline, at, cutoff=NOW + timedelta(hours=1), now=NOW + timedelta(hours=1))
        assert {part.reason for part in later.partitions} == {
            "inputs changed: observations of 2026-03-10T13:00:00Z after 2026-03-10T12:00:00Z"
        }
        assert (later.rows, later.shards) == (99, 2)  # nine tiles, five a shard as declared
        assert later.seconds is not None
        assert later.seconds > 0
        other = preview(judged_otherwise(406.0), at, cutoff=NOW, now=NOW)
        assert {part.reason.partition(":")[0] for part in other.partitions} == {"code changed"}
        path = _touch(at, {9, 10}, hour)
        try:
            touched = preview(pipeline, at, cutoff=NOW, now=NOW)
        finally:
            path.unlink()
        assert [part.action for part in touched.partitions].count("score") == 1
        with pytest.raises(UsageError, match="lies in the future"):
            preview(pipeline, at, cutoff=NOW + timedelta(hours=1), now=NOW)
        assert store.generations(WEATHER.name) == before
