"""Small pipelines and generations for tests of the stores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from almanac.blocks import Block
from almanac.list_blocks import AnyBlock, ListBlock
from almanac.partitioning import Buckets, Grid
from almanac.pipeline import Freshness, Output, Pipeline, Ranking, days, horizons, hours, minutes
from almanac.ranked import RankedList
from almanac.ranking_declared import ANY_ITEM
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


NUMBERED = (17, 2**53 + 1, 1_234_567_890_123_456_789, -1_234_567_890_123_456_789, 2**63 - 1, -(2**63))
"""Keys of `numbered_pipeline`."""


def numbered_pipeline(name: str | None = None, **changes: object) -> Pipeline:
    """Users whose keys are whole numbers of up to 19 digits, in 4 buckets."""
    return bucket_pipeline(name, **{"partitions": Buckets(count=4, keys="integer"), **changes})


def list_pipeline(name: str | None = None, **changes: object) -> Pipeline:
    """Users in 4 buckets, each with a list of items."""
    ranking = Ranking(item="item_id", features="items_v1", length=2, kept=3, candidates_max=5, attributes=("price",))
    return bucket_pipeline(name, **{"outputs": (Output(name="score"),), "ranking": ranking, **changes})


def library(name: str | None = None, **changes: Any) -> Pipeline:
    """Lists of three of at most twelve books that are scored, in 4 buckets."""
    name = name or new_name()
    ranking = Ranking(
        item="book",
        features=f"books_{name}",
        length=3,
        kept=5,
        candidates_max=12,
        available="available",
        attributes=("price",),
    )
    fields: dict[str, Any] = {
        "name": name,
        "entity": "member",
        "partitions": Buckets(count=4),
        "outputs": (Output(name="score"),),
        "features": f"members_{name}",
        "model": f"{name}@champion",
        "schedule": "0 3 * * *",
        "freshness": Freshness(fresh_for=hours(36), usable_for=days(3650)),
        "ranking": ranking,
        "default": ANY_ITEM,
    }
    return Pipeline(**{**fields, **changes})


def lists_of(keys: np.ndarray, lists: Sequence[RankedList]) -> ListBlock:
    """Lists as a block: what each item's attributes are, the first list says that has it."""
    known: dict[str, dict[str, float]] = {}
    for one in lists:
        for at, item in enumerate(one.items):
            known.setdefault(item, {name: values[at] for name, values in one.attributes.items()})
    items = sorted(known, key=str.encode)
    names = next((tuple(one.attributes) for one in lists), ())
    return ListBlock(
        keys,
        np.cumsum([0, *(len(one.items) for one in lists)]),
        np.array([item.encode() for item in items], dtype=np.bytes_ if items else "S1"),
        {name: np.array([known[item][name] for item in items], dtype=np.float32) for name in names},
        np.array([items.index(item) for one in lists for item in one.items], dtype=np.int64),
        np.array([score for one in lists for score in one.scores], dtype=np.float32),
    )


def list_of(user: str, value: float) -> RankedList:
    """A user's list: as many items as the name's last figure says, up to three, the best with the score `value`."""
    count = ord(user.removesuffix("é")[-1]) % 4
    items = tuple(f"item {(len(user) + n) % 5}é" for n in range(count))
    return RankedList(
        items, tuple(value - n for n in range(count)), {"price": tuple((len(user) + n) % 5 / 4 for n in range(count))}
    )


def migrated(url: str, pipeline: Pipeline, *others: Pipeline) -> Pipeline:
    """The pipeline, once its tables and those of the others are made."""
    from serving_cache.migrate import migrate  # here: a lookup's process reads declarations of this file

    migrate(url, (pipeline, *others))
    return pipeline


def block_of(pipeline: Pipeline, partition: int, value: float) -> AnyBlock:
    """A block of one partition in which every prediction is `value`, or the best of every list."""
    if isinstance(pipeline.partitions, Grid):
        keys = np.array(list(pipeline.partitions.entities(partition)), dtype=np.int64)
    elif pipeline.partitions.key_type is int:
        keys = np.array(sorted(n for n in NUMBERED if pipeline.partitions.partition_of(n) == partition), dtype=np.int64)
    else:
        users = [f"user-{n}é" for n in range(40)]
        keys = np.array(sorted(u.encode() for u in users if pipeline.partitions.partition_of(u) == partition))
    if pipeline.ranking is not None:
        return lists_of(keys, [list_of(key.decode(), value) for key in keys.tolist()])
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
