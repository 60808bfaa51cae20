"""Small pipelines and generations for tests of the stores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np

from almanac.blocks import Block
from almanac.partitioning import Buckets, Grid
from almanac.pipeline import Freshness, Pipeline, horizons, hours, minutes
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.records import Attempt, GenerationStart, OverlayRecord, Publication, StagedPartition

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_numbers = itertools.count()


def new_name() -> str:
    """A pipeline name that no other test has."""
    return f"p{os.getpid()}_{next(_numbers)}"


def grid_pipeline(name: str | None = None, **changes: object) -> Pipeline:
    """A grid of 8 x 8 cells in 16 tiles."""
    fields: dict[str, object] = {
        "name": name or new_name(),
        "entity": "cell_id",
        "partitions": Grid(rows=8, cols=8, tile=2),
        "outputs": horizons("t2m", hours=(1, 6)),
        "features": "weather_v1",
        "model": "weather@champion",
        "schedule": "0 * * * *",
        "freshness": Freshness(fresh_for=minutes(90), usable_for=hours(24)),
        "coverage_min": 0.75,
        "generations_kept": 2,
    }
    return Pipeline(**{**fields, **changes})  # type: ignore[arg-type]


def bucket_pipeline(name: str | None = None, **changes: object) -> Pipeline:
    """Users in 4 buckets."""
    return grid_pipeline(name, **{"entity": "user_id", "partitions": Buckets(count=4), **changes})


def migrated(url: str, *pipelines: Pipeline) -> None:
    """Make the tables of these pipelines."""
    migrate(url, pipelines)


def block_of(pipeline: Pipeline, partition: int, value: float) -> Block:
    """A block of one partition in which every prediction is `value`."""
    if isinstance(pipeline.partitions, Grid):
        keys = np.array(list(pipeline.partitions.entities(partition)), dtype=np.int64)
    else:
        users = [f"user-{n}é" for n in range(40)]
        keys = np.array(sorted(u.encode() for u in users if pipeline.partitions.partition_of(u) == partition))
    columns = {name: np.full(len(keys), value, dtype=np.float32) for name in pipeline.output_names}
    return Block(keys=keys, columns=columns)


def start_of(pipeline: Pipeline, run_key: str, as_of: datetime = NOON, **changes: object) -> GenerationStart:
    """How a run with this key opens its generation."""
    fields: dict[str, object] = {
        "run_key": run_key,
        "cutoff": as_of,
        "as_of": as_of,
        "model": "weather-v1",
        "model_hash": "0" * 64,
        "clock_shift": timedelta(0),
        "partitions": tuple(range(pipeline.partitions.count)),
    }
    return GenerationStart(**{**fields, **changes})  # type: ignore[arg-type]


def staged_parts(
    pipeline: Pipeline, value: float, as_of: datetime = NOON, partitions: Iterable[int] | None = None
) -> list[StagedPartition]:
    """Partitions (all, unless told) full of one value."""
    chosen = range(pipeline.partitions.count) if partitions is None else partitions
    return [
        StagedPartition(partition=p, block=block_of(pipeline, p, value), as_of=as_of, computed_at=as_of) for p in chosen
    ]


def staged_generation(store: PostgresStore, pipeline: Pipeline, value: float, as_of: datetime = NOON) -> Attempt:
    """A generation with every partition staged."""
    attempt = store.begin_generation(pipeline, start_of(pipeline, f"run {value} {as_of}", as_of), now=as_of)
    store.stage(attempt, staged_parts(pipeline, value, as_of))
    return attempt


def published_generation(store: PostgresStore, pipeline: Pipeline, value: float, as_of: datetime = NOON) -> Publication:
    """A generation, published."""
    return store.publish(staged_generation(store, pipeline, value, as_of), pipeline, now=as_of)


def overlay_of(entity: str, as_of: datetime, offset: int, **changes: object) -> OverlayRecord:
    """A prediction from the stream."""
    fields: dict[str, object] = {
        "entity": entity,
        "model": "weather-v1",
        "as_of": as_of,
        "topic": "weather.observations",
        "kafka_partition": 0,
        "kafka_offset": offset,
        "values": {"t2m_1h": 280.0 + offset, "t2m_6h": 281.0},
        "computed_at": as_of,
    }
    return OverlayRecord(**{**fields, **changes})  # type: ignore[arg-type]
