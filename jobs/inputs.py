"""What a shard is scored from: its entities, and their features as of the run.

The gate on inputs and the scoring look at the same features. The gate fetches
them, several shards at a time, and keeps each shard's table as an Arrow file
below `<state_dir>/runs/`; the scoring reads it from there, and fetches only
what was not kept. The files of a run go with its `clean_up`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from almanac.errors import FeatureError, Unavailable
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline
from almanac.settings import RUNS, Settings
from jobs.digests import PARTITION as PARTITION
from jobs.digests import code_digest
from jobs.members import Members, grouped
from jobs.plan import Plan

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

KEPT_BYTES_MAX = 2 * 1024**3
"""Size of what one run keeps, in bytes; the shards beyond it are fetched twice."""
LEFT_SECONDS_MAX = 2 * 86_400
"""Age at which what a killed run left behind is removed."""


def some_entities(pipeline: Pipeline, settings: Settings, as_of: datetime, most: int) -> list[Any]:
    """Some entities, spread over the grid or the first that the views know at `as_of`."""
    from features.tables import entities, tables_of

    if isinstance(pipeline.partitions, Grid):
        cells = pipeline.partitions.cells
        return [int(cell) for cell in np.unique(np.linspace(0, cells - 1, min(most, cells)).astype(np.int64))]
    return next(entities(tables_of(pipeline, settings), pipeline, as_of), [])[:most]


def fetch(
    pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int], members: Members | None = None
) -> pa.Table:
    """Features of every entity of some partitions as of the plan's `as_of`, or of its newest event up to the cutoff.

    Args:
        members: of the run, where it asks several times.

    Returns:
        The entity column, `_partition`, and the FeatureService's columns; in partition order, entities ascending
        within each. Missing features are null. Without any entity, the entity column and `_partition` alone.

    Raises:
        FeatureError: features are missing, or their views were changed since the run was planned.
    """
    from almanac.clock import parse_time
    from features.recent import known_at
    from features.store import one_look

    with one_look():
        check_definitions(pipeline, settings, plan)
        asked = (members or Members(pipeline, settings, plan)).of(partitions)
        if not asked.num_rows:
            return asked
        found = known_at(pipeline, settings, asked.drop_columns([PARTITION]), plan.moment, parse_time(plan.cutoff))
    return found.append_column(PARTITION, asked[PARTITION])


def check_definitions(pipeline: Pipeline, settings: Settings, plan: Plan) -> None:
    """Refuse to mix features of two definitions in one generation.

    Raises:
        FeatureError: the feature views were changed since the run was planned.
    """
    from features.identity import definitions_digest

    if plan.definitions and definitions_digest(pipeline, settings) != plan.definitions:
        raise FeatureError(
            f"the feature views of {pipeline.features} were changed since generation {plan.generation} was planned: "
            "nothing was written; clear the run from plan, so that all of it has the new definitions"
        )


def kept_of(pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int]) -> pa.Table | None:
    """What the gate kept of the shard that has these partitions, mapped into memory; None if it did not."""
    shard = next((shard for shard in plan.shards if set(partitions) <= set(shard)), None)
    return None if shard is None else _read(_file(settings, pipeline, plan, shard))


def gathered(pipeline: Pipeline, settings: Settings, plan: Plan, rows_max: int) -> Iterator[tuple[list[int], pa.Table]]:
    """The features of all partitions, some shards at a time; each shard's are kept for the scoring.

    Args:
        rows_max: of a table; one of more comes of a shard that is larger by itself.

    Returns:
        The partitions that a table is about, and the table; without rows if nobody falls into them.
    """
    remove_leftovers(settings, pipeline.name)
    members = Members(pipeline, settings, plan)
    # One retrieval for as many shards as have room: reading a view's files costs the same for one as for all.
    for shards in grouped(plan.shards, [members.count(shard) for shard in plan.shards], rows_max):
        about = [part for shard in shards for part in shard]
        table = fetch(pipeline, settings, plan, about, members)
        for shard, piece in zip(shards, _pieces(table, shards), strict=True):
            _keep(_file(settings, pipeline, plan, shard), piece)
        yield about, table


def _pieces(table: pa.Table, shards: Sequence[Sequence[int]]) -> list[pa.Table]:
    """Each shard's rows of a table that has the shards one after the other."""
    sizes = np.bincount(table[PARTITION].to_numpy(), minlength=1 + max(max(shard, default=0) for shard in shards))
    pieces, start = [], 0
    for shard in shards:
        rows = int(sizes[list(shard)].sum())
        pieces.append(table.slice(start, rows))
        start += rows
    return pieces


def forget(settings: Settings, plan: Plan) -> None:
    """Remove what a run kept, of all its attempts."""
    for folder in _runs(settings, plan.pipeline).glob(f"g{plan.generation}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(settings: Settings, pipeline: str) -> None:
    """Remove what runs that were killed have left, once it is old."""
    for folder in _runs(settings, pipeline).glob("g*-*"):
        try:
            old = time.time() - folder.stat().st_mtime > LEFT_SECONDS_MAX
        except OSError:  # gone in between
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)


def _runs(settings: Settings, pipeline: str) -> Path:
    return settings.state_dir / RUNS / pipeline


def _file(settings: Settings, pipeline: Pipeline, plan: Plan, shard: Sequence[int]) -> Path:
    """Where one attempt keeps one shard; the name is a hash of everything that was asked for, and of the code."""
    asked = json.dumps([_boot(), code_digest(pipeline), plan.definitions, plan.cutoff, plan.as_of, list(shard)])
    name = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    return _runs(settings, plan.pipeline) / f"g{plan.generation}-{plan.token}" / f"{name}.arrow"


@cache
def _boot() -> str:
    """A name of the time since the machine was started; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _keep(path: Path, table: pa.Table) -> None:
    """Write a shard's table, whole or not at all; without room for it the scoring fetches it again."""
    import pyarrow as pa

    from features.files import replacing

    try:
        taken = sum(file.stat().st_size for file in path.parent.glob("*.arrow")) if path.parent.is_dir() else 0
        if taken + table.nbytes > KEPT_BYTES_MAX:
            log.info("features of %d rows are not kept: the run keeps %d bytes already", table.num_rows, taken)
            return
        with replacing(path, lasting=not _boot()) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)
    except (OSError, Unavailable) as error:
        log.warning("features are not kept (%s): the scoring fetches them again", error)


def _read(path: Path) -> pa.Table | None:
    """What was kept; None if it is not there, or damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException):
        return None
