"""Hostile baskets through a real Kafka: each is handled or a dead letter that says why, and the counts add up."""

from __future__ import annotations

import json
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from almanac.clock import EPOCH, format_time, micros_of, utc_now
from almanac.errors import UsageError
from almanac.settings import Settings, load_settings
from features.interactions.fold import Event as Basket
from features.interactions.fold import advance
from features.online import observation_row
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from streaming.process import Crew
from streaming.publish import Outgoing, publish
from streaming.records import read_dead_letter
from streaming.report import Report
from streaming.sink import Features, Overlays
from streaming.topics import ensure_topics
from streaming.worker import Surroundings, Worker
from tests.baskets import RANGE, PackedHistories, basket_pipeline, register_sums
from tests.generations import new_name, overlay_of
from tests.streams import FeaturesInMemory, eventually, read_topic

HANDLED = ""
LINE = {"item_id": RANGE[0], "quantity": 2, "price": 2.5}
NAMES = (
    "'; DROP TABLE overlay; --", "almanac:{p}:overlay:17\r\nFLUSHALL", "../../etc/passwd", "%s{0}$HOME`id`", " ", "*",
    "👩‍👩‍👧‍👦🛒", "\u202egnirts a\u202c", "\ufeffcustomer", "e\u0301", "\u00e9", "\x1b[2J", "null", "NaN", "0",
    "x" * 256,
)  # fmt: skip
"""Entities that are strange and still text of at most 256 bytes."""


def basket(customer: Any, lines: Any = None, **more: Any) -> tuple[Any, str]:
    """An event and its key."""
    body = {"customer_id": customer, "observed_at": format_time(utc_now()), "lines": lines or [LINE], **more}
    return body, customer if isinstance(customer, str) else "c"


def raw(body: Any, text: str, with_: str) -> bytes:
    """JSON with a part of it replaced by what `json` does not write."""
    return json.dumps(body).replace(text, with_).encode()


def hostile() -> list[tuple[Outgoing, str]]:
    """Events, each with the reason of its dead letter, or none."""
    now = utc_now()
    price = basket("c1", [{**LINE, "price": 77.125}])[0]
    wide = [{**LINE, "item_id": f"{number:03}" + "é" * 126} for number in range(50)]
    found: list[tuple[Any, str]] = [(basket(name), HANDLED) for name in NAMES]
    found += [
        (basket(""), "unknown-entity"),
        (basket("x" * 257), "unknown-entity"),
        ((basket("x" * 200_000)[0], "c"), "too-large"),
        ((basket("a\0b")[0], "c"), "wrong-type"),
        (basket("c1", [{**LINE, "item_id": "NOBODY SELLS THIS"}]), HANDLED),
        (basket("c1", [{**LINE, "item_id": "👻 \u202e"}]), "bad-item"),
        (basket("c1", [{**LINE, "item_id": "a\nb"}]), HANDLED),  # white space
        (basket("c1", [{**LINE, "item_id": "DROP\x07TABLE"}]), "bad-item"),
        (basket("c1", [{**LINE, "item_id": "\u0390" * 128}]), "bad-item"),  # three times as long in capitals
        (basket("c1", [LINE] * 2_000), "too-many-lines"),
        (basket("c1", [LINE] * 4_000), "too-large"),
        (basket("wide", wide), HANDLED),
        (basket("c2", [{**LINE, "quantity": -1}]), "return-without-purchase"),
        (basket("c1", observed_at="2009-12-01T07:45:00Z"), "past-time"),
        (basket("c1", observed_at="0001-01-01T00:00:00Z"), "bad-time"),
        (basket("c1", observed_at=format_time(now + timedelta(days=1))), "future-time"),
        (basket("c1", observed_at="9999-12-31T23:59:59Z"), "future-time"),
        ((raw(price, "77.125", "NaN"), "c1"), "not-finite"),
        ((raw(price, "77.125", "-Infinity"), "c1"), "not-finite"),
        ((raw(price, "77.125", "1e400"), "c1"), "not-finite"),
        ((raw(price, "77.125", "9" * 5_000), "c1"), "not-json"),
        ((json.dumps(basket("c1", till="café")[0], ensure_ascii=False).encode("latin-1"), "c1"), "not-json"),
        ((json.dumps(basket("c1")[0]).encode("utf-16"), "c1"), "not-json"),
        ((b'{"customer_id": "c1", "lines": [{"item_id": "\xc3\x28"}]}', "c1"), "not-json"),
        ((b"\xff" * 100_000, "c1"), "not-json"),
    ]
    return [
        (Outgoing(value=body if isinstance(body, bytes) else json.dumps(body).encode(), key=key.encode()), reason)
        for (body, key), reason in found
    ]


@pytest.fixture
def settings(postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path) -> Settings:
    return load_settings(
        state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url, kafka_bootstrap=kafka_bootstrap
    )


def test_every_hostile_basket_is_handled_or_a_dead_letter_and_nothing_is_lost(settings: Settings) -> None:
    pipeline = basket_pipeline(new_name())
    migrate(settings.need("postgres_url"), [pipeline])
    model = register_sums(settings, pipeline)
    sent = hostile()
    ensure_topics(pipeline, settings)
    endless = json.dumps(basket("c1", [LINE] * 10_000)[0]).encode()
    for value, key in ((b"{}", b"x" * 1_048_000), (endless, b"c1")):
        with pytest.raises(UsageError, match=r"^0 events were delivered to .*; larger than the topic takes"):
            publish([Outgoing(value=value, key=key)], pipeline, settings)
    publish([event for event, _ in sent], pipeline, settings)
    around = Surroundings(online=FeaturesInMemory, observation_row=observation_row, histories=PackedHistories)
    worker, crew = Worker(pipeline, settings, around), Crew(threading.Event())
    crew.start("worker", lambda: worker.run(crew.stop))
    try:
        eventually(lambda: worker.report.counts.get("events", 0) >= len(sent) or crew.failures)
    finally:
        crew.stop.set()
        assert crew.join()
    assert not crew.failures
    letters = [read_dead_letter(record) for record in read_topic(settings, pipeline.dead_letter_topic)]
    expected = [(reason, event.value) for event, reason in sent if reason != HANDLED]
    assert Counter((letter.reason, letter.raw) for letter in letters) == Counter(expected)
    rows = read_topic(settings, pipeline.features_topic)
    predictions = read_topic(settings, pipeline.predictions_topic)
    handled = [event for event, reason in sent if reason == HANDLED]
    assert Counter(row.key for row in rows) == Counter(prediction.key for prediction in predictions)
    assert Counter(row.key for row in rows) == Counter(event.key for event in handled)
    assert worker.report.counts["events"] == len(letters) + len(rows)

    features = Features(pipeline, lambda: PackedHistories(pipeline, settings), observation_row, Report("features"))
    features.apply(rows)
    stored = PackedHistories(pipeline, settings).read([*NAMES, "wide"])
    assert {name: row and len(row[0]["seen"]) for name, row in stored.items()} == dict.fromkeys([*NAMES, "wide"], 1)
    with PostgresStore(settings.need("postgres_url")) as record, RedisStore(settings.need("redis_url")) as copy:
        Overlays(pipeline, record, copy, Report("overlays")).apply(predictions)
        overlays = {found.entity: found for found in record.overlays(pipeline.name, model, EPOCH)}
        assert set(NAMES) <= overlays.keys()
        assert all(copy.overlays(pipeline.name, name) == {model: overlays[name]} for name in NAMES)


def test_an_event_of_whose_history_redis_lost_is_a_dead_letter_and_a_new_customer_has_a_list(
    settings: Settings, store: PostgresStore
) -> None:
    pipeline = basket_pipeline(new_name())
    migrate(settings.need("postgres_url"), [pipeline])
    register_sums(settings, pipeline)
    ensure_topics(pipeline, settings)
    now, online = utc_now(), PackedHistories(pipeline, settings)
    before = now - timedelta(hours=1)
    for name in ("kept", "deleted"):
        store.put_overlays(pipeline.name, [overlay_of(name, before, 1)])
        found = advance(None, Basket(entity=name, at=micros_of(before), lines=((RANGE[1], 1.0, 1.0),)))
        row = {**found.row, "customer_id": name, "event_timestamp": before, "created_timestamp": before}
        online.push(pa.Table.from_pylist([row]))
    with redis.Redis.from_url(settings.need("redis_url")) as client:
        assert client.delete(*online.keys(["deleted"])) == 1
    sent = [basket(name) for name in ("kept", "deleted", "new")]
    publish([Outgoing(value=json.dumps(body).encode(), key=key.encode()) for body, key in sent], pipeline, settings)
    around = Surroundings(
        online=FeaturesInMemory, observation_row=observation_row, histories=PackedHistories, predicted=store.predicted
    )
    worker, crew = Worker(pipeline, settings, around), Crew(threading.Event())
    crew.start("worker", lambda: worker.run(crew.stop))
    try:
        eventually(lambda: worker.report.counts.get("events", 0) >= len(sent) or crew.failures)
    finally:
        crew.stop.set()
        assert crew.join()
    assert not crew.failures
    (letter,) = [read_dead_letter(record) for record in read_topic(settings, pipeline.dead_letter_topic)]
    assert (letter.reason, letter.key) == ("history-lost", b"deleted")
    assert {record.key for record in read_topic(settings, pipeline.predictions_topic)} == {b"kept", b"new"}
    assert {record.key for record in read_topic(settings, pipeline.features_topic)} == {b"kept", b"new"}
