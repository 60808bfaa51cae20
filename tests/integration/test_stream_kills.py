"""Kills, replays and stores that are down: every event counts once, and nothing is lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from almanac.clock import EPOCH, utc_now
from almanac.errors import Unavailable
from almanac.settings import Settings, load_settings
from almanac.stack import redis as redis_server
from almanac.stack.server import free_port
from almanac.stack.servers import running
from features.archive import archived_files
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from streaming.events import Event
from streaming.models import Model
from streaming.publish import publish
from streaming.records import Consumed, prediction_record, read_prediction
from streaming.report import Report
from streaming.sink import Overlays
from tests.generations import new_name
from tests.streams import (
    BEGUN,
    GRID,
    ROOT,
    environment,
    event,
    eventually,
    hours_ahead,
    read_topic,
    register_model,
    tiny_pipeline,
)

KILLS = 6
EVENTS = 3_000
STOP_SECONDS_MAX = 30


@pytest.fixture
def settings(postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path) -> Settings:
    return load_settings(
        state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url, kafka_bootstrap=kafka_bootstrap
    )


@contextmanager
def child(settings: Settings, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The killable process, which has begun."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.stream_child", name],
            env=environment(settings, name), cwd=ROOT, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_after_kills_at_random_moments_every_event_counts_exactly_once(settings: Settings, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    pipeline = tiny_pipeline(new_name())
    migrate(settings.need("postgres_url"), [pipeline])
    model = register_model(settings, pipeline, 0.0)
    begin = utc_now() - timedelta(seconds=EVENTS)
    times = [begin + timedelta(seconds=second) for second in range(EVENTS)]
    dice.shuffle(times)  # events come out of order
    sent = [(dice.randrange(GRID.cells), 250.0 + number % 50, moment) for number, moment in enumerate(times)]
    publish([event(*each) for each in sent], pipeline, settings)
    log = tmp_path / "child.log"

    def predicted() -> list[Consumed]:
        return read_topic(settings, pipeline.predictions_topic)

    for _ in range(KILLS):
        before = len(predicted())
        with child(settings, pipeline.name, log) as process:
            eventually(lambda: len(predicted()) > before or before == EVENTS, log.read_text)  # noqa: B023
            time.sleep(dice.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
    begun = log.read_text().count(BEGUN)
    with child(settings, pipeline.name, log) as process, PostgresStore(settings.need("postgres_url")) as postgres:
        # Everything may be predicted already: its own word, and no effect, says that it has begun.
        eventually(lambda: log.read_text().count(BEGUN) > begun, log.read_text)
        eventually(lambda: len(predicted()) >= EVENTS, log.read_text)
        newest = {cell: max((m, v) for c, v, m in sent if c == cell) for cell, _, _ in sent}
        expected = {
            str(cell): (m, {o: v + hours_ahead(o) for o in pipeline.output_names}) for cell, (m, v) in newest.items()
        }

        def overlays() -> dict[str, tuple[datetime, dict[str, float]]]:
            return {o.entity: (o.as_of, o.values) for o in postgres.overlays(pipeline.name, model, EPOCH)}

        eventually(lambda: overlays() == expected, log.read_text)
        with RedisStore(settings.need("redis_url")) as redis:
            eventually(
                lambda: (
                    {e: redis.overlays(pipeline.name, e)[model].as_of for e in expected}
                    == {e: as_of for e, (as_of, _) in expected.items()}
                ),
                log.read_text,
            )
        eventually(lambda: len(archived(settings)) >= EVENTS, log.read_text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS_MAX) == 0, log.read_text()
    sources = [json.loads(record.value or b"")["source"] for record in predicted()]
    origins = [(source["partition"], source["offset"]) for source in sources]
    assert len(set(origins)) == len(origins) == EVENTS
    assert archived(settings) == sorted(origins)
    assert set(origins) == {(r.partition, r.offset) for r in read_topic(settings, pipeline.stream.topic)}  # type: ignore[union-attr]


def archived(settings: Settings) -> list[tuple[int, int]]:
    """Where each archived event stood, as often as it is there."""
    tables = [
        pq.ParquetFile(path).read(columns=["kafka_partition", "kafka_offset"])
        for path in archived_files(settings.state_dir, None, utc_now())
    ]
    return sorted((row["kafka_partition"], row["kafka_offset"]) for table in tables for row in table.to_pylist())


def prediction(settings: Settings, name: str, cell: int, offset: int) -> Consumed:
    """A record of the predictions topic, later with its offset."""
    moment = datetime(2026, 3, 1, 12, 0, offset, tzinfo=UTC)
    origin = Consumed(topic="t", partition=0, offset=offset, key=None, value=None)
    values = dict.fromkeys(tiny_pipeline(name).output_names, 280.0 + offset)
    event_of = Event(entity=cell, observed_at=moment, value=280.0)
    written = prediction_record(tiny_pipeline(name), origin, event_of, values, Model("m-v1", None), moment)
    return Consumed(topic=written.topic, partition=0, offset=offset, key=written.key, value=written.value)


def test_without_redis_overlays_reach_postgres_and_follow_to_redis_later(settings: Settings, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(new_name())
    migrate(settings.need("postgres_url"), [pipeline])
    server = redis_server.prepare(tmp_path, free_port())
    with PostgresStore(settings.need("postgres_url")) as postgres, RedisStore(server.address) as redis:
        report = Report("overlays")
        overlays = Overlays(pipeline, postgres, redis, report)
        overlays.apply([prediction(settings, pipeline.name, 3, 1), prediction(settings, pipeline.name, 4, 2)])
        overlays.apply([prediction(settings, pipeline.name, 3, 5)])
        assert report.state == "running, Redis behind"
        stored = {o.entity: o for o in postgres.overlays(pipeline.name, "m-v1", EPOCH)}
        assert {entity: o.kafka_offset for entity, o in stored.items()} == {"3": 5, "4": 2}
        with running(server, tmp_path / "redis.log"):
            eventually(lambda: overlays.idle() or report.state == "running")
            assert {entity: redis.overlays(pipeline.name, entity)["m-v1"] for entity in stored} == stored


def test_replayed_and_foreign_predictions_change_nothing(settings: Settings) -> None:
    pipeline = tiny_pipeline(new_name())
    migrate(settings.need("postgres_url"), [pipeline])
    records = [prediction(settings, pipeline.name, 3, offset) for offset in (1, 2, 3)]
    foreign = Consumed(topic="p", partition=0, offset=9, key=None, value=b"{}")
    with PostgresStore(settings.need("postgres_url")) as postgres, RedisStore(settings.need("redis_url")) as redis:
        overlays = Overlays(pipeline, postgres, redis, Report("overlays"))
        assert overlays.apply(records) == {"predictions": 3, "overlays_newer": 1, "not_newer": 2, "foreign": 0}
        assert overlays.apply([*records[:2], foreign]) == {
            "predictions": 2,
            "overlays_newer": 0,
            "not_newer": 2,
            "foreign": 1,
        }
        assert redis.overlays(pipeline.name, "3") == {"m-v1": read_prediction(pipeline, records[2])}


def test_without_postgres_a_sink_is_told_to_wait(settings: Settings) -> None:
    pipeline = tiny_pipeline(new_name())
    nowhere = PostgresStore(f"postgresql://a:b@127.0.0.1:{free_port()}/c")
    with RedisStore(settings.need("redis_url")) as redis:
        overlays = Overlays(pipeline, nowhere, redis, Report("overlays"))
        with pytest.raises(Unavailable):
            overlays.apply([prediction(settings, pipeline.name, 3, 1)])
        assert redis.overlays(pipeline.name, "3") == {}
