"""A worker that folds baskets, its features sink and its overlay sink as a process that a test may kill.

Real Kafka, Postgres, Redis and packed histories; Feast, whose import takes longer than the rest, is left out: the
histories' layout is written down in `tests.baskets`, and items and model are small.

    python -m tests.integration.basket_child <pipeline> [<instance>]
"""

from __future__ import annotations

import signal
import sys

from almanac.declarations import pipeline
from almanac.settings import settings
from features.online import observation_row
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from streaming import worker
from streaming.process import Crew
from streaming.report import Report
from streaming.sink import Features, Hold, Overlays, Sink
from tests.baskets import PackedHistories
from tests.streams import BEGUN, FeaturesInMemory

worker.BATCH_RECORDS_MAX = 10
worker.CONSUME_SECONDS_MAX = 0.02
LAGGING = Hold(seconds=0.3, records=60, bytes=1_000_000)
"""So that the features sink is behind: the next batches need rows that it has not applied."""


def main(name: str, instance: str = "0") -> None:
    """Run until SIGTERM, or until killed."""
    found, of = pipeline(name), settings()
    crew = Crew()
    signal.signal(signal.SIGTERM, lambda *_: crew.stop.set())
    print(BEGUN, flush=True)
    around = worker.Surroundings(online=FeaturesInMemory, observation_row=observation_row, histories=PackedHistories)
    work = worker.Worker(found, of, around, instance)
    report, overlay_report = Report("features"), Report("overlays")
    features = Features(found, lambda: PackedHistories(found, of), observation_row, report)
    overlays = Overlays(found, PostgresStore(of.need("postgres_url")), RedisStore(of.need("redis_url")), overlay_report)
    sink = Sink(found.features_topic, f"almanac-{name}-sink-features", of, report, instance, hold=LAGGING)
    overlay_sink = Sink(found.predictions_topic, f"almanac-{name}-sink-overlays", of, overlay_report, instance)
    crew.start("worker", lambda: work.run(crew.stop))
    crew.start("features", lambda: sink.run(features, crew.stop))
    crew.start("overlays", lambda: overlay_sink.run(overlays, crew.stop))
    crew.stop.wait()
    crew.join()
    for _, error in crew.failures:
        raise error


if __name__ == "__main__":
    main(*sys.argv[1:])
