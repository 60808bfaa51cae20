"""Outcomes on real Postgres: what is logged, when it is due, what it is compared with, and that it counts once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from almanac.clock import HOUR, floor_hour, utc_now
from almanac.errors import UsageError
from almanac.partitioning import Grid
from almanac.pipeline import GridObservations, Pipeline, Stream
from almanac.quality import Sums, is_sampled
from almanac.settings import Settings, load_settings
from features.sources import open_source
from jobs.outcomes import compute
from jobs.rehearse import rehearse
from serving_cache.monitor import show
from serving_cache.monitor_reading import Eyes
from serving_cache.postgres import PostgresStore
from serving_cache.prediction_log import Key, PredictionLog
from serving_cache.records import FRESH_TOPIC
from tests.generations import NOON, bucket_pipeline, grid_pipeline, migrated, overlay_of, published_generation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

CELLS = 64


@pytest.fixture
def pipeline(postgres_url: str) -> Pipeline:
    found = grid_pipeline(
        partitions=Grid(rows=8, cols=8, tile=2, north=52.5, west=-1.25, step=0.25),
        source=GridObservations(variable="t2m", unit="K", valid_range=(180.0, 340.0)),
    )
    migrated(postgres_url, found)
    return found


@pytest.fixture
def at(tmp_path: Path, postgres_url: str) -> Settings:
    return load_settings(state_dir=tmp_path, postgres_url=postgres_url)


@pytest.fixture
def log(postgres_url: str) -> Iterator[PredictionLog]:
    with PredictionLog(postgres_url) as found:
        yield found


def truth(pipeline: Pipeline, at: Settings, moment: datetime) -> np.ndarray[Any, Any]:
    return np.asarray(open_source(pipeline, at).window(moment, moment).values, np.float64).ravel()


def serve(store: PostgresStore, log: PredictionLog, pipeline: Pipeline, value: float, as_of: datetime) -> int:
    generation = published_generation(store, pipeline, value, as_of).generation
    log.log_generation(pipeline, generation)
    return generation


def test_the_error_of_batch_is_that_against_the_source_at_its_moment(
    pipeline: Pipeline, at: Settings, store: PostgresStore, log: PredictionLog
) -> None:
    serve(store, log, pipeline, 280.0, NOON)
    assert log.progress(pipeline).logged == CELLS
    assert compute(pipeline, at, cutoff=NOON + timedelta(minutes=59)).outcomes == 0
    assert compute(pipeline, at, cutoff=NOON + HOUR).outcomes == CELLS
    sums = log.errors(pipeline.name)["t2m_1h", "batch"]
    expected = 280.0 - truth(pipeline, at, NOON + HOUR)
    assert (sums.n, sums.paired_n, sums.age_sum) == (CELLS, 0, CELLS * 3600)
    assert sums.absolute_sum == pytest.approx(np.abs(expected).sum())
    assert sums.error_sum == pytest.approx(expected.sum())
    assert sums.squared_sum == pytest.approx((expected**2).sum())
    persistence = truth(pipeline, at, NOON) - truth(pipeline, at, NOON + HOUR)
    assert sums.as_now_absolute == pytest.approx(np.abs(persistence).sum())


def test_a_second_run_and_a_death_in_between_count_nothing_twice(
    pipeline: Pipeline, at: Settings, store: PostgresStore, log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(store, log, pipeline, 280.0, NOON)
    from serving_cache import prediction_log

    finish = prediction_log.Settling.finish

    def dies(self: Any, *arguments: Any) -> None:
        finish(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction_log.Settling, "finish", dies)
    with pytest.raises(KeyboardInterrupt):
        compute(pipeline, at, cutoff=NOON + 6 * HOUR)
    monkeypatch.undo()
    assert log.errors(pipeline.name) == {}
    assert compute(pipeline, at, cutoff=NOON + 6 * HOUR).outcomes == 2 * CELLS
    once = log.errors(pipeline.name)
    assert compute(pipeline, at, cutoff=NOON + 6 * HOUR).outcomes == 0
    assert compute(pipeline, at, cutoff=NOON + 2 * HOUR).outcomes == 0
    assert log.errors(pipeline.name) == once
    assert log.progress(pipeline).next_due is None


def test_stream_is_paired_with_the_batch_answer_it_stood_in_for(
    pipeline: Pipeline, at: Settings, store: PostgresStore, log: PredictionLog
) -> None:
    serve(store, log, pipeline, 280.0, NOON)
    event = NOON + timedelta(minutes=30)
    values = {"t2m_1h": 281.0, "t2m_6h": 285.0}
    store.put_overlays(pipeline.name, [overlay_of("5", event, 1, values=values)])
    serve(store, log, pipeline, 290.0, NOON + HOUR)  # too late to be what a reader would have had
    compute(pipeline, at, cutoff=NOON + 3 * HOUR)
    sums = log.errors(pipeline.name)["t2m_1h", "stream"]
    before, after = (truth(pipeline, at, NOON + back * HOUR)[5] for back in (1, 2))
    observed = (before + after) / 2  # at 13:30, between two hourly observations
    assert (sums.n, sums.paired_n) == (1, 1)
    assert sums.absolute_sum == sums.paired_absolute == pytest.approx(abs(281.0 - observed))
    assert sums.replaced_absolute == pytest.approx(abs(280.0 - observed))
    assert (sums.paired_age, sums.replaced_age) == (3600, 5400)
    compute(pipeline, at, cutoff=NOON + 7 * HOUR)
    beyond = log.errors(pipeline.name)["t2m_6h", "stream"]
    assert (beyond.n, beyond.paired_n) == (1, 0)  # the batch answer of noon says nothing of 18:30


def test_a_generation_that_came_later_is_not_what_an_answer_stood_in_for_whatever_the_publishers_clock_says(
    pipeline: Pipeline, at: Settings, store: PostgresStore, log: PredictionLog
) -> None:
    """Both are as of the same hour, and the process that published shows a time long before that of Postgres."""
    serve(store, log, pipeline, 280.0, NOON)
    values = {"t2m_1h": 281.0, "t2m_6h": 285.0}
    store.put_overlays(pipeline.name, [overlay_of("5", NOON + HOUR, 1, values=values)])
    serve(store, log, pipeline, 290.0, NOON + HOUR)
    compute(pipeline, at, cutoff=NOON + 3 * HOUR)
    sums = log.errors(pipeline.name)["t2m_1h", "stream"]
    assert (sums.paired_n, sums.paired_age, sums.replaced_age) == (1, 3600, 7200)


def test_fresh_answers_are_paired_with_whatever_was_there(
    pipeline: Pipeline, at: Settings, store: PostgresStore, log: PredictionLog
) -> None:
    serve(store, log, pipeline, 280.0, NOON)
    at_half, at_forty = NOON + timedelta(minutes=30), NOON + timedelta(minutes=40)
    store.put_overlays(pipeline.name, [overlay_of("5", at_half, 1, values={"t2m_1h": 281.0, "t2m_6h": 281.0})])
    fresh = {"topic": FRESH_TOPIC, "values": {"t2m_1h": 282.0, "t2m_6h": 282.0}}
    store.put_overlays(pipeline.name, [overlay_of("5", at_forty, 0, **fresh)])
    compute(pipeline, at, cutoff=NOON + 3 * HOUR)
    sums = log.errors(pipeline.name)["t2m_1h", "fresh"]
    assert (sums.n, sums.paired_n, sums.replaced_age) == (1, 1, 4200)


def test_what_no_reader_was_given_is_not_logged(
    pipeline: Pipeline, store: PostgresStore, log: PredictionLog, postgres_url: str
) -> None:
    store.put_overlays(pipeline.name, [overlay_of("1", NOON, 1)])  # nothing is published yet
    serve(store, log, pipeline, 280.0, NOON)
    store.put_overlays(pipeline.name, [overlay_of("2", NOON - HOUR, 1)])  # older than the generation
    store.put_overlays(pipeline.name, [overlay_of("3", NOON + HOUR, 1, model="weather-v9")])  # another model
    store.put_overlays(pipeline.name, [overlay_of("4", NOON + HOUR, 2), overlay_of("4", NOON + HOUR, 1)])
    store.put_overlays(pipeline.name, [overlay_of("4", NOON + timedelta(minutes=61), 3)])  # the same hour's second
    archived = serve(store, log, pipeline, 270.0, NOON - 2 * HOUR)
    assert log.log_generation(pipeline, archived) == 0
    with psycopg.connect(postgres_url) as connection:
        rows = connection.execute(
            "SELECT source, entity, as_of FROM prediction_log WHERE pipeline = %s AND source <> 'batch'",
            (pipeline.name,),
        ).fetchall()
        batch = connection.execute(
            "SELECT count(*), count(DISTINCT as_of) FROM prediction_log WHERE pipeline = %s AND source = 'batch'",
            (pipeline.name,),
        ).fetchone()
    assert rows == [("stream", "4", NOON + HOUR)]
    assert batch == (CELLS, 1)


def test_a_log_that_fails_costs_no_overlay(pipeline: Pipeline, store: PostgresStore, log: PredictionLog) -> None:
    serve(store, log, pipeline, 280.0, NOON)
    with store._client.transaction() as connection:
        connection.execute("ALTER TABLE prediction_log RENAME TO prediction_log_gone")
    try:
        assert store.put_overlays(pipeline.name, [overlay_of("1", NOON + HOUR, 1)]) == 1
    finally:
        with store._client.transaction() as connection:
            connection.execute("ALTER TABLE prediction_log_gone RENAME TO prediction_log")
    assert [found.entity for found in store.overlays(pipeline.name, "weather-v1", NOON)] == ["1"]
    assert log.logged(pipeline.name, "stream", NOON + HOUR) == 0


def test_of_many_entities_the_same_sample_is_logged_of_every_source(
    pipeline: Pipeline, store: PostgresStore, log: PredictionLog, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("almanac.quality.SAMPLED_ENTITIES_MAX", 20)
    serve(store, log, pipeline, 280.0, NOON)
    overlays = [overlay_of(str(cell), NOON + HOUR, cell) for cell in range(CELLS)]
    store.put_overlays(pipeline.name, overlays)
    with psycopg.connect(postgres_url) as connection:
        found: dict[str, set[str]] = {"batch": set(), "stream": set()}
        for source, entity in connection.execute(
            "SELECT source, entity FROM prediction_log WHERE pipeline = %s", (pipeline.name,)
        ):
            found[source].add(entity)
    assert found["batch"] == found["stream"]
    assert found["batch"] == {str(cell) for cell in range(CELLS) if is_sampled(str(cell), 2**32 * 20 // CELLS)}
    assert 8 < len(found["batch"]) < 36


def test_the_log_lets_go_of_what_no_outcome_needs(pipeline: Pipeline, store: PostgresStore, log: PredictionLog) -> None:
    serve(store, log, pipeline, 280.0, NOON)
    serve(store, log, pipeline, 281.0, NOON + timedelta(days=3))
    assert log.progress(pipeline).logged == CELLS


def test_a_rehearsal_never_goes_back_behind_what_is_served(
    pipeline: Pipeline, at: Settings, store: PostgresStore, log: PredictionLog
) -> None:
    streamed = replace(pipeline, stream=Stream(topic=f"{pipeline.name}.events"))

    def go(hours: int, until: int, declared: Pipeline = streamed) -> None:
        rehearse(declared, at, hours=hours, until=until, now=NOON, progress=lambda _text: None)

    serve(store, log, pipeline, 280.0, NOON - 3 * HOUR)
    with pytest.raises(UsageError, match=r"already serves generation 1 as of 2026-03-01T09:00:00Z, newer than .*08:00"):
        go(4, 0)
    for hours, until in ((25, 0), (3, 3), (3, 4)):
        with pytest.raises(UsageError, match="cannot be rehearsed: events are usable for 24 hours"):
            go(hours, until)
    with pytest.raises(UsageError, match="declare a source, a stream"):
        go(4, 0, pipeline)
    assert [found.state for found in store.generations(pipeline.name)] == ["current"]


def test_the_monitor_shows_the_errors_of_the_last_day(pipeline: Pipeline, postgres_url: str, redis_url: str) -> None:
    hour = floor_hour(utc_now())
    key, old = Key("t2m_1h", "stream", "weather-v1", hour), Key("t2m_1h", "stream", "weather-v1", hour - 30 * HOUR)
    sums = Sums(n=4, absolute_sum=2.0, paired_n=2, paired_absolute=1.0, replaced_absolute=3.0)
    with PredictionLog(postgres_url) as log, log.settling(pipeline) as settling:
        settling.finish({key: sums, old: replace(sums, absolute_sum=100.0)}, hour)
    with closing(Eyes(postgres_url, redis_url)) as eyes:
        found = eyes.look(pipeline)
        assert eyes.look(pipeline).errors is None  # an hour's errors need no look every other second
    show(pipeline, found, utc_now())
    labels = {"pipeline": pipeline.name, "output": "t2m_1h", "source": "stream"}
    for name, expected in (("", 0.5), ("_paired", 0.5), ("_replaced", 1.5)):
        assert REGISTRY.get_sample_value(f"almanac_prediction{name}_error", labels) == expected
    assert REGISTRY.get_sample_value("almanac_prediction_outcomes", labels) == 4


def test_a_pipeline_without_observations_has_no_outcomes(at: Settings, postgres_url: str) -> None:
    users = migrated(postgres_url, bucket_pipeline())
    with pytest.raises(UsageError, match="predicts nothing that is observed"):
        compute(users, at, cutoff=NOON)


def test_the_commands_say_what_waits_and_then_what_was_found(
    pipeline: Pipeline, at: Settings, store: PostgresStore, log: PredictionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from almanac.cli import build_app

    monkeypatch.setattr("almanac.declarations.pipeline", lambda _name: pipeline)
    monkeypatch.setattr("almanac.settings.settings", lambda: at)

    def say(*words: str) -> str:
        done = CliRunner().invoke(build_app(), list(words))
        assert done.exit_code == 0, done.output + repr(done.exception)
        return " ".join(done.output.split())

    assert "almanac trigger" in say("quality", "weather")
    serve(store, log, pipeline, 280.0, NOON)
    assert "64 predictions wait, the first is about 2026-03-01T13:00:00Z" in say("quality", "weather")
    event = {"values": {"t2m_1h": 281.0, "t2m_6h": 281.0}}
    store.put_overlays(pipeline.name, [overlay_of("5", NOON + timedelta(minutes=30), 1, **event)])
    assert "outcomes of" in say("outcomes", "weather")
    told = say("quality", "weather", "--plot", str(at.state_dir / "q.svg"))
    assert "t2m_1h stream █" in told or "t2m_1h batch █" in told
    assert (at.state_dir / "q.svg").read_text().startswith("<svg")
    assert '"settled_through"' in say("quality", "weather", "--json")
    assert "no moment since then" in say("quality", "weather", "--since", "2090-01-01T00:00:00Z")
