"""Step 3: score the partitions of one shard and stage them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from almanac.pipeline import Pipeline
from almanac.registry import ModelVersion, Registry
from almanac.settings import Settings
from jobs.changed import Maker, Past, changed, whole
from jobs.lacking import explained, hollow_rows
from jobs.listing import listed
from jobs.models import scorer_of
from jobs.pieces import pieces_of
from jobs.plan import Plan
from jobs.quarantine import keep
from jobs.stages import Stage, stage
from jobs.writing import Writer

if TYPE_CHECKING:
    import pyarrow as pa

    from serving_cache.records import StagedPartition

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 50_000
"""Rows of a shard that are scored, and then staged, together: what bounds its memory."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What scoring a shard came to: partitions staged now, staged before, and quarantined.

    Attributes:
        rows: predictions that were made, those included that stayed as they were.
        unchanged: of the rows those that were not scored, for their inputs were as before.
    """

    staged: int
    skipped: int
    quarantined: dict[int, str]
    rows: int
    unchanged: int = 0


def planned_version(settings: Settings, plan: Plan) -> ModelVersion:
    """The version the plan named, though the alias may have moved since, or the declaration name another model."""
    name, _, number = plan.model.rpartition("-v")
    return Registry(settings.models_dir).resolve(f"{name}@{number}")


def score_shard(pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int]) -> ShardResult:
    """Score what of a shard is not staged yet: Feast features, ONNX Runtime, Postgres, Redis.

    A partition with a missing feature or a prediction that is not a number is
    quarantined; the others go on. A retry scores only the rest.

    Raises:
        Superseded: another attempt of this run has taken over.
        Unavailable: a server did not answer; nothing is half-written, retry.
    """
    first = partitions[0] if partitions else None
    with stage("score", pipeline.name, settings, generation=plan.generation, shard=first) as record:
        return _score_shard(pipeline, settings, plan, partitions, record)


def _score_shard(
    pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int], record: Stage
) -> ShardResult:
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import Attempt

    attempt = Attempt(pipeline=plan.pipeline, generation=plan.generation, token=plan.token)
    with PostgresStore(settings.need("postgres_url")) as store:
        todo = store.pending(attempt, list(partitions))
    if not todo:
        return ShardResult(staged=0, skipped=len(partitions), quarantined={}, rows=0)
    with record.step("model"):
        scorer = scorer_of(planned_version(settings, plan), pipeline)
        maker = Maker(pipeline, plan, scorer, listed(pipeline, settings, plan.moment))
    known_code = plan.is_by_this_code(pipeline)
    quarantined: dict[int, str] = {}
    staged = rows = 0
    tables = pieces_of(pipeline, settings, plan, todo, ROWS_AT_ONCE)
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(pipeline, settings, attempt, record))
        only_changed = pipeline.changed_only and known_code
        past = stack.enter_context(Past(pipeline, settings, attempt)) if only_changed else None
        while True:
            with record.step("features"):
                about, table = next(tables, ([], None))
            if table is None:
                break
            with record.step("score"):
                refused: dict[int, str] = {}
                piece = (about, table)
                done = whole(maker, piece, refused) if past is None else changed(maker, piece, past, refused)
                refused = explained(pipeline, settings, table, refused, plan.moment)
                report = _report(pipeline, settings, plan, maker, table, refused) if refused else ""
            quarantined |= refused
            rows += done.rows
            record.unchanged += done.unchanged
            with record.step("waiting"):
                staged += writer.put(done.ready if known_code else _without_digests(done.ready), refused, report)
        with record.step("waiting"):
            staged += writer.finish()
    record.partitions, record.rows = staged, rows
    log.info(
        "scored pipeline=%s generation=%d partitions=%d quarantined=%d rows=%d unchanged=%d",
        pipeline.name,
        plan.generation,
        staged,
        len(quarantined),
        rows,
        record.unchanged,
    )
    return ShardResult(
        staged=staged,
        skipped=len(partitions) - len(todo),
        quarantined=quarantined,
        rows=rows,
        unchanged=record.unchanged,
    )


def _report(
    pipeline: Pipeline, settings: Settings, plan: Plan, maker: Maker, table: pa.Table, refused: dict[int, str]
) -> str:
    """Keep the rows that cannot be scored where a person can open them; returns the place, empty if there are none."""
    found = hollow_rows(pipeline, table, maker.inputs(table).column_names, refused)
    return keep(pipeline, settings, plan, "inputs", found) if found else ""


def _without_digests(ready: list[StagedPartition]) -> list[StagedPartition]:
    """Partitions of which no later run says that they are unchanged."""
    return [replace(part, input_digest="", entity_digests=b"") for part in ready]
