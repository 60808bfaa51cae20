"""The stream's worker: events a second, consumed, scored and committed exactly once, from a topic filled beforehand.

    make bench NAME=stream

Ours is `streaming.worker` on a real broker: up to 500 events a transaction,
each believed or refused, told from duplicates, completed with online features
from Redis and scored; two records an event are written, in one transaction
with the offsets. `sinks` has the rates at which the two sinks bring those to
the stores; in production they share the worker's process. Floors: the scoring
alone, in the same batches; and the same transactions with nothing in between
(`floor_transactions`). The peer is Quix Streams exactly-once, a commit every
500 events: JSON, one Redis GET of packed features an event, LightGBM, one
record out. It checks no event, drops no duplicate, keeps no dead letter, looks
at no feature's age and writes no feature row.

World: 10,000 cells, 30,000 events a round (`--rows`), 4 partitions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import numpy as np

from almanac.clock import format_time
from almanac.errors import StackError
from almanac.scoring import Scorer
from benchmarks.measuring import (
    Cores,
    Measure,
    finish,
    in_turn,
    machine,
    median,
    on_core,
    options,
    print_profile,
    ratio,
    run,
    say,
)
from benchmarks.peer import running_peer
from benchmarks.reference import World, make_world, trees_of
from benchmarks.reference_columns import VALUE
from benchmarks.servers import running_servers
from benchmarks.services import own_memory_mb
from features.materialize.run import materialize
from features.online import OnlineFeatures, observation_row
from serving_cache.layout import overlay_key
from streaming.connection import consumed, next_offsets, open_consumer, open_transactional_producer
from streaming.publish import Outgoing, publish
from streaming.report import Report
from streaming.sink import Features, Overlays, Sink
from streaming.worker import BATCH_RECORDS_MAX, Surroundings, Worker

CELLS, CELLS_QUICK = 10_000, 400
EVENTS, EVENTS_QUICK = 30_000, 1_500
ROUNDS = 3
DONE_SECONDS_MAX = 240.0
POLL_SECONDS = 0.01
TRANSACTION_SECONDS_MAX = 30.0
SAMPLED_MAX = 200
PREDICTION_BYTES, FEATURE_BYTES = 420, 200  # of the two records that an event gives, about


class Topic:
    """The events' topic, filled a round at a time; every contender reads it in a consumer group of its own."""

    def __init__(self, world: World, events: int) -> None:
        self.events = events
        self.sent = 0
        self._world = world

    def fill(self) -> None:
        """Send one round's events: all cells in turn, each event newer than its cell's last."""
        self.sent += publish(self._round(), self._world.pipeline, self._world.settings)

    def _round(self) -> Iterator[Outgoing]:
        world = self._world
        for number in range(self.sent, self.sent + self.events):
            lap, cell = divmod(number, world.grid.cells)
            body = {
                world.pipeline.entity: cell,
                "observed_at": format_time(world.as_of + timedelta(seconds=1 + lap)),
                VALUE: 280.0 + (number % 1000) / 100,
                "hour_sin": 0.5,
                "hour_cos": 0.5,
            }
            yield Outgoing(value=msgspec.json.encode(body), key=str(cell).encode())


def timed(report: Report, counted: str, work: Callable[[threading.Event], None], expected: int) -> Mapping[str, Any]:
    """Run a worker or a sink in a thread until it has counted enough; the rate from its first batch to its last.

    Raises:
        StackError: it did not get there in time.
    """
    stop = threading.Event()
    failures: list[Exception] = []

    def watched() -> None:
        try:
            work(stop)
        except Exception as error:  # noqa: BLE001  told below, by the thread that waits
            failures.append(error)

    thread = threading.Thread(target=watched, name="measured")
    thread.start()
    give_up_at = time.monotonic() + DONE_SECONDS_MAX
    first, began = 0, 0.0
    try:
        while (count := report.counts[counted]) < expected:
            if count and not first:
                first, began = count, time.perf_counter()
            if time.monotonic() > give_up_at or not thread.is_alive():
                why = failures[0] if failures else report.state
                raise StackError(f"{report.name} counted {count} of {expected} {counted} ({why}): see what it logged")
            time.sleep(POLL_SECONDS)
        ended = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    refused = report.counts["dead_letters"] + report.counts["duplicates"]
    if refused:
        raise StackError(f"{report.name} refused {refused} events of {expected}: the benchmark's events are wrong")
    return {"rate": (expected - first) / (ended - began) if first else 0.0}


class Ours:
    """The worker and the sinks, each by itself."""

    def __init__(self, world: World, topic: Topic) -> None:
        self._world, self._topic = world, topic

    def worker(self) -> Mapping[str, Any]:
        """Fill the topic, which nothing counts, then handle what is in it."""
        self._topic.fill()
        around = Surroundings(online=partial(OnlineFeatures, dated=True), observation_row=observation_row)
        worker = Worker(self._world.pipeline, self._world.settings, around)
        return timed(worker.report, "events", worker.run, self._topic.events)

    def overlays(self) -> Mapping[str, Any]:
        """Predictions to Postgres and Redis."""
        from serving_cache.postgres import PostgresStore
        from serving_cache.redis import RedisStore

        pipeline, settings = self._world.pipeline, self._world.settings
        report = Report("overlays")
        with PostgresStore(settings.need("postgres_url")) as record, RedisStore(settings.need("redis_url")) as copy:
            target = Overlays(pipeline, record, copy, report)
            sink = Sink(pipeline.predictions_topic, "bench-overlays", settings, report)
            return timed(report, "predictions", partial(sink.run, target), self._topic.events)

    def features(self) -> Mapping[str, Any]:
        """Observations to the online store."""
        pipeline, settings = self._world.pipeline, self._world.settings
        report = Report("features")
        target = Features(pipeline, lambda: OnlineFeatures(pipeline, settings), observation_row, report)
        sink = Sink(pipeline.features_topic, "bench-features", settings, report)
        return timed(report, "feature_rows", partial(sink.run, target), self._topic.events)


class Scoring:
    """What the worker cannot be faster than: scoring alone."""

    def __init__(self, world: World, topic: Topic) -> None:
        self._topic = topic
        self._scorer = Scorer.load(world.version, world.pipeline)
        cells = np.arange(min(BATCH_RECORDS_MAX, world.grid.cells))
        online = OnlineFeatures(world.pipeline, world.settings).read(cells.tolist(), at=world.as_of)
        self._batch = online.take(np.resize(cells, BATCH_RECORDS_MAX)).select(list(self._scorer.inputs))

    def measure(self) -> Mapping[str, Any]:
        """Batches of the worker's size, their features in memory."""
        batches = max(1, self._topic.events // BATCH_RECORDS_MAX)
        began = time.perf_counter()
        for _ in range(batches):
            self._scorer.score(self._batch)
        return {"rate": batches * BATCH_RECORDS_MAX / (time.perf_counter() - began)}


class Transactions:
    """What the worker cannot be faster than either: transactions alone."""

    def __init__(self, world: World, topic: Topic) -> None:
        self._world, self._topic = world, topic

    def measure(self) -> Mapping[str, Any]:
        """Consume, write two records an event of about the size of ours, commit; nothing is read or scored."""
        settings, done, first, began = self._world.settings, 0, 0, 0.0
        out = self._world.pipeline.dead_letter_topic  # a topic that is there and that nobody else reads here
        values = (b"x" * PREDICTION_BYTES, b"x" * FEATURE_BYTES)
        producer = open_transactional_producer(settings, "bench-transactions")
        producer.init_transactions(TRANSACTION_SECONDS_MAX)
        consumer = open_consumer(settings, "bench-transactions", "0")
        give_up_at = time.monotonic() + DONE_SECONDS_MAX
        try:
            consumer.subscribe([self._world.pipeline.stream.topic])  # type: ignore[union-attr]
            while done < self._topic.events:
                if time.monotonic() > give_up_at:
                    raise StackError(f"{done} of {self._topic.events} events came: see the broker's log")
                records = consumed(consumer.consume(BATCH_RECORDS_MAX, 0.2))
                if not records:
                    continue
                producer.begin_transaction()
                for record in records:
                    for value in values:
                        producer.produce(out, key=record.key, value=value)
                offsets = next_offsets(records)
                producer.send_offsets_to_transaction(
                    offsets, consumer.consumer_group_metadata(), TRANSACTION_SECONDS_MAX
                )
                producer.commit_transaction(TRANSACTION_SECONDS_MAX)
                done += len(records)
                if not first:
                    first, began = done, time.perf_counter()
            return {"rate": (done - first) / (time.perf_counter() - began)}
        finally:
            consumer.close()


def check_once(world: World, sent: int) -> None:
    """Every event has one committed prediction.

    Raises:
        StackError: there are more or fewer.
    """
    from confluent_kafka import KafkaError, TopicPartition

    from streaming.connection import open_reader

    reader, found = open_reader(world.settings), set()
    count = 0
    try:
        left = set(
            reader.list_topics(world.pipeline.predictions_topic, timeout=10)
            .topics[world.pipeline.predictions_topic]
            .partitions
        )
        reader.assign([TopicPartition(world.pipeline.predictions_topic, number, 0) for number in left])
        give_up_at = time.monotonic() + DONE_SECONDS_MAX
        while left and time.monotonic() < give_up_at:
            for message in reader.consume(BATCH_RECORDS_MAX, 0.2):
                error = message.error()
                if error is None:
                    source = msgspec.json.decode(message.value() or b"{}")["source"]
                    found.add((source["partition"], source["offset"]))
                    count += 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
    finally:
        reader.close()
    if not count == len(found) == sent:
        raise StackError(f"{sent} events gave {count} predictions of {len(found)} events: not exactly once")


def stored(world: World) -> dict[str, float]:
    """Bytes that an overlay and an entity's online features take, from the servers' own account."""
    import psycopg
    import redis

    from features.online_reading import Reader, decode_plan, plan_key

    client: Any = redis.Redis.from_url(world.settings.need("redis_url"))
    try:
        reader = Reader(decode_plan(client.get(plan_key(world.pipeline.features))))
        cells = range(min(SAMPLED_MAX, world.grid.cells))
        overlays = [client.memory_usage(overlay_key(world.pipeline.name, str(cell))) or 0 for cell in cells]
        entities = [sum(client.memory_usage(key) or 0 for key in reader.keys([cell])) for cell in cells]
    finally:
        client.close()
    with psycopg.connect(world.settings.need("postgres_url")) as connection:
        found = connection.execute(
            "SELECT pg_total_relation_size('overlay')::float / greatest(count(*), 1) FROM overlay"
        ).fetchone()
    return {
        "redis_bytes_per_overlay": sum(overlays) / len(cells),
        "redis_bytes_per_entity": sum(entities) / len(cells),
        "postgres_bytes_per_overlay": float(found[0]) if found else 0.0,
    }


@contextmanager
def profiled_thread(world: World, topic: Topic) -> Iterator[None]:
    """Handle a round's events under cProfile, in the worker's thread, and print where the time goes."""
    import cProfile

    profile, original = cProfile.Profile(), Worker.run

    def under_profile(self: Worker, stop: threading.Event) -> None:
        profile.runcall(original, self, stop)

    Worker.run = under_profile  # type: ignore[method-assign]
    try:
        yield
    finally:
        Worker.run = original  # type: ignore[method-assign]
        print_profile(profile, f"stream worker, {topic.events} events")


def main() -> None:
    """Measure, or profile, and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores, trees = Cores.choose(), trees_of(asked.quick)
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores, with_kafka=True))
        say("making the world: features offline and online, model, topics")
        world = make_world(settings, CELLS_QUICK if asked.quick else CELLS, trees=trees)
        materialize(world.pipeline, world.settings, world.as_of)
        topic = Topic(world, asked.size(EVENTS, EVENTS_QUICK))
        stack.enter_context(on_core(cores.measured))
        ours = Ours(world, topic)
        if asked.profile:
            with profiled_thread(world, topic):
                ours.worker()
            return
        contenders: dict[str, Measure] = {
            "ours": ours.worker,
            "floor": Scoring(world, topic).measure,
            "transactions": Transactions(world, topic).measure,
            "overlays": ours.overlays,
            "features": ours.features,
        }
        if asked.peers:
            told = {**world.for_peers(), "topic": f"{world.pipeline.name}.observations", "commit_every": 500}
            peer = stack.enter_context(
                running_peer("quix", "quix_stream.py", told, cores.measured, world.settings.state_dir)
            )
            contenders["peer"] = lambda: peer.ask(count=topic.events)
        found = in_turn(contenders, asked.rounds)
        check_once(world, topic.sent)
        rates = {name: median(results, "rate") for name, results in found.items()}
        finish(
            {
                "name": "stream",
                "unit": "events/s",
                "ours": rates["ours"],
                "peer": rates.get("peer"),
                "floor": rates["floor"],
                "floor_transactions": rates["transactions"],
                "ratio_peer": ratio(rates["ours"], rates.get("peer")),
                "ratio_floor": ratio(rates["ours"], rates["floor"]),
                "ratio_floor_transactions": ratio(rates["ours"], rates["transactions"]),
                "sinks": {"overlays": rates["overlays"], "features": rates["features"]},
                "exactly_once": True,
                "stored": stored(world),
                "memory_mb": {"process": own_memory_mb()},
                "events": topic.events,
                "trees": trees,
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
