"""The world of benchmarks that rank: the pipeline `shop` with a simulated crowd of any size, and a model of 150 trees.

Histories and items are those that a night's ingest makes of the crowd's lines.
The model has the inputs of one that `almanac train shop` makes, but learned the
pairs of some entities with a truth that is made up: what it says is of no use, how long it takes is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import at_micros, utc_now
from almanac.errors import StackError
from almanac.interactions import Interactions, Simulated
from almanac.list_scoring import Prepared
from almanac.manifest import Reference
from almanac.partitioning import Buckets
from almanac.pipeline import Gate, Pipeline
from almanac.ranking import PAIR_COLUMNS, Items
from almanac.ranking_declared import ITEMS_COLUMN, Ranking
from almanac.registry import MODEL_FILE, ModelVersion
from almanac.settings import Settings
from benchmarks.reference import World, registered
from features.interactions.history import STATS, WINDOWS

if TYPE_CHECKING:
    from jobs.listing import Listed

BUCKET_ENTITIES, SHARD_ENTITIES = 4_000, 50_000
"""About so many entities in a partition, and in what one task scores, some fifteen seconds."""
ITEMS_MAX, ENTITIES_AN_ITEM = 4_000, 20
HISTORY, LINES_PER_ENTITY = timedelta(days=180), 12.0
OVERSIZE = 1.37
"""Of the simulated entities, some have not come yet, and some have taken nothing."""
TREES, TREES_QUICK, LEAVES = 150, 10, 31
TRAIN_ENTITIES = 1_000
SEED = 9
TEXT_FILE, LINES_DIR = "model-score.txt", "lines"
AVAILABLE = "available"
INPUTS = (*WINDOWS, *(name for name in STATS if name != AVAILABLE), *PAIR_COLUMNS)


def shop_pipeline(entities: int) -> Pipeline:
    """The declaration of `shop` with a crowd of about so many entities, and gates before and after scoring."""
    from pipelines.shop import shop

    if not isinstance(shop.source, Interactions):
        raise StackError("shop declares no interactions: benchmark a pipeline that does")
    simulated = Simulated(
        entities=round(entities * OVERSIZE),
        items=min(ITEMS_MAX, max(100, entities // ENTITIES_AN_ITEM)),
        history=HISTORY,
        lines_per_entity=LINES_PER_ENTITY,
    )
    between = "expect_column_values_to_be_between"
    return replace(
        shop,
        partitions=Buckets(count=max(4, entities // BUCKET_ENTITIES)),
        source=replace(shop.source, simulated=simulated),
        gates=(
            Gate(on="features", expectation=between, kwargs={"column": "orders", "min_value": 1}),
            Gate(on="predictions", expectation=between, kwargs={"column": ITEMS_COLUMN, "min_value": 10}),
        ),
        shard_partitions=max(1, SHARD_ENTITIES // BUCKET_ENTITIES),
        changed_only=False,  # all are ranked for; what remembering them takes, NAME=rerun-shop measures
    )


@dataclass(frozen=True, kw_only=True)
class Shop(World):
    """A world, and how many entities of it have a history at `as_of`."""

    entities: int

    @property
    def ranking(self) -> Ranking:
        """What is ranked."""
        assert self.pipeline.ranking is not None  # noqa: S101  shop_pipeline declares it
        return self.pipeline.ranking

    def for_peers(self) -> dict[str, Any]:
        """What a peer needs to know, as JSON."""
        folder = self.settings.features_dir.absolute() / self.pipeline.name
        items_at = items_of(self.pipeline, self.settings, self.as_of).at
        return {
            "as_of": self.as_of.isoformat(),
            "items_at": at_micros(items_at).isoformat(),
            "lines": str(folder / LINES_DIR),
            "stats": str(folder / "item_stats"),
            "together": str(folder / "item_together"),
            "inputs": list(INPUTS),
            "candidates": self.ranking.candidates_max,
            "kept": self.ranking.kept,
            "model": str(self.version.path / TEXT_FILE),
            "postgres": self.settings.postgres_url,
            "redis": self.settings.redis_url,
        }


def make_shop(settings: Settings, entities: int, *, trees: int) -> Shop:
    """Ingest, register definitions and a model, make tables.

    Args:
        settings: of a state directory of its own, with the servers' addresses.
        entities: about so many.
        trees: of the model.
    """
    from features.ingest import refresh
    from features.store import apply
    from jobs.plan import FEATURE_WINDOW
    from serving_cache.migrate import migrate

    pipeline = shop_pipeline(entities)
    settings = settings.model_copy(update={"source_data": ""})
    as_of = refresh(pipeline, settings, utc_now(), window=FEATURE_WINDOW).as_of
    apply(settings)
    migrate(settings.need("postgres_url"), [pipeline])
    found = sum(map(len, known_entities(pipeline, settings, as_of)))
    version = _model(settings, pipeline, as_of, trees)
    return Shop(pipeline=pipeline, settings=settings, version=version, as_of=as_of, entities=found)


def known_entities(pipeline: Pipeline, settings: Settings, as_of: datetime) -> Iterator[list[Any]]:
    """The entities that have a history, ascending, some at a time."""
    from features.tables import entities, tables_of

    return entities(tables_of(pipeline, settings), pipeline, as_of)


@dataclass(frozen=True, eq=False)
class Sample:
    """The first entities of a world, and what a model with `INPUTS` is asked of them, some at a time as in a run."""

    keys: list[Any]
    parts: list[Prepared]
    items: Items

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return sum(len(part.pairs) for part in self.parts)


def sample(pipeline: Pipeline, settings: Settings, as_of: datetime, most: int) -> Sample:
    """The first entities, at most so many."""
    import pyarrow as pa

    from features.layout import EVENT_TIMESTAMP
    from features.ranked import history_at
    from jobs.listing import asked

    keys = next(known_entities(pipeline, settings, as_of))[:most]
    at = pa.repeat(pa.scalar(as_of, pa.timestamp("us", tz="UTC")), len(keys))
    table = history_at(pipeline, settings, pa.table({pipeline.entity: pa.array(keys), EVENT_TIMESTAMP: at}))
    found = items_of(pipeline, settings, as_of)
    return Sample(keys, list(asked(found, INPUTS, table)), found.items)


def items_of(pipeline: Pipeline, settings: Settings, as_of: datetime) -> Listed:
    """The items that a run ranks, and how new they are.

    Raises:
        StackError: the pipeline ranks none.
    """
    from jobs.listing import listed

    found = listed(pipeline, settings, as_of)
    if found is None:
        raise StackError(f"{pipeline.name} ranks nothing: benchmark a pipeline that does")
    return found


def _model(settings: Settings, pipeline: Pipeline, as_of: datetime, trees: int) -> ModelVersion:
    """A model of so many trees, learned from the pairs of some entities and a made-up truth."""
    import lightgbm

    from jobs.training.convert import Fitted, Recipe, to_onnx

    parts = sample(pipeline, settings, as_of, TRAIN_ENTITIES).parts
    chance, inputs = np.random.default_rng(SEED), np.concatenate([part.inputs for part in parts])
    spread = inputs.std(axis=0) + 1e-6
    truth = np.sin((inputs - inputs.mean(axis=0)) / spread) @ chance.normal(size=len(INPUTS))
    truth += chance.normal(size=len(truth))
    parameters = {"num_leaves": LEAVES, "num_threads": 1, "seed": 1, "verbosity": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(inputs, truth), num_boost_round=trees)
    fitted = [Fitted(output="score", booster=booster, reference=Reference(weights={}, damping=1.0))]
    files = {
        MODEL_FILE: to_onnx(Recipe(inputs=INPUTS, differences=()), fitted),
        TEXT_FILE: booster.model_to_string().encode(),
    }
    return registered(settings, pipeline, files, INPUTS, rows=len(truth))
