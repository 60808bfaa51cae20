"""The reference pipeline that all benchmarks run: 30 features, 4 outputs, 300 trees of 63 leaves an output.

Its world is made in a temporary state directory: a simulated field, offline
features of the last hours in Parquet, a model that LightGBM learned from them,
Feast's definitions in the registry, tables in Postgres.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.clock import HOUR, floor_hour, utc_now
from almanac.errors import ModelError
from almanac.integrity import Integrity
from almanac.manifest import Description, Input, Parity, Reference, Window
from almanac.partitioning import Grid
from almanac.pipeline import Fresh, Freshness, Gate, GridObservations, Pipeline, Stream, horizons, hours
from almanac.registry import MODEL_FILE, ModelVersion, Registry
from almanac.settings import Settings
from benchmarks.reference_columns import COLUMNS, HISTORY_HOURS, STATIC_VIEW, VALUE, VIEWS, columns_at
from features.layout import CREATED_TIMESTAMP, EVENT_TIMESTAMP, STATIC_SINCE, static_file, view_dir

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "reference"
FEAST_FOLDER = Path(__file__).resolve().parent / "feast"
TREES, LEAVES = 300, 63
TREES_QUICK = 20
HORIZONS = (6, 12, 24, 36)  # none runs out while a benchmark runs
FEATURE_HOURS = 4  # of offline history: the hours that a point-in-time join searches
TILE = 16
SHARD_ROWS = 1_000_000
FIELD_CELLS_MAX = 1_000_000
"""Cells whose weather is simulated; a larger grid has the same rows again and again."""
GROUP_ROWS = 131_072
"""Rows of a row group of the offline files, about what DuckDB writes."""
TRAIN_GRID = Grid(rows=48, cols=64, tile=16, north=65.0, west=-20.0, step=0.5)
TRAIN_ROWS = 20_000
SEED = 2019
TOLERANCE = 0.01  # kelvin, between LightGBM and its ONNX graph
VALID = (180.0, 340.0)
TRAINED_AT = datetime(2026, 1, 10, tzinfo=UTC)
PARITY_ROWS = 500
REFERENCE = Reference(weights={VALUE: 1.0}, damping=1.0)

DECLARATION = """
from benchmarks.reference import reference_pipeline

reference = reference_pipeline({cells})
"""


def grid_of_cells(cells: int) -> Grid:
    """A grid of about 4 to 5 sides with at most this many cells, at least one tile."""
    rows = max(TILE, math.isqrt(cells * 4 // 5))
    cols = max(TILE, cells // rows)
    return Grid(rows=rows, cols=cols, tile=TILE, north=65.0, west=-20.0, step=min(0.5, 30.0 / rows))


def reference_pipeline(cells: int) -> Pipeline:
    """The declaration, on a grid of about so many cells."""
    between = "expect_column_values_to_be_between"
    outputs = horizons(VALUE, hours=HORIZONS, unit="K")
    limits = {"min_value": VALID[0], "max_value": VALID[1]}
    grid = grid_of_cells(cells)
    return Pipeline(
        name=NAME,
        entity="cell_id",
        partitions=grid,
        outputs=outputs,
        features="reference_v1",
        model=f"{NAME}@champion",
        schedule="0 0 29 2 *",  # as good as never: a run that the clock begins would be measured too, or instead
        integrity=Integrity(schedule=None),
        freshness=Freshness(fresh_for=hours(6), usable_for=hours(24)),
        stream=Stream(topic=f"{NAME}.observations", values={VALUE: VALID, "hour_sin": (-1, 1), "hour_cos": (-1, 1)}),
        fresh=Fresh(deadline=timedelta(seconds=5)),
        gates=(
            Gate(on="features", expectation="expect_column_values_to_not_be_null", kwargs={"column": VALUE}),
            Gate(on="features", expectation=between, kwargs={"column": VALUE, **limits}),
            *(Gate(on="predictions", expectation=between, kwargs={"column": o.name, **limits}) for o in outputs),
        ),
        shard_partitions=max(1, SHARD_ROWS // TILE**2),
        description="The benchmarks' reference: 30 features of a simulated grid.",
    )


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that was made: where it is, and what a peer is told of it."""

    pipeline: Pipeline
    settings: Settings
    version: ModelVersion
    as_of: datetime

    @property
    def grid(self) -> Grid:
        """The grid of the cells."""
        assert isinstance(self.pipeline.partitions, Grid)  # noqa: S101  reference_pipeline gives it one
        return self.pipeline.partitions

    def for_peers(self) -> dict[str, Any]:
        """What a peer needs to know, as JSON."""
        return {
            "as_of": self.as_of.isoformat(),
            "cells": self.grid.cells,
            "views": {view: list(columns) for view, columns in VIEWS.items()},
            "static_view": STATIC_VIEW,
            "files": {view: str(view_dir(self.settings.features_dir.absolute(), NAME, view)) for view in VIEWS},
            "models": {output: str(self.version.path / f"model-{output}.txt") for output in self.pipeline.output_names},
            "value": VALUE,
            "postgres": self.settings.postgres_url,
            "redis": self.settings.redis_url,
            "kafka": self.settings.kafka_bootstrap,
        }

    def environment(self) -> dict[str, str]:
        """The variables from which a process of this pipeline reads its settings."""
        urls = {
            "ALMANAC_POSTGRES_URL": self.settings.postgres_url,
            "ALMANAC_REDIS_URL": self.settings.redis_url,
            "ALMANAC_KAFKA_BOOTSTRAP": self.settings.kafka_bootstrap,
        }
        return {
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "ALMANAC_STATE_DIR": str(self.settings.state_dir),
            "ALMANAC_PIPELINES": self.settings.pipelines,
            "ALMANAC_FEATURE_REPO": self.settings.feature_repo,
            **{name: url for name, url in urls.items() if url},
        }


def make_world(settings: Settings, cells: int, *, trees: int) -> World:
    """Make everything that the benchmarks need but generations and online features.

    Args:
        settings: of a state directory of its own, with the servers' addresses.
        cells: size of the grid.
        trees: of each output.
    """
    from features.store import apply
    from serving_cache.migrate import migrate

    declaration = settings.state_dir / "declaration.py"
    declaration.write_text(DECLARATION.format(cells=cells))
    pipeline = reference_pipeline(cells)
    settings = settings.model_copy(update={"pipelines": str(declaration), "feature_repo": str(FEAST_FOLDER)})
    as_of = floor_hour(utc_now())
    write_features(settings, pipeline, as_of)
    apply(settings)
    version = make_model(settings, pipeline, trees)
    if settings.postgres_url:
        migrate(settings.postgres_url, [pipeline])
    return World(pipeline=pipeline, settings=settings, version=version, as_of=as_of)


def smaller(world: World, cells: int) -> World:
    """A world of fewer cells beside one, with the same model: its features alone, in a folder of its own."""
    if world.grid.cells <= cells:
        return world
    settings = world.settings.model_copy(update={"state_dir": world.settings.state_dir / f"cells-{cells}"})
    pipeline = reference_pipeline(cells)
    write_features(settings, pipeline, world.as_of)
    return replace(world, pipeline=pipeline, settings=settings)


def _field(grid: Grid, first: datetime, last: datetime) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from features.sources.atmosphere import SimulatedAtmosphere

    observed = GridObservations(variable=VALUE, unit="K", valid_range=VALID)
    window = SimulatedAtmosphere(grid, observed, SEED).window(first, last)
    return window.values, window["time"].values


def _latitude(grid: Grid) -> np.ndarray[Any, Any]:
    return (grid.north - np.arange(grid.rows) * grid.step).astype(np.float32)


def write_features(settings: Settings, pipeline: Pipeline, as_of: datetime) -> None:
    """The offline files: each view's last `FEATURE_HOURS` hours, ending at `as_of`, hour by hour."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    grid = pipeline.partitions
    assert isinstance(grid, Grid)  # noqa: S101  reference_pipeline gives it one
    part = replace(grid, rows=min(grid.rows, max(1, FIELD_CELLS_MAX // grid.cols)))
    field, times = _field(part, as_of - (HISTORY_HOURS + FEATURE_HOURS - 1) * HOUR, as_of)
    stamp = pa.timestamp("us", tz="UTC")
    cells = pa.array(np.arange(grid.cells, dtype=np.int64))
    with ExitStack() as stack:
        writers: dict[str, Any] = {}
        for hour in range(HISTORY_HOURS, len(times)):
            columns = columns_at(field, times, hour, _latitude(part))
            moment = as_of - (len(times) - 1 - hour) * HOUR
            for view, names in VIEWS.items():
                static = view == STATIC_VIEW
                if static and view in writers:
                    continue
                at = pa.repeat(pa.scalar(STATIC_SINCE if static else moment, stamp), grid.cells)
                fields = {pipeline.entity: cells, EVENT_TIMESTAMP: at, CREATED_TIMESTAMP: at}
                table = pa.table({**fields, **{name: np.resize(columns[name], grid.cells) for name in names}})
                if view not in writers:
                    path = _file_of(settings, view)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writers[view] = stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
                writers[view].write_table(table, row_group_size=GROUP_ROWS)


def _file_of(settings: Settings, view: str) -> Path:
    folder = view_dir(settings.features_dir, NAME, view)
    return static_file(folder) if view == STATIC_VIEW else folder / "hours.parquet"


def features_at(world: World) -> pa.Table:
    """The feature columns of every cell at the world's `as_of`, as the files have them; in the cells' order."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: dict[str, Any] = {}
    for view, names in VIEWS.items():
        newest = None if view == STATIC_VIEW else pc.field(EVENT_TIMESTAMP) == world.as_of
        table = pq.read_table(_file_of(world.settings, view), columns=list(names), filters=newest)
        found |= {name: table[name].combine_chunks() for name in names}
    return pa.table(found)


def make_model(settings: Settings, pipeline: Pipeline, trees: int) -> ModelVersion:
    """Register the model; its LightGBM texts lie beside its graph, for peers. Learned once, then kept in the cache."""
    files = _model_files(settings.cache_dir / "bench", pipeline, trees)
    return registered(settings, pipeline, files, COLUMNS, rows=TRAIN_ROWS, reference=REFERENCE)


def registered(
    settings: Settings,
    pipeline: Pipeline,
    files: Mapping[str, bytes],
    columns: Sequence[str],
    *,
    rows: int,
    reference: Reference | None = None,
) -> ModelVersion:
    """Register a benchmark's model, and let the pipeline's alias name it.

    Args:
        columns: its inputs.
        rows: that it was trained on.
        reference: what its outputs are differences to, if they are.
    """
    registry = Registry(settings.models_dir)
    span = Window(start=TRAINED_AT - timedelta(days=3), end=TRAINED_AT)
    version = registry.register(
        pipeline.model_name,
        dict(files),
        Description(
            features=pipeline.features,
            inputs=tuple(Input(name=column) for column in columns),
            outputs=pipeline.output_names,
            training=span,
            held_out=span,
            rows=rows,
            seed=1,
            parity=Parity(rows=PARITY_ROWS, difference_max=TOLERANCE, tolerance=TOLERANCE),
            metrics={},
            references={} if reference is None else dict.fromkeys(pipeline.output_names, reference),
            libraries={},
        ),
        now=datetime.now(UTC),
    )
    registry.set_alias(pipeline.model_name, pipeline.model_alias, version.version)
    return version


def _model_files(cache: Path, pipeline: Pipeline, trees: int) -> dict[str, bytes]:
    """The model's files, from the cache if the same code made them."""
    sizes = (HORIZONS, LEAVES, TRAIN_GRID, TRAIN_ROWS, TRAINED_AT, SEED)
    code = "".join([repr(sizes), *(inspect.getsource(part) for part in (_learn, _training_rows, columns_at))])
    folder = cache / f"model-{trees}-{hashlib.blake2b(code.encode(), digest_size=8).hexdigest()}"
    if not folder.is_dir():
        files = _learn(pipeline, trees)
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        for name, data in files.items():
            (draft / name).write_bytes(data)
        with suppress(OSError):  # another run was faster
            draft.rename(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _learn(pipeline: Pipeline, trees: int) -> dict[str, bytes]:
    """Learn, convert, and compare LightGBM with its ONNX graph.

    Raises:
        ModelError: they differ.
    """
    import lightgbm

    from almanac.scoring import Scorer
    from jobs.training.convert import Fitted, Recipe, to_onnx

    inputs, truths = _training_rows(TRAINED_AT)
    recipe = Recipe(inputs=COLUMNS, differences=())
    parameters = {"num_leaves": LEAVES, "learning_rate": 0.05, "num_threads": 1, "seed": 1, "verbosity": -1}
    fitted = []
    for output, truth in zip(pipeline.output_names, truths, strict=True):
        change = truth - inputs[:, 0].astype(np.float64)
        booster = lightgbm.train(parameters, lightgbm.Dataset(inputs, change), num_boost_round=trees)
        fitted.append(Fitted(output=output, booster=booster, reference=REFERENCE))
    graph = to_onnx(recipe, fitted)
    rows = inputs[:PARITY_ROWS]
    ours = Scorer.open(graph, NAME, entity=pipeline.entity).score(dict(zip(COLUMNS, rows.T, strict=True)))
    difference = max(float(np.abs(ours[one.output] - one.predict(recipe, rows)).max()) for one in fitted)
    if difference > TOLERANCE:
        raise ModelError(f"ONNX Runtime and LightGBM differ by {difference} K: look at jobs/training/convert.py")
    texts = {f"model-{one.output}.txt": one.booster.model_to_string().encode() for one in fitted}
    return {MODEL_FILE: graph, **texts}


def _training_rows(last: datetime) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Rows of cells and hours up to `last`: float32 (rows, 30), and the truth of each horizon."""
    span = 24
    field, times = _field(TRAIN_GRID, last - (HISTORY_HOURS + span - 1) * HOUR, last + max(HORIZONS) * HOUR)
    inputs, truths = [], []
    for hour in range(HISTORY_HOURS, HISTORY_HOURS + span):
        columns = columns_at(field, times, hour, _latitude(TRAIN_GRID))
        inputs.append(np.stack([columns[name] for name in COLUMNS], axis=1))
        truths.append(np.stack([field[hour + ahead].ravel() for ahead in HORIZONS], axis=1))
    rows, known = np.concatenate(inputs), np.concatenate(truths)
    chosen = np.random.default_rng(SEED).choice(len(rows), size=min(TRAIN_ROWS, len(rows)), replace=False)
    return rows[chosen], list(known[chosen].T.astype(np.float64))


def trees_of(quick: bool) -> int:
    """How many trees an output has."""
    return TREES_QUICK if quick else TREES
