"""The stream as a process of its own, on the real broker, stores and features: events in, overlays out."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from almanac.clock import EPOCH, utc_now
from almanac.errors import EventError
from almanac.pipeline import Pipeline
from almanac.registry import Registry
from almanac.settings import Settings, load_settings
from features.archive import archived_files
from features.ingest import refresh
from features.materialize.run import materialize
from features.online import OnlineFeatures
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.records import OverlayRecord
from serving_cache.redis import RedisStore
from streaming.connection import open_producer
from streaming.proofs import Proofs
from streaming.publish import Outgoing, publish
from streaming.records import HEADER_ORIGIN, Consumed, dead_letter_record, read_dead_letter
from streaming.report import Report
from tests.generations import new_name
from tests.lookups import unused_port
from tests.streams import (
    ROOT,
    almanac,
    caught_up,
    environment,
    event,
    eventually,
    hours_ahead,
    read_topic,
    register_model,
    tiny_pipeline,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),  # of Feast's own imports
]

REDIS_DATABASE = "/9"
"""The features' keys are those of every pipeline on `weather_v1`: a database of their own."""
STOP_SECONDS_MAX = 30
VERSIONS_MAX = 3
ENVELOPE = {"ce_id": "1", "ce_source": "tests", "ce_type": "observation", "ce_specversion": "1.0"}


@dataclass(frozen=True)
class Running:
    """A stream that runs, and what it writes to."""

    pipeline: Pipeline
    settings: Settings
    postgres: PostgresStore
    redis: RedisStore
    log: Path
    url: str

    def metric(self, name: str, **labels: str) -> float:
        """The sum over a metric's samples with these labels."""
        wanted = {"pipeline": self.pipeline.name, **labels}
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if wanted.items() <= sample.labels.items())

    def send(self, *events: Outgoing) -> None:
        publish(events, self.pipeline, self.settings)

    def overlays(self) -> dict[tuple[str, str], OverlayRecord]:
        """All overlays in Postgres, by entity and model."""
        models = [f"{self.pipeline.model_name}-v{version}" for version in range(1, VERSIONS_MAX + 1)]
        found = [o for model in models for o in self.postgres.overlays(self.pipeline.name, model, EPOCH)]
        return {(o.entity, o.model): o for o in found}

    def overlay(self, cell: int, value: float, model: str) -> OverlayRecord:
        """Wait until both stores have this value's prediction for the cell."""
        expected = {name: float(np.float32(value) + hours_ahead(name)) for name in self.pipeline.output_names}

        def found() -> OverlayRecord | None:
            record = self.overlays().get((str(cell), model))
            copy = self.redis.overlays(self.pipeline.name, str(cell)).get(model)
            same = record is not None and record == copy
            return record if same and record.values == pytest.approx(expected, abs=0.01) else None  # type: ignore[union-attr]

        return eventually(found, self.log.read_text)  # type: ignore[no-any-return]

    def settle(self) -> None:
        """Wait until a last event has gone all the way, so that everything before it has too."""
        settled = event(19, 200.0 + (utc_now().timestamp() * 1000) % 100, utc_now())
        self.send(settled)
        self.overlay(19, json.loads(settled.value)["t2m"], self.model())

    def model(self) -> str:
        """The id of the model that the alias names."""
        return Registry(self.settings.models_dir).resolve(self.pipeline.model).id

    def dead_letters(self) -> list[tuple[str, bytes | None]]:
        """Reason and raw value of every dead letter."""
        letters = [read_dead_letter(r) for r in read_topic(self.settings, self.pipeline.dead_letter_topic)]
        return [(letter.reason, letter.raw) for letter in letters]


@pytest.fixture(scope="module")
def settings(
    postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    return load_settings(
        state_dir=tmp_path_factory.mktemp("stream"),
        postgres_url=postgres_url,
        redis_url=urlunsplit(urlsplit(redis_url)._replace(path=REDIS_DATABASE)),
        kafka_bootstrap=kafka_bootstrap,
        origin_secret="a-secret-that-stream-workers-share",
    )


def without_postgres(settings: Settings) -> Settings:
    """Settings whose Feast registry is a file: one in Postgres would leave its connections to the garbage collector."""
    return settings.model_copy(update={"postgres_url": None})


@pytest.fixture(scope="module")
def stream(settings: Settings) -> Iterator[Running]:
    """Features materialized, a model registered, `python -m streaming` running."""
    pipeline = tiny_pipeline(new_name())
    migrate(settings.need("postgres_url"), [pipeline])
    seeded = replace(pipeline, name="weather")  # whose files the Feast definitions name
    as_of = refresh(seeded, settings, utc_now(), window=timedelta(hours=1)).as_of
    assert materialize(seeded, without_postgres(settings), as_of) > 0
    register_model(settings, pipeline, 0.0)
    log, port = settings.state_dir / "stream.log", unused_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "streaming"],
            env=environment(settings, pipeline.name) | {"ALMANAC_METRICS_PORT": str(port)},
            cwd=ROOT, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        with PostgresStore(settings.need("postgres_url")) as postgres, RedisStore(settings.need("redis_url")) as redis:
            eventually(lambda: log.read_text().count(": running") >= 4, log.read_text)
            yield Running(pipeline, settings, postgres, redis, log, f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS_MAX)
        finally:
            process.kill()
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


def test_an_event_changes_its_cells_overlay_in_both_stores_and_no_others(stream: Running) -> None:
    before = stream.overlays()
    moment = utc_now()
    stream.send(event(7, 281.5, moment))
    overlay = stream.overlay(7, 281.5, stream.model())
    assert overlay.as_of == moment
    assert overlay.topic.endswith(f"~{stream.pipeline.name}.observations")  # before it, which topic of this name
    after = stream.overlays()
    assert {key for key in after if after[key] != before.get(key)} == {("7", stream.model())}


def test_an_event_becomes_the_cells_online_observation(stream: Running) -> None:
    stream.send(event(5, 277.25, utc_now()))
    stream.overlay(5, 277.25, stream.model())
    online = OnlineFeatures(stream.pipeline, without_postgres(stream.settings))
    eventually(lambda: online.read([5])["t2m"].to_pylist() == [277.25], stream.log.read_text)


def test_an_event_reaches_the_archive_with_its_place_and_trace(stream: Running) -> None:
    trace, moment = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", utc_now()
    sent = json.dumps({"cell_id": 15, "observed_at": moment.isoformat(), "t2m": 274.5}).encode()
    producer = open_producer(stream.settings)
    producer.produce(f"{stream.pipeline.name}.observations", key=b"15", value=sent, headers={"traceparent": trace})
    assert producer.flush(30) == 0
    view = stream.settings.features_dir / stream.pipeline.name / "cell_observation"

    def found() -> list[dict[str, Any]]:
        files = [pq.ParquetFile(path).read() for path in archived_files(view, None, utc_now())]
        return [row for table in files for row in table.to_pylist() if row["cell_id"] == 15]

    (row,) = eventually(found, stream.log.read_text)
    assert (row["event_timestamp"], row["t2m"], row["trace"]) == (moment, 274.5, trace)
    (prediction,) = (
        record
        for record in read_topic(stream.settings, stream.pipeline.predictions_topic)
        if (record.partition, json.loads(record.value or b"")["entity"]) == (record.partition, 15)
    )
    source = described(prediction)["source"]
    assert (row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]) == tuple(source.values())
    assert prediction.headers == (("traceparent", trace.encode()),)


def described(prediction: Consumed) -> dict[str, Any]:
    """The body of a record of the predictions topic, which is as docs/predictions.md describes it."""
    body = dict(json.loads(prediction.value or b""))
    page = (ROOT / "docs" / "predictions.md").read_text()
    (example,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.S | re.M)
    rows = re.findall(r"^\| `(\w+)` \|", page, flags=re.M)
    assert list(body) == list(json.loads(example)) == rows
    assert {name: type(value) for name, value in body.items() if value is not None} == {
        name: type(value) for name, value in json.loads(example).items() if body[name] is not None
    }
    assert prediction.key == str(body["entity"]).encode()
    return body


def test_a_prediction_says_which_of_ones_own_events_it_was_made_from(stream: Running) -> None:
    """A CloudEvent's source and id are repeated; a plain event is known by where it stood alone."""
    moment = utc_now()
    cloud, plain = event(16, 276.5, moment), event(17, 277.5, moment)
    headers = tuple((name, text.encode()) for name, text in {**ENVELOPE, "ce_id": "mine-7"}.items())
    stream.send(replace(cloud, headers=headers), plain)
    stream.overlay(16, 276.5, stream.model())
    stream.overlay(17, 277.5, stream.model())
    topic = stream.pipeline.stream.topic  # type: ignore[union-attr]
    sent = {record.value: record for record in read_topic(stream.settings, topic)}
    bodies = [described(record) for record in read_topic(stream.settings, stream.pipeline.predictions_topic)]
    by_cell = {body["entity"]: body for body in bodies}
    assert by_cell[16]["event"] == {"source": "tests", "id": "mine-7"}
    assert by_cell[17]["event"] is None
    for cell, value in ((16, cloud.value), (17, plain.value)):
        assert by_cell[cell]["source"] == sent[value].source


MALFORMED: list[tuple[str, Any]] = [
    ("not-json", b"{"),
    ("not-an-object", b"[1]"),
    ("duplicate-field", b'{"cell_id": 1, "cell_id": 2}'),
    ("missing-field", {}),
    ("wrong-type", {"cell_id": "one"}),
    ("unknown-entity", {"cell_id": 20}),
    ("bad-time", {"cell_id": 1, "observed_at": "2026-01-01T00:00:00", "t2m": 280}),
    ("future-time", {"cell_id": 1, "observed_at": "2999-01-01T00:00:00Z", "t2m": 280}),
    ("out-of-range", {"cell_id": 1, "observed_at": "2026-01-01T00:00:00Z", "t2m": 8}),
    ("not-finite", b'{"cell_id": 1, "observed_at": "2026-01-01T00:00:00Z", "t2m": NaN}'),
    ("too-large", {"note": "x" * 70_000}),
    *(("too-large", {"note": "x" * (200_000 + more)}) for more in range(8)),  # more than one batch may hold
]


def test_malformed_events_of_every_kind_become_dead_letters_and_the_worker_goes_on(stream: Running) -> None:
    raw = [(reason, body if isinstance(body, bytes) else json.dumps(body).encode()) for reason, body in MALFORMED]
    stream.send(
        *(Outgoing(value=value, key=None) for _, value in raw),
        replace(event(3, 280.0), key=b"4"),
        event(6, 279.5, utc_now()),
    )
    stream.overlay(6, 279.5, stream.model())
    stream.settle()
    found = eventually(lambda: len(letters := stream.dead_letters()) > len(raw) and letters, stream.log.read_text)
    assert sorted(reason for reason, _ in found) == sorted([*(reason for reason, _ in raw), "key-mismatch"])
    assert set(raw) <= set(found)
    name = "almanac_stream_dead_letters_total"
    eventually(lambda: stream.metric(name) == len(found), stream.log.read_text)
    assert stream.metric(name, reason="too-large") == sum(reason == "too-large" for reason, _ in found)


def test_a_dead_letter_sent_again_counts_once_however_often_that_is_done(stream: Running) -> None:
    good = event(14, 276.5, utc_now())
    first = Consumed(topic=f"{stream.pipeline.name}.observations", partition=3, offset=12_345, key=b"14", value=None)
    letter = dead_letter_record(
        stream.pipeline, replace(first, value=good.value), EventError("future-time", "too early")
    )
    (letter,) = Proofs.of(stream.pipeline, stream.settings, Report("test")).signed([letter])
    producer = open_producer(stream.settings)
    producer.produce(letter.topic, key=letter.key, value=letter.value, headers=list(letter.headers))
    assert producer.flush(30) == 0
    words = ("redrive", stream.pipeline.name, "--reason", "future-time", "--since", "2026-01-01T00:00Z")
    variables = environment(stream.settings, stream.pipeline.name)
    sent = f"sent again to {stream.pipeline.name}.observations: 2 future-time\n"
    assert almanac(variables, *words, "--dry-run").stdout == f"2 dead letters would be {sent}"
    for _ in range(2):
        done = almanac(variables, *words)
        assert (done.returncode, done.stdout) == (0, f"2 dead letters {sent}"), done.stderr
        overlay = stream.overlay(14, 276.5, stream.model())
        assert (overlay.kafka_partition, overlay.kafka_offset) == (3, 12_345)
        stream.settle()
    predictions = [json.loads(r.value or b"") for r in read_topic(stream.settings, stream.pipeline.predictions_topic)]
    assert [body["source"]["offset"] for body in predictions if body["entity"] == 14] == [12_345]
    reasons = [reason for reason, _ in stream.dead_letters()]
    assert reasons.count("future-time") == 4  # one was too early again, each time
    assert almanac(variables, "redrive", stream.pipeline.name, "--reason", "nonsense").returncode == 2


def test_a_place_that_a_producer_claims_is_ignored_and_said_and_the_stream_goes_on(stream: Running) -> None:
    producer, topic = open_producer(stream.settings), f"{stream.pipeline.name}.observations"
    genuine = f"{topic}/3/12345".encode()
    for cell, claim in ((18, b"a" * 200 + b"/0/0"), (17, genuine)):
        sent = event(cell, 260.0 + cell, utc_now())
        producer.produce(topic, key=sent.key, value=sent.value, headers=[(HEADER_ORIGIN, claim)])
    assert producer.flush(30) == 0
    for cell in (18, 17):
        overlay = stream.overlay(cell, 260.0 + cell, stream.model())
        assert (overlay.topic.rpartition("~")[2], overlay.kafka_offset != 12_345) == (topic, True)
    stream.settle()
    assert "claims in its headers to have stood elsewhere" in stream.log.read_text()
    eventually(lambda: stream.metric("almanac_stream_unproved_total") == 2, stream.log.read_text)


def test_late_events_and_duplicates_change_nothing(stream: Running) -> None:
    newest, late = utc_now(), utc_now() - timedelta(hours=2)
    stream.send(event(9, 285.0, newest))
    overlay = stream.overlay(9, 285.0, stream.model())
    stream.send(event(9, 299.0, late), event(9, 285.0, newest), event(9, 298.0, late))
    stream.settle()
    after = stream.overlay(9, 285.0, stream.model())
    assert (after.as_of, after.values) == (overlay.as_of, overlay.values)
    online = OnlineFeatures(stream.pipeline, without_postgres(stream.settings))
    assert online.read([9])["t2m"].to_pylist() == [285.0]
    assert stream.metric("almanac_stream_late_total") == 2


def test_the_stream_follows_the_models_alias_and_keeps_the_old_one_if_the_new_does_not_load(stream: Running) -> None:
    first = stream.model()
    second = register_model(stream.settings, stream.pipeline, 0.0)

    def scored_by(model: str, since: datetime) -> bool:
        stream.send(event(11, 283.0, utc_now()))
        found = stream.overlays().get(("11", model))
        return found is not None and found.as_of > since

    eventually(lambda: scored_by(second, EPOCH), stream.log.read_text)
    folder = stream.settings.models_dir / stream.pipeline.model_name
    aliases, third = (folder / "aliases.json").read_text(), folder / "v0003"
    shutil.copytree(folder / "v0002", third)  # its manifest is of another version: it does not load
    (folder / "aliases.json").write_text(json.dumps({stream.pipeline.model_alias: 3}))
    eventually(lambda: "keeps model" in stream.log.read_text(), stream.log.read_text)
    moment = utc_now()
    stream.send(event(12, 284.0, moment))
    assert stream.overlay(12, 284.0, second).as_of == moment
    shutil.rmtree(third)
    (folder / "aliases.json").write_text(aliases.replace("2", "1"))
    moment = utc_now()  # of events before this one there may be overlays by the first model, too
    eventually(lambda: scored_by(first, moment), stream.log.read_text)


def test_metrics_say_what_was_done_and_that_nothing_is_left(stream: Running) -> None:
    stream.settle()
    eventually(lambda: stream.metric("almanac_stream_predictions_total") > 0)
    for group in ("stream", "sink-overlays", "sink-features", "sink-archive"):
        of = f"almanac-{stream.pipeline.name}-{group}"
        eventually(lambda of=of: stream.metric("almanac_stream_lag", group=of) == 0, stream.log.read_text)  # type: ignore[misc]
    assert stream.metric("almanac_stream_step_seconds_count", step="commit") > 0
    assert stream.metric("almanac_sink_rows_total", sink="overlays", outcome="newer") > 0
    assert stream.metric("almanac_archive_rows_total") == stream.metric("almanac_sink_rows_total", sink="archive") > 0
    assert httpx.get(f"{stream.url}/readyz").status_code == 200


def test_an_emptied_online_store_pauses_the_stream_and_costs_no_event(stream: Running) -> None:
    # No event of a test before may be under way: it would be the first to find the store empty.
    group, topic = f"almanac-{stream.pipeline.name}-stream", f"{stream.pipeline.name}.observations"
    eventually(lambda: caught_up(stream.settings, group, topic), stream.log.read_text)
    with redis.Redis.from_url(str(stream.settings.redis_url)) as client:
        client.flushdb()
    letters = len(stream.dead_letters())
    stream.send(event(13, 286.0, utc_now()))
    eventually(lambda: "paused: the online store has no features" in stream.log.read_text(), stream.log.read_text)
    answer = httpx.get(f"{stream.url}/readyz")
    assert (answer.status_code, "worker: paused" in answer.text) == (503, True)
    assert stream.metric("almanac_stream_paused", part="worker") == 1
    seeded = replace(stream.pipeline, name="weather")
    materialize(seeded, without_postgres(stream.settings), utc_now())
    stream.overlay(13, 286.0, stream.model())
    assert len(stream.dead_letters()) == letters
