"""Events with values of their own, sent without end; and the account of what became of each."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from confluent_kafka import KafkaException, Message, Producer

from almanac.clock import EPOCH, format_time, utc_now
from almanac.declarations import pipeline as declared
from serving_cache.postgres import PostgresStore
from serving_cache.records import OverlayRecord
from serving_cache.redis import RedisStore
from streaming.connection import open_producer
from streaming.records import read_prediction
from streaming.topics import ensure_topics
from tests.chaos.book import Book, same
from tests.chaos.stack import Stack
from tests.streams import read_topic

NAME = "weather"
CELLS = 50
"""Events speak of the first so many cells; the others are answered by the batch."""
PAUSE_SECONDS = 0.2
MALFORMED_SHARE = 0.1
SETTLE_SECONDS_MAX = 90
STOP_SECONDS_MAX = 30
DELIVERY_SECONDS_MAX = 60


@dataclass(frozen=True)
class Sent:
    """An event as it was sent; a malformed one speaks of no cell."""

    cell: int | None
    observed_at: datetime
    value: bytes


class Events:
    """Sends events from `with` to its end.

    Args:
        seed: which cells, which are malformed.
    """

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack = stack
        self._pipeline = declared(NAME)
        assert self._pipeline.stream is not None
        self._topic = self._pipeline.stream.topic
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._repeated, name="events")
        self._number = 0
        self._last = utc_now()
        self._producer: Producer | None = None
        self.delivered: dict[tuple[int, int], Sent] = {}
        self.failed: list[str] = []

    def __enter__(self) -> Events:
        ensure_topics(self._pipeline, self._stack.settings)
        self._producer = open_producer(self._stack.settings, **{"message.timeout.ms": DELIVERY_SECONDS_MAX * 1000})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait until the broker has confirmed what was sent."""
        self._done.set()
        self._thread.join(STOP_SECONDS_MAX)
        assert self._producer is not None
        self._producer.flush(DELIVERY_SECONDS_MAX)

    def send(self, cell: int | None = None) -> datetime:
        """Send one event and return its moment; of any cell, or malformed, unless told."""
        with self._lock:
            self._number += 1
            self._last = max(utc_now(), self._last + timedelta(milliseconds=1))
            moment, malformed = self._last, cell is None and self._chance.random() < MALFORMED_SHARE
            cell = self._chance.randrange(CELLS) if cell is None else cell
            degrees = 270 + self._number % 20_000 / 1000
            body = {"cell_id": cell, "observed_at": format_time(moment), "t2m": degrees}
            value = b"{not an event %d" % self._number if malformed else json.dumps(body).encode()
            sent = Sent(None if malformed else cell, moment, value)

        def note(error: object, message: Message) -> None:
            if error is not None:
                self.failed.append(str(KafkaException(error)))
            else:
                self.delivered[(message.partition(), message.offset())] = sent

        assert self._producer is not None
        self._producer.produce(self._topic, key=str(cell).encode(), value=value, on_delivery=note)
        self._producer.poll(0)
        return moment

    def _repeated(self) -> None:
        while not self._done.wait(PAUSE_SECONDS):
            self.send()


def settle(stack: Stack, events: Events, book: Book) -> dict[str, int]:
    """Wait until every event has its prediction or its dead letter; then account for each. Returns the counts."""
    pipeline = declared(NAME)
    assert pipeline.stream is not None
    good = {origin: sent for origin, sent in events.delivered.items() if sent.cell is not None}
    malformed = {origin: sent for origin, sent in events.delivered.items() if sent.cell is None}
    give_up_at = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        records = read_topic(stack.settings, pipeline.predictions_topic)
        predictions = [(read_prediction(pipeline, record), record) for record in records]
        origins = [(found.kafka_partition, found.kafka_offset) for found, _ in predictions]
        if good.keys() <= set(origins) or time.monotonic() > give_up_at:
            break
        time.sleep(1)
    mine = [origin for origin in origins if origin in events.delivered]
    # While the alias names another version than the generation's, an event has a prediction by each of both.
    by_model = [(origin, found.model) for origin, (found, _) in zip(origins, predictions, strict=True)]
    made = [one for one in by_model if one[0] in events.delivered]
    doubled = len(made) - len(set(made))
    lost = good.keys() - set(mine)
    if lost or doubled or set(mine) - good.keys():
        book.breach(f"events: {len(lost)} lost {sorted(lost)[:5]}, {doubled} doubled, malformed ones predicted "
                    f"{sorted(set(mine) - good.keys())[:5]}")  # fmt: skip
    if events.failed:
        book.breach(f"events: {len(events.failed)} were not delivered: {events.failed[:2]}")
    letters = [record.value for record in read_topic(stack.settings, pipeline.dead_letter_topic)]
    wanted = sorted(sent.value for sent in malformed.values())
    mine_letters = sorted(value for value in letters if value and value.startswith(b"{not an event"))
    if mine_letters[-len(wanted) :] != wanted and sorted(set(mine_letters) & set(wanted)) != wanted:
        book.breach(f"dead letters: {len(mine_letters)} for {len(wanted)} malformed events")
    if len(letters) != len(mine_letters):
        book.breach(f"dead letters: {len(letters) - len(mine_letters)} events that were whole are among them")
    _said(book, [found for found, _ in predictions])
    _overlays(stack, book, good, list(zip(origins, (found for found, _ in predictions), strict=True)))
    return {"events": len(good), "malformed": len(malformed), "predictions": len(mine), "letters": len(wanted)}


def _said(book: Book, predictions: list[OverlayRecord]) -> None:
    """Every answer from the stream was a prediction of the topic."""
    by_moment: dict[tuple[int, str, str], list[OverlayRecord]] = {}
    for found in predictions:
        by_moment.setdefault((int(found.entity), format_time(found.as_of), found.model), []).append(found)
    for (entity, as_of, model), values in book.stream.items():
        predicted = by_moment.get((entity, as_of, model), [])
        if not any(same(found.values, values) for found in predicted):
            book.breach(f"an answer for cell {entity} as of {as_of} was {values}, predicted was {predicted}")


def _overlays(
    stack: Stack,
    book: Book,
    good: dict[tuple[int, int], Sent],
    predictions: list[tuple[tuple[int, int], OverlayRecord]],
) -> None:
    """Each cell's overlay by a model is the prediction of its newest event by that, in Postgres and in Redis."""
    newest: dict[tuple[int, str], tuple[datetime, OverlayRecord]] = {}
    for origin, found in predictions:
        sent = good.get(origin)
        if sent is None or sent.cell is None:
            continue
        at = (sent.cell, found.model)
        if at not in newest or newest[at][0] < sent.observed_at:
            newest[at] = (sent.observed_at, found)
    give_up_at = time.monotonic() + SETTLE_SECONDS_MAX
    while (wrong := _wrong_overlays(stack, newest)) and time.monotonic() < give_up_at:
        time.sleep(1)
    for line in wrong:
        book.breach(f"overlay in {line}")


def _wrong_overlays(stack: Stack, newest: dict[tuple[int, str], tuple[datetime, OverlayRecord]]) -> list[str]:
    wrong = []
    models = {prediction.model for _, prediction in newest.values()}
    with (
        PostgresStore(stack.settings.need("postgres_url")) as postgres,
        RedisStore(stack.settings.need("redis_url")) as redis,
    ):
        stored = {(row.entity, m): row for m in models for row in postgres.overlays(NAME, m, EPOCH)}
        for (cell, _), (moment, prediction) in newest.items():
            in_redis = redis.overlays(NAME, str(cell)).get(prediction.model)
            for place, found in (("postgres", stored.get((str(cell), prediction.model))), ("redis", in_redis)):
                if found is None or found.as_of != moment or not same(found.values, prediction.values):
                    wrong.append(f"{place} of cell {cell} is {found} instead of {prediction}")
    return wrong
