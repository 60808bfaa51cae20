"""The batch job where lists are ranked: entities a second from features at rest to a published generation.

    make bench NAME=batch-shop

Ours is what the tasks of a run call, in one process: plan, items and histories
point in time, candidate items, their pairs' features, scoring, lists, rows to
Postgres, blocks to Redis, publish. The floor is the scoring alone, of pairs in
memory, one thread like ours, before and after ours: the pairs of some thousand
entities, again and again. `ratio_floor` is what is left of it; `ratio_floor_cpu`
the same by this process's time on its core, which work beside it does not change.

World: 1,000,000 entities (`--rows`) with a history of twelve items on average,
50 candidate items each of 4,000, lists of 30; a model of 150 trees, as a shop's.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

from almanac.clock import floor_hour, utc_now
from almanac.manifest import Description, Input, Parity, Reference, Window
from almanac.partitioning import Buckets
from almanac.pipeline import Freshness, Output, Pipeline, Ranking, days
from almanac.ranking import HISTORY, HISTORY_COUNTS, HISTORY_TIMES, PAIR_COLUMNS, candidates, matrix
from almanac.ranking_declared import ANY_ITEM
from almanac.ranking_rows import NEIGHBOUR_WEIGHTS, NEIGHBOURS
from almanac.registry import MODEL_FILE, ModelVersion, Registry
from almanac.scoring import Scorer
from almanac.settings import Settings
from benchmarks.batch import GATES, STAGES, Job
from benchmarks.measuring import (
    Cores,
    finish,
    in_turn,
    machine,
    median,
    on_core,
    options,
    profiled,
    ratio,
    run,
    say,
    shares,
)
from benchmarks.reference import World
from benchmarks.servers import running_servers
from benchmarks.services import own_memory_mb
from features.layout import EVENT_TIMESTAMP

ENTITIES, ENTITIES_QUICK = 1_000_000, 1_000
ITEMS = 4_000
HISTORY_MEAN, HISTORY_MAX = 12, 100
NEIGHBOURS_EACH, POPULAR = 20, 100
BUCKET_ENTITIES = 4_000
WRITTEN_AT_ONCE = 100_000
TREES, TREES_QUICK, LEAVES = 150, 10, 31
TRAIN_PAIRS = 50_000
FLOOR_ENTITIES = 4_000
NAME = "lists"
ENTITY_COLUMNS = tuple(f"window_{number}" for number in range(18))
ITEM_COLUMNS = ("sold_7d", "sold_30d", "sold_90d", "buyers_30d", "price", "days_on_sale", "days_since_sold")
INPUTS = (*ENTITY_COLUMNS, *ITEM_COLUMNS, *PAIR_COLUMNS)
MADE_AT = datetime(2026, 1, 10, tzinfo=UTC)

DEFINITIONS = """
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Int64, String


def view(name, entity, **columns):
    source = FileSource(name=name + "_file", path="{folder}/" + name + ".parquet", timestamp_field="event_timestamp")
    fields = [Field(name=column, dtype=kind) for column, kind in columns.items()]
    return FeatureView(name=name, entities=[entity], schema=fields, source=source)


holder = Entity(name="holder", join_keys=["holder"], value_type=ValueType.STRING)
thing = Entity(name="thing", join_keys=["thing"], value_type=ValueType.STRING)
histories = view(
    "histories", holder, bought_items=Array(String), bought_at=Array(Int64), bought_counts=Array(Int64),
    **dict.fromkeys({entity_columns}, Float32),
)
things = view(
    "things", thing, together_items=Array(String), together_weights=Array(Float32), available=Float32,
    **dict.fromkeys({item_columns}, Float32),
)
holders_v1 = FeatureService(name="holders_v1", features=[histories])
things_v1 = FeatureService(name="things_v1", features=[things])
"""


def list_pipeline(entities: int) -> Pipeline:
    """The declaration, for about so many entities."""
    return Pipeline(
        name=NAME,
        entity="holder",
        partitions=Buckets(count=max(4, entities // BUCKET_ENTITIES)),
        outputs=(Output(name="score"),),
        features="holders_v1",
        model=f"{NAME}@champion",
        schedule="0 3 * * *",
        freshness=Freshness(fresh_for=days(2), usable_for=days(7)),
        ranking=Ranking(
            item="thing",
            features="things_v1",
            kept=30,
            candidates_max=50,
            available="available",
            attributes=("price",),
        ),
        default=ANY_ITEM,
        description="The benchmarks' lists: thirty of fifty candidate items.",
    )


def make_world(settings: Settings, entities: int, *, trees: int) -> World:
    """Histories and items in Parquet, definitions, a model, tables."""
    from features.store import apply
    from serving_cache.migrate import migrate

    as_of = floor_hour(utc_now())
    folder = settings.state_dir / "rows"
    folder.mkdir()
    definitions = folder / "feast_lists.py"
    columns = {"entity_columns": ENTITY_COLUMNS, "item_columns": ITEM_COLUMNS}
    definitions.write_text(DEFINITIONS.format(folder=folder, **columns))
    settings = settings.model_copy(update={"feature_repo": str(definitions)})
    _write_items(folder / "things.parquet", as_of)
    _write_histories(folder / "histories.parquet", entities, as_of)
    apply(settings)
    pipeline = list_pipeline(entities)
    migrate(settings.need("postgres_url"), [pipeline])
    return World(pipeline=pipeline, settings=settings, version=_model(settings, pipeline, trees), as_of=as_of)


def _names(places: np.ndarray[Any, Any]) -> Any:
    import pyarrow as pa

    return pa.array([f"item {number:05d}" for number in range(ITEMS)]).take(pa.array(places))


def _lists(values: Any, lengths: np.ndarray[Any, Any]) -> Any:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), values)


def _write_items(path: Any, as_of: datetime) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(3)
    lengths = np.append(np.full(ITEMS, NEIGHBOURS_EACH), POPULAR)
    near = np.concatenate([chance.choice(ITEMS, size=length, replace=False) for length in lengths])
    weights = np.concatenate([np.sort(chance.random(length))[::-1] for length in lengths]).astype(np.float32)
    rows = ITEMS + 1
    table = {
        "thing": pa.concat_arrays([_names(np.arange(ITEMS)), pa.array([ANY_ITEM])]),
        EVENT_TIMESTAMP: pa.repeat(pa.scalar(as_of, pa.timestamp("us", tz="UTC")), rows),
        NEIGHBOURS: _lists(_names(near), lengths),
        NEIGHBOUR_WEIGHTS: _lists(pa.array(weights), lengths),
        "available": np.ones(rows, np.float32),
    }
    pq.write_table(pa.table(table | {name: chance.random(rows).astype(np.float32) for name in ITEM_COLUMNS}), path)


def _write_histories(path: Any, entities: int, as_of: datetime) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance, writer, newest = np.random.default_rng(5), None, int(as_of.timestamp()) * 1_000_000
    with ExitStack() as stack:
        for start in range(0, entities, WRITTEN_AT_ONCE):
            count = min(WRITTEN_AT_ONCE, entities - start)
            lengths = np.minimum(chance.geometric(1 / HISTORY_MEAN, count), HISTORY_MAX)
            total = int(lengths.sum())
            # Steps through the items, so that none comes twice in a history.
            steps, first = chance.integers(1, ITEMS // HISTORY_MAX, count), chance.integers(0, ITEMS, count)
            number = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            places = (np.repeat(first, lengths) + number * np.repeat(steps, lengths)) % ITEMS
            columns = {
                "holder": pa.array([f"{start + row:08d}" for row in range(count)]),
                EVENT_TIMESTAMP: pa.repeat(pa.scalar(as_of, pa.timestamp("us", tz="UTC")), count),
                HISTORY: _lists(_names(places), lengths),
                HISTORY_TIMES: _lists(pa.array(newest - number * 86_400_000_000), lengths),
                HISTORY_COUNTS: _lists(pa.array(1 + number % 3), lengths),
            }
            table = pa.table(columns | {name: chance.random(count).astype(np.float32) for name in ENTITY_COLUMNS})
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
            writer.write_table(table)


def _model(settings: Settings, pipeline: Pipeline, trees: int) -> ModelVersion:
    """A model of so many trees, learned from noise: how long it takes does not depend on what it learned."""
    import lightgbm

    from jobs.convert import Fitted, Recipe, exact_thresholds, to_onnx

    chance = np.random.default_rng(9)
    inputs = chance.random((TRAIN_PAIRS, len(INPUTS)), dtype=np.float32)
    truth = inputs @ chance.random(len(INPUTS)) + chance.random(TRAIN_PAIRS)
    parameters = {"num_leaves": LEAVES, "num_threads": 1, "seed": 1, "verbosity": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(inputs, truth), num_boost_round=trees)
    fitted = [Fitted(output="score", booster=exact_thresholds(booster), reference=Reference(weights={}, damping=1.0))]
    span = Window(start=MADE_AT, end=MADE_AT)
    version = Registry(settings.models_dir).register(
        NAME,
        {MODEL_FILE: to_onnx(Recipe(inputs=INPUTS, differences=()), fitted)},
        Description(
            features=pipeline.features,
            inputs=tuple(Input(name=column) for column in INPUTS),
            outputs=pipeline.output_names,
            training=span,
            held_out=span,
            rows=TRAIN_PAIRS,
            seed=1,
            parity=Parity(rows=1, difference_max=0.0, tolerance=1e-3),
            metrics={},
            references={},
            libraries={},
        ),
        now=MADE_AT,
    )
    Registry(settings.models_dir).set_alias(NAME, pipeline.model_alias, version.version)
    return version


class Floor:
    """Scoring alone: pairs of some entities, made beforehand, again and again.

    Args:
        entities: whose pairs are scored at each turn.
    """

    def __init__(self, world: World, entities: int) -> None:
        self._world = world
        self._times = max(1, round(entities / FLOOR_ENTITIES))

    @cached_property
    def _ready(self) -> tuple[Scorer, Any, int]:
        import pyarrow.parquet as pq

        from features.ranked import entities_of, items_at

        pipeline, settings = self._world.pipeline, self._world.settings
        file = pq.ParquetFile(settings.state_dir / "rows" / "histories.parquet")
        table = next(file.iter_batches(FLOOR_ENTITIES))
        items = items_at(pipeline, settings, self._world.as_of)
        moments = np.full(table.num_rows, int(self._world.as_of.timestamp()) * 1_000_000, np.int64)
        entities = entities_of(pipeline, table, items, moments)
        assert pipeline.ranking is not None  # noqa: S101  list_pipeline declares it
        pairs = candidates(entities, items, pipeline.ranking)
        return Scorer.load(self._world.version, pipeline), matrix(entities, items, pairs, INPUTS), table.num_rows

    def run(self) -> dict[str, Any]:
        """Entities a second, and pairs."""
        scorer, inputs, entities = self._ready
        began, used = time.perf_counter(), time.process_time()
        for _ in range(self._times):
            scorer.score_matrix(inputs)
        taken, used = time.perf_counter() - began, time.process_time() - used
        scored = entities * self._times
        return {"rate": scored / taken, "cpu_rate": scored / used, "pairs_rate": len(inputs) * self._times / taken}


def main() -> None:
    """Measure, or profile, and print the line."""
    asked = options(__doc__, rounds=1)
    cores, trees = Cores.choose(), TREES_QUICK if asked.quick else TREES
    entities = asked.size(ENTITIES, ENTITIES_QUICK)
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        say("making the world: histories, items, model, tables")
        world = make_world(settings, entities, trees=trees)
        stack.enter_context(on_core(cores.measured))
        job = Job(world, rows=entities, scoring="score_matrix")
        floor = Floor(world, entities // 10)
        job.warm()
        if asked.profile:
            with profiled("batch job of lists"):
                job.run()
            return
        found = in_turn({"floor": floor.run, "ours": job.run, "floor_again": floor.run}, asked.rounds)
        ours, alone = median(found["ours"], "rate"), median([*found["floor"], *found["floor_again"]], "rate")
        spent = median([*found["floor"], *found["floor_again"]], "cpu_rate")
        stages = {name: median([entry["stages"] for entry in found["ours"]], name) for name in (*STAGES, *GATES)}
        finish(
            {
                "name": "batch-shop",
                "unit": "entities/s",
                "ours": ours,
                "floor": alone,
                "ratio_floor": ratio(ours, alone),
                "ratio_floor_cpu": ratio(entities / median(found["ours"], "cpu"), spent),
                "with_gates": median(found["ours"], "rate_with_gates"),
                "pairs_rate": median(found["floor"], "pairs_rate"),
                "stages": shares({name: stages[name] for name in STAGES}),
                "gates_seconds": {name: stages[name] for name in GATES},
                "memory_mb": {"job": own_memory_mb()},
                "entities": entities,
                "candidates": 50,
                "trees": trees,
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
