"""Hostile records through a real broker: each is a dead letter by itself, and the events behind it are handled."""

from __future__ import annotations

import json
import resource
import struct
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka.admin import NewTopic

from almanac.clock import EPOCH, utc_now
from almanac.pipeline import Pipeline
from features.online import observation_row
from serving_cache.postgres import PostgresStore
from streaming.connection import open_admin, open_producer
from streaming.guarding import HANDLING_FAILED, HEADERS_UNREADABLE
from streaming.publish import Outgoing
from streaming.records import HEADER_CUT, read_dead_letter
from streaming.report import RUNNING
from streaming.sizes import RECORD_BYTES_MAX
from streaming.topics import differing, topics
from tests.generations import new_name
from tests.integration.test_stream_luck import Stream, of, stream
from tests.record_batches import MESSAGE_TOO_LARGE, batch, compressed, produce, record
from tests.streams import event, eventually, read_topic, tiny_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),  # of Feast's own imports
]
CODECS = ("gzip", "zstd", "lz4", "snappy")
KIBIBYTES_MAX = 200 * 1024
"""By how much the memory of the process may grow."""


@pytest.fixture
def tiny() -> Pipeline:
    return tiny_pipeline(new_name())


def many_names(size: int) -> bytes:
    """An object of short names, the last of which stands twice."""
    names, number = ['"0":1'], 0
    while 9 * len(names) < size:
        number += 1
        names.append(f'"{number:x}":1')
    return ("{" + ",".join([*names, '"0":1']) + "}").encode()


def hostile() -> list[tuple[bytes, str]]:
    """Records as their bytes, each with the reason of its dead letter."""
    good = event(1, 271.0).value
    return [
        (record(good, b"1", [(b"\xff\xfe", b"x")]), HEADERS_UNREADABLE),
        (record(good, b"1", [(b"traceparent", b"\xff"), (b"\xed\xa0\x80", None), (b"\xc3", b"")]), HEADERS_UNREADABLE),
        (record(many_names(64_000), b"1"), "duplicate-field"),
        (record(many_names(131_000), b"1"), "too-large"),
        (record(b"{", b"1", [("🛒".encode() * 60_000, b"")]), "not-json"),
        (record(b"{", b"1", [(b"a", None)] * 65_536), "too-large"),
        (record(b"x" * 200_000, b"k" * 60_000, [(b"a", b"")]), "too-large"),
        (record(None, None, [(b"", b"")]), "not-json"),
        (record(good, b"\xff\xfe"), "key-mismatch"),
    ]


def lz4_blocks(data: bytes) -> bytes:
    """A frame of blocks that do not refer to each other: others are refused by brokers."""
    blocks = [bytes(pa.compress(data[at : at + 65_536], "lz4_raw", asbytes=True)) for at in range(0, len(data), 65_536)]
    return b"\x04\x22\x4d\x18\x60\x40\x82" + b"".join(struct.pack("<I", len(b)) + b for b in blocks) + bytes(4)


def packed(records: bytes, count: int, codec: str) -> bytes:
    millis = int(utc_now().timestamp() * 1000)
    return batch(records, count, codec, millis, lz4_blocks(records) if codec == "lz4" else compressed(records, codec))


def predicted(on: Stream, count: int) -> None:
    eventually(lambda: on.worker.report.counts["predictions"] == count, lambda: str(on.worker.report.counts))


def test_records_that_no_library_would_send_are_dead_letters_and_the_events_behind_them_are_predicted(
    tiny: Pipeline, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    settings = of(tmp_path, postgres_url, redis_url, kafka_bootstrap)
    sent = hostile()
    with stream(settings, tiny) as on:
        on.send(event(1, 271.0, utc_now()), *(Outgoing(value=b"{", key=None) for _ in range(100)))  # Python is warm
        predicted(on, 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for raw, _ in sent:
            assert produce(kafka_bootstrap, f"{tiny.name}.observations", 0, packed(raw, 1, "none")) == 0
        on.send(event(2, 272.0, utc_now()))
        predicted(on, 2)
        eventually(
            lambda: on.worker.report.counts["dead_letters"] == len(sent) + 100, lambda: str(on.worker.report.counts)
        )
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KIBIBYTES_MAX
    letters = [each for each in read_topic(settings, tiny.dead_letter_topic) if each.value != b"{" or each.key]
    assert Counter(read_dead_letter(each).reason for each in letters) == Counter(reason for _, reason in sent)
    unreadable = [each for each in map(read_dead_letter, letters) if each.reason == HEADERS_UNREADABLE]
    assert len(unreadable) == 2
    for each in unreadable:
        assert (each.key, json.loads(each.raw or b"")["t2m"], each.whole) == (b"1", 271.0, False)
    cut = {dict(each.headers).get(HEADER_CUT) for each in letters}
    assert {b"1/1/240004", b"1/1/196608"} <= cut


def test_a_batch_that_unpacks_to_a_thousand_times_its_size_is_refused_by_the_broker_and_small_ones_are_read(
    tiny: Pipeline, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    settings = of(tmp_path, postgres_url, redis_url, kafka_bootstrap)
    topic, now = f"{tiny.name}.observations", utc_now()
    admin = open_admin(settings)  # somebody made it, and did not say how its batches are kept
    for future in admin.create_topics([NewTopic(topic, 4, -1, config={"max.message.bytes": "262144"})]).values():
        future.result(30)
    bombs = [record(b"{", None, (), at) for at in range(60_000)]
    with stream(settings, tiny) as on:
        eventually(lambda: on.worker.report.state == RUNNING)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for cell, codec in enumerate(CODECS):
            large = 4_000_000 if codec in ("snappy", "lz4") else 40_000_000
            for raw, count in ((record(bytes(large)), 1), (b"".join(bombs), len(bombs))):
                bomb = packed(raw, count, codec)
                assert len(bomb) < RECORD_BYTES_MAX or count > 1
                assert produce(kafka_bootstrap, topic, 0, bomb) == MESSAGE_TOO_LARGE, codec
            good = [event(cell, 270.0 + at, now) for at in (0, 1)]
            raw = b"".join(record(each.value, each.key, (), at) for at, each in enumerate(good))
            assert produce(kafka_bootstrap, topic, 0, packed(raw, 2, codec)) == 0
        predicted(on, 2 * len(CODECS))
        assert on.worker.report.counts["dead_letters"] == 0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KIBIBYTES_MAX
    assert differing(tiny, settings) == {}


def fails_with_cell_7(pipeline: Pipeline, entity: Any, at: datetime, value: Any) -> Mapping[str, Any]:
    """What the code does with an event in a way that nobody foresaw."""
    if entity == 7:
        raise ZeroDivisionError("nobody foresaw this")
    return observation_row(pipeline, entity, at, value)


def test_a_record_with_which_the_code_fails_is_given_up_alone_and_a_topic_that_takes_little_gets_less(
    tiny: Pipeline, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    settings = of(tmp_path, postgres_url, redis_url, kafka_bootstrap)
    small = NewTopic(tiny.dead_letter_topic, 4, -1, config={"max.message.bytes": "20000"})  # somebody made it
    admin = open_admin(settings)
    for future in admin.create_topics([small]).values():
        future.result(30)
    with stream(settings, tiny, row=fails_with_cell_7) as on:
        huge = b"x" * 100_000
        cells = [event(cell, 270.0 + cell, utc_now()) for cell in (0, 1, 7, 2, 7, 3)]
        for each in (*cells, event(0, 299.0, utc_now())):
            value = event(7, 271.0).value if each is cells[4] else each.value
            assert (
                produce(kafka_bootstrap, f"{tiny.name}.observations", 1, packed(record(value, each.key), 1, "none"))
                == 0
            )
        assert produce(kafka_bootstrap, f"{tiny.name}.observations", 1, packed(record(huge, b"1"), 1, "none")) == 0
        on.send(event(4, 272.0, utc_now()))
        predicted(on, 6)
        eventually(lambda: on.worker.report.counts["dead_letters"] == 3, lambda: str(on.worker.report.counts))
    letters = [read_dead_letter(each) for each in read_topic(settings, tiny.dead_letter_topic)]
    assert Counter(each.reason for each in letters) == Counter([HANDLING_FAILED, HANDLING_FAILED, "too-large"])
    (cut,) = [each for each in letters if each.reason == "too-large"]
    assert huge.startswith(cut.raw or b"-")
    assert not cut.whole
    assert all("ZeroDivisionError" in each.message and each.whole for each in letters if each is not cut)


def test_what_somebody_else_writes_to_the_predictions_stops_no_sink(
    tiny: Pipeline, postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    settings = of(tmp_path, postgres_url, redis_url, kafka_bootstrap)
    with stream(settings, tiny) as on:
        on.send(event(1, 271.0, utc_now()))
        eventually(lambda: on.reports["overlays"].counts["overlays_newer"] == 1)
        true = next(iter(read_topic(settings, tiny.predictions_topic)))
        features = next(iter(read_topic(settings, tiny.features_topic)))
        changes: list[dict[str, Any]] = [
            {"source": {"topic": "t", "partition": 2**40, "offset": 1}},
            {"source": {"topic": "t", "partition": 1, "offset": 2**70}},
            {"source": {"topic": "\0", "partition": 1, "offset": 1}},
            {"model": "m\0", "entity": 2},
            {"incarnation": 2**70, "entity": 3},
        ]
        bad = [record(json.dumps({**json.loads(true.value or b""), **change}).encode(), b"1") for change in changes]
        bad += [record(true.value, b"1", [(b"\xff\xfe", b"x")]), record(b"[" * 100_000), record(None)]
        for raw in bad:
            assert produce(kafka_bootstrap, tiny.predictions_topic, 0, packed(raw, 1, "none")) == 0
        for raw in (record(features.value, b"1", [(b"\xff\xfe", b"x")]), record(b"[" * 100_000)):
            assert produce(kafka_bootstrap, tiny.features_topic, 0, packed(raw, 1, "none")) == 0
        producer = open_producer(settings)
        for topic, body in ((tiny.predictions_topic, true), (tiny.features_topic, features)):
            text = json.loads(body.value or b"") | {"entity": 5}
            text["source"] = {**text["source"], "offset": 10**6}
            producer.produce(topic, value=json.dumps(text).encode(), key=b"1", partition=0)
        assert producer.flush(30) == 0
        eventually(
            lambda: on.reports["overlays"].counts["overlays_newer"] >= 2,
            lambda: str((on.reports["overlays"].counts, on.crew.failures)),
        )
        eventually(lambda: on.reports["archive"].counts["archived"] >= 2, lambda: str(on.reports["archive"].counts))
        assert on.reports["archive"].counts["foreign"] == 2
        with PostgresStore(postgres_url) as record_store:
            found = record_store.overlays(tiny.name, json.loads(true.value or b"")["model"], EPOCH)
    assert {"1", "5"} <= {each.entity for each in found}


def test_topics_are_made_so_that_their_limit_holds_for_what_readers_get(tiny: Pipeline) -> None:
    assert {topic.config()["compression.type"] for topic in topics(tiny)} == {"uncompressed"}
