"""The door of the events' topics: records with headers, keys and compression, through a real broker and real workers.

A worker of a grid and one of baskets read what is sent. Their stores are in memory; whatever a record says, each is
counted in one place: refused by the broker, a dead letter with its reason, or accepted.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition

from almanac.clock import format_time, utc_now
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings, settings
from almanac.stack.servers import running_kafka
from features.online import observation_row
from streaming.connection import consumed, open_reader
from streaming.events import REASONS
from streaming.folding import Folding
from streaming.guarding import FORWARDED_TOO_OFTEN, HEADERS_UNREADABLE
from streaming.handle import HISTORY_LOST, RETURN_WITHOUT_PURCHASE
from streaming.process import Crew
from streaming.proofs import Proofs
from streaming.records import Produced, read_dead_letter
from streaming.report import Report
from streaming.topics import PARTITIONS, ensure_topics
from streaming.worker import Surroundings, Worker
from tests.baskets import RANGE, HistoriesInMemory, basket_pipeline, register_sums
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, Verdict
from tests.record_batches import CODECS, Header, batch, produce, record
from tests.streams import FeaturesInMemory, register_model, tiny_pipeline

NOT_TAKEN = "refused by the broker"
FIRST_CHECK = frozenset({NOT_TAKEN, HEADERS_UNREADABLE, "not-json", "not-an-object", "too-large"})
"""Refused by these a record is no JSON object of a size that is read."""
ROUND_SECONDS_MAX = 60.0
"""Time within which the workers must have handled a round, on a busy machine; without load it is below one second."""
SECRET = "a secret of the fuzzer's workers".replace(" ", "-")
PROOFS = Proofs([SECRET], "no dead letters", Report("fuzzer"))
LOST = "lost"
"""An entity of whose history the store has nothing, though it is not new."""
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 17.5, 1e300, -1e39, 2**70, "", "17", "\0", "🛒" * 9, "x" * 300, [], {}, [[]], "*", "NaN",
    "2026-13-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "12:00", 10**30,
)  # fmt: skip
TEXTS = (b"NaN", b"1e999", b"-Infinity", b"[" * 5_000, b"9" * 5_000, b'"\\ud800"', b'{"a":1,"a":2}', b"01", b"\xff")
NAMES = (
    b"\xff\xfe", b"\xed\xa0\x80", b"", b"a", b"content-type", b"ce_id", b"ce_time", b"traceparent", b"almanac.origin",
    b"almanac.forwarded", b"almanac.incarnation", b"almanac.cut", b"__streams.errors.offset", "🛒".encode() * 500,
)  # fmt: skip
CONTENTS = (
    None, b"", b"\xff", b"application/json", b"text/plain", b"application/cloudevents+json", b"x/0/0", b"9" * 400,
    b"a" * 200 + b"/0/0", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"x" * 3_000,
)  # fmt: skip
ENVELOPE = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


class _Applied:
    """A features sink that is never behind."""

    def ends(self) -> dict[int, int]:
        return {}

    def behind(self, ends: Mapping[int, int]) -> str | None:
        return None

    def committed(self) -> dict[int, int]:
        return dict.fromkeys(range(PARTITIONS), 2**62)

    def close(self) -> None:
        """Nothing is open."""


class Events:
    """The door."""

    reasons = frozenset(
        {*REASONS, HEADERS_UNREADABLE, FORWARDED_TOO_OFTEN, RETURN_WITHOUT_PURCHASE, HISTORY_LOST, NOT_TAKEN}
    )
    """A failure that nobody foresaw is none of them, nor is what a model or a store lacks."""
    memory_bytes_max = 512 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[_Session]:
        """Broker and workers run."""
        folder.chmod(0o755)
        with running_kafka(folder / "kafka", settings().cache_dir) as address:
            session = _Session(load_settings(state_dir=folder / "state", kafka_bootstrap=address, origin_secret=SECRET))
            try:
                yield session
            finally:
                session.close()


class _Session:
    def __init__(self, found: Settings) -> None:
        self._settings, self._bootstrap = found, found.need("kafka_bootstrap")
        self._pipelines = (tiny_pipeline("tiny"), basket_pipeline("baskets"))
        register_model(found, self._pipelines[0], 0.0)
        register_sums(found, self._pipelines[1])
        self._crew = Crew(threading.Event())
        self._workers = [self._worker(each) for each in self._pipelines]
        self._letters = open_reader(found)
        self._letters.assign(
            [
                TopicPartition(pipeline.dead_letter_topic, partition, OFFSET_BEGINNING)
                for pipeline in self._pipelines
                for partition in range(PARTITIONS)
            ]
        )
        self._sent = self._read = 0

    def _worker(self, pipeline: Pipeline) -> Worker:
        ensure_topics(pipeline, self._settings)
        histories = HistoriesInMemory if pipeline.lines is not None else None
        worker = Worker(pipeline, self._settings, Surroundings(
            online=FeaturesInMemory, observation_row=observation_row, histories=histories,
        ))  # fmt: skip
        if histories is not None:
            worker._folding = Folding(
                pipeline, self._settings, histories, _Applied(), lambda of, keys: {LOST} & {str(key) for key in keys}
            )
        self._crew.start(pipeline.name, lambda: worker.run(self._crew.stop))
        return worker

    def close(self) -> None:
        """End the workers."""
        self._crew.stop.set()
        self._letters.close()
        assert self._crew.join()
        assert not self._crew.failures, self._crew.failures

    def memory_bytes(self) -> int:
        """The broker's heap has a limit of its own."""
        return 0

    def round(self, random: Random, count: int) -> Sequence[Verdict]:
        """A few batches, one behind the other; then what became of their records."""
        reasons = Counter[str]()
        left = count
        while left:
            some = min(left, random.choice((1, 1, 5, 20, 40)))
            taken = self._send(random, some)
            self._sent += some if taken else 0
            reasons[NOT_TAKEN] += 0 if taken else some
            left -= some
        self._wait(lambda: sum(worker.report.counts["events"] for worker in self._workers) >= self._sent)
        counts = sum((worker.report.counts for worker in self._workers), Counter[str]())
        assert counts["events"] == self._sent, f"{self._sent} records were sent, {counts['events']} counted"
        letters = self._dead_letters(counts["dead_letters"] - self._read)
        self._read += letters.total()
        reasons += letters
        reasons[ACCEPTED] = count - reasons.total()
        return [Verdict(reason, reason not in FIRST_CHECK) for reason in reasons.elements()]

    def _send(self, random: Random, count: int) -> bool:
        """Send one batch; whether the broker took it."""
        baskets = random.random() < 0.5
        now = utc_now()
        records = b"".join(_record(random, at, now, baskets) for at in range(count))
        codec = random.choice([*CODECS])
        millis = int(now.timestamp() * 1000)
        made = batch(records, count, codec, millis)
        if random.random() < 0.02:  # a byte is another
            at = random.randrange(61, len(made))
            made = made[:at] + bytes([made[at] ^ 1]) + made[at + 1 :]
        elif random.random() < 0.02:
            bomb = b"".join(record(bytes(4_000_000), None, (), at) for at in range(count))
            made = batch(bomb, count, random.choice(("gzip", "zstd")), millis) if count < 6 else made
        topic = ("tiny.observations", "baskets.purchases")[baskets]
        return produce(self._bootstrap, topic, random.randrange(PARTITIONS), made) == 0

    def _dead_letters(self, count: int) -> Counter[str]:
        found = Counter[str]()

        def read() -> bool:
            for message in self._letters.consume(500, 0.05):
                if message.error() is None or message.error().code() != KafkaError._PARTITION_EOF:
                    found.update(read_dead_letter(each).reason for each in consumed([message]))
            return found.total() >= count

        self._wait(read)
        assert found.total() == count, f"{count} dead letters were counted, {found.total()} are there"
        return found

    def _wait(self, what: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + ROUND_SECONDS_MAX
        while not what():
            states = [(each.report.state, each.report.detail, dict(each.report.counts)) for each in self._workers]
            assert not self._crew.stop.is_set(), f"a worker ended: {self._crew.failures}"
            assert time.monotonic() < give_up_at, f"not handled within {ROUND_SECONDS_MAX:g} s: {states}"
            time.sleep(0.01)


def _record(random: Random, at: int, now: datetime, baskets: bool) -> bytes:
    """A valid record, mostly with one thing that is another."""
    moment = now - timedelta(seconds=random.randrange(600))
    entity: Any = random.choice((f"c{random.randrange(50)}", LOST)) if baskets else random.randrange(20)
    body: dict[str, Any] = {"observed_at": format_time(moment)}
    if baskets:
        quantity = random.choice((1, 2, 5, -1))
        body |= {
            "customer_id": entity,
            "lines": [{"item_id": random.choice(RANGE), "quantity": quantity, "price": 2.5}],
        }
    else:
        body |= {"cell_id": entity, "t2m": random.uniform(200, 320)}
    key: bytes | None = str(entity).encode()
    headers: list[Header] = []
    times = random.choice((0, 1, 1, 1, 2))
    for _ in range(times):
        _mutate(body, random)
    value: bytes | None = json.dumps(body).encode()
    match random.randrange(6):
        case 0:
            headers = [(f"ce_{name}".encode(), text.encode()) for name, text in ENVELOPE.items()]
        case 1:
            value = json.dumps({**ENVELOPE, "id": str(at), "data": body}).encode()
            headers = [(b"content-type", b"application/cloudevents+json")]
    match random.randrange(14):
        case 0:
            value = _spoilt(value or b"{}", random)
        case 1:
            key = random.choice((None, b"", b"\xff\xfe", b"17", b"x" * 9_000))
        case 2 | 3:
            headers.append((random.choice(NAMES), random.choice(CONTENTS)))
        case 4:
            headers = [each for each in headers if random.random() < 0.7]
        case 5:
            headers += [(b"almanac.forwarded", b"x/0/0")] * random.randrange(6)
            headers = random.choice((headers, _signed(key, value, headers)))  # by a worker, or by somebody else
        case 6 if random.random() < 0.1:
            headers += [(b"a", None)] * random.choice((999, 1_001, 20_000))
    return record(value, key, headers, at)


def _signed(key: bytes | None, value: bytes | None, headers: Sequence[Header]) -> list[Header]:
    """Headers with a worker's proof."""
    own = tuple((name.decode(), content) for name, content in headers)
    (found,) = PROOFS.signed([Produced(topic="baskets.purchases", key=key, value=value, headers=own)])
    return [(name.encode(), content) for name, content in found.headers]


def _mutate(body: dict[str, Any], random: Random) -> None:
    name = random.choice([*body, "lines", "more"]) if "lines" in body or len(body) < 3 else random.choice([*body])
    match random.randrange(7):
        case 0:
            body.pop(name, None)
        case 1:
            body["observed_at"] = format_time(
                datetime.now(UTC) + timedelta(minutes=random.choice((-60 * 24 * 40, -60 * 24, 4, 6, 60)))
            )
        case 2 if isinstance(body.get("lines"), list) and body["lines"] and isinstance(body["lines"][0], dict):
            line = dict(body["lines"][0])
            line[random.choice([*line])] = random.choice(VALUES)
            body["lines"] = random.choice(([line], [], [line] * 60, [*body["lines"], line]))
        case 3 | 4:
            body[name] = random.choice(VALUES)
        case _:
            body[f"more{random.randrange(99)}"] = random.choice(VALUES)


def _spoilt(value: bytes, random: Random) -> bytes | None:
    """JSON with a part of it that `json` does not write, or none."""
    at = random.randrange(len(value))
    return random.choice(
        (
            None, b"", b"[]", b"17", value[:at], value[:at] + random.choice(TEXTS) + value[at:],
            value[:-1] + b',"x":' + random.choice(TEXTS) + b"}", value[:-1] + b',"x":1,"x":2}',
            value + b" " * random.choice((10, 70_000, 140_000)),
        )
    )  # fmt: skip


DOOR = Events()
