"""A worker, an overlay and an archive sink as a process that a test may kill: real Kafka, Postgres, Redis, model.

Its features come from memory instead of Feast, whose import takes longer than
the whole of the rest; and its batches are small, so that a kill hits many.

    python -m tests.integration.stream_child <pipeline>
"""

from __future__ import annotations

import signal
import sys

import pyarrow as pa

from almanac.declarations import pipeline
from almanac.settings import settings
from features.archive import Archive
from features.online import observation_row
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from streaming import worker
from streaming.archiving import Archiving
from streaming.process import Crew
from streaming.report import Report
from streaming.sink import Overlays, Sink
from tests.streams import BEGUN, SMALL, FeaturesInMemory

worker.BATCH_RECORDS_MAX = 20
worker.CONSUME_SECONDS_MAX = 0.02


def main(name: str) -> None:
    """Run until SIGTERM, or until killed."""
    found, of = pipeline(name), settings()
    crew = Crew()
    signal.signal(signal.SIGTERM, lambda *_: crew.stop.set())
    print(BEGUN, flush=True)
    around = worker.Surroundings(online=FeaturesInMemory, observation_row=observation_row)
    work = worker.Worker(found, of, around)
    report = Report("overlays")
    overlays = Overlays(found, PostgresStore(of.need("postgres_url")), RedisStore(of.need("redis_url")), report)
    sink = Sink(found.predictions_topic, f"{name}-sink", of, report)
    crew.start("worker", lambda: work.run(crew.stop))
    crew.start("overlays", lambda: sink.run(overlays, crew.stop))
    files = Archive(of.state_dir / "archive", {found.entity: pa.int64(), "t2m": pa.float32()})
    report_archive = Report("archive")
    sink_archive = Sink(found.features_topic, f"{name}-sink-archive", of, report_archive, hold=SMALL)
    archiving = Archiving(found, lambda: files, observation_row, report_archive)
    crew.start("archive", lambda: sink_archive.run(archiving, crew.stop))
    crew.stop.wait()
    crew.join()
    for _, error in crew.failures:
        raise error


if __name__ == "__main__":
    main(sys.argv[1])
