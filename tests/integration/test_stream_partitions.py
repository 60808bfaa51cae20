"""Partitions added to a topic of baskets while events wait: every history is the fold of all its events."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import NewPartitions

from almanac.clock import utc_now
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from features.online import observation_row
from streaming import worker
from streaming.connection import open_admin
from streaming.placement import partition_of
from streaming.process import Crew
from streaming.publish import publish
from streaming.report import Report
from streaming.sink import Features, Hold, Sink
from tests.baskets import RANGE, PackedHistories, basket_pipeline, purchase, register_sums
from tests.generations import new_name
from tests.integration.test_basket_kills import folded
from tests.streams import FeaturesInMemory, eventually, read_topic

pytestmark = pytest.mark.slow

BEFORE, AFTER = 40, 200
CUSTOMERS = 80
LAGGING = Hold(seconds=0.3, records=200, bytes=10_000_000)
Sent = tuple[str, list[tuple[str, float, float]], Any]


@pytest.fixture
def settings(redis_url: str, kafka_bootstrap: str, tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, redis_url=redis_url, kafka_bootstrap=kafka_bootstrap)


def drawn(count: int) -> list[Sent]:
    """Baskets of some customers, in the order of their moments; a return now and then of what was just bought."""
    dice, begin, found = random.Random(7), utc_now() - timedelta(hours=6), list[Sent]()
    for number in range(count):
        customer, moment = f"c{dice.randrange(CUSTOMERS)}", begin + timedelta(seconds=number)
        lines = [(dice.choice(RANGE), float(dice.randint(1, 5)), dice.randint(50, 900) / 100) for _ in range(2)]
        earlier = [each for each in found[-150:] if each[0] == customer]
        if earlier and len(earlier[-1][1]) > 1 and dice.random() < 0.2:  # its purchase must have been folded in before
            item, quantity, price = earlier[-1][1][0]
            lines = [(item, -quantity, price)]
        found.append((customer, list(dict.fromkeys(lines)), moment))
    return found


def grow(settings: Settings, topic: str, partitions: int) -> None:
    admin = open_admin(settings)
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(10)


@contextmanager
def workers(pipeline: Pipeline, settings: Settings, instances: Sequence[str]) -> Iterator[list[Report]]:
    """Workers, and as many features sinks that are behind, so that batches need rows that are not applied yet."""
    crew = Crew()
    around = worker.Surroundings(online=FeaturesInMemory, observation_row=observation_row, histories=PackedHistories)
    group = f"almanac-{pipeline.name}-sink-features"
    for instance in instances:
        work = worker.Worker(pipeline, settings, around, instance)
        report = Report("features", pipeline=pipeline.name, part="features")
        sink = Sink(pipeline.features_topic, group, settings, report, instance, hold=LAGGING)
        target = Features(pipeline, lambda: PackedHistories(pipeline, settings), observation_row, report)
        crew.reports.append(work.report)
        crew.start(f"worker {instance}", partial(work.run, crew.stop))
        crew.start(f"features {instance}", partial(sink.run, target, crew.stop))
    try:
        yield crew.reports
    finally:
        crew.stop.set()
        assert crew.join()
        assert crew.failures == []


@pytest.mark.parametrize(
    ("partitions", "waiting", "begun"),
    [(8, 2_000, True), (6, 300, False)],
    ids=["4 to 8 while 2,000 wait", "4 to 6 before any worker ran"],
)
def test_partitions_added_while_events_wait_leave_every_history_whole(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, partitions: int, waiting: int, begun: bool
) -> None:
    monkeypatch.setattr(worker, "BATCH_RECORDS_MAX", 50)  # so that batches of both workers and of the sinks interleave
    pipeline = basket_pipeline(new_name())
    assert pipeline.stream is not None
    topic = pipeline.stream.topic
    register_sums(settings, pipeline)
    sent = drawn(BEFORE + waiting + AFTER)
    expected = folded(sent)
    publish([purchase(*each) for each in sent[:BEFORE]], pipeline, settings)
    if begun:
        with workers(pipeline, settings, ["0"]):
            eventually(lambda: len(read_topic(settings, pipeline.features_topic)) == BEFORE)
    publish([purchase(*each) for each in sent[BEFORE:-AFTER]], pipeline, settings)
    grow(settings, topic, partitions)
    publish([purchase(*each) for each in sent[-AFTER:]], pipeline, settings)
    assert any(record.partition >= 4 for record in read_topic(settings, topic))
    with workers(pipeline, settings, ["0", "1"]) as reports:
        store = PackedHistories(pipeline, settings)

        def wrong() -> list[str]:
            found = {entity: held and held[0] for entity, held in store.read(list(expected)).items()}
            return [entity for entity in expected if found[entity] != expected[entity]]

        eventually(lambda: not wrong(), lambda: f"histories of {wrong()} are wrong")
        assert sum(report.counts["forwarded"] for report in reports) > 0
    features = read_topic(settings, pipeline.features_topic)
    origins = [(s["partition"], s["offset"]) for s in (json.loads(r.value or b"")["source"] for r in features)]
    assert len(set(origins)) == len(origins) == len(sent), "every event counts once, by where it first stood"
    assert read_topic(settings, pipeline.dead_letter_topic) == []


def test_home_partitions_are_those_that_a_producer_chose(settings: Settings) -> None:
    pipeline = basket_pipeline(new_name())
    assert pipeline.stream is not None
    customers = [f"c{number}" for number in range(200)]
    publish([purchase(customer, [("ITEM 1", 1.0, 1.0)]) for customer in customers], pipeline, settings)
    found = {(record.key or b"").decode(): record.partition for record in read_topic(settings, pipeline.stream.topic)}
    assert found == {customer: partition_of(customer, 4) for customer in customers}
