"""What a run would do, partition by partition, and why; nothing is run and nothing is written.

The order of the reasons is that of the run: what is not there yet, what was
refused before, another model, other code, and last the inputs. Features are
read only if the files that they lie in have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from almanac.clock import format_time
from almanac.pipeline import Pipeline
from almanac.registry import Registry
from almanac.settings import Settings
from jobs.costs import STAGES_LOOKED_AT_MAX, measured
from jobs.digests import code_digest, partition_digests
from jobs.plan import Plan, check_cutoff, check_watermark
from jobs.row_gates import row_by_row
from jobs.shards import cut, rows_of_grid

if TYPE_CHECKING:
    from serving_cache.records import Basis, GenerationRecord

UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True)
class PartitionPlan:
    """What would become of one partition.

    Attributes:
        action: `score`, or `carry` (forward by reference).
        rows: that it would have.
    """

    partition: int
    label: str
    action: Literal["score", "carry"]
    reason: str
    rows: int | None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a run as of a cutoff would do.

    Attributes:
        scored: share of the rows that would be scored, if as many entities change as for the newest run.
        seconds: estimate of the stages' time, Airflow's own apart; None before a first run has been measured.
    """

    pipeline: str
    cutoff: datetime
    as_of: datetime
    model: str
    current: int | None
    partitions: tuple[PartitionPlan, ...]
    shards: int
    rows: int
    seconds: float | None
    scored: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Now:
    """What a run would score with now.

    Attributes:
        source: digest of what the features are read from; empty if it cannot be told.
        whole: whether a gate is about the whole table, which must then be scored whole.
    """

    model: str
    model_hash: str
    code: str
    source: str
    outputs: tuple[str, ...]
    partitioning: str
    whole: bool = False


def preview(pipeline: Pipeline, settings: Settings, *, cutoff: datetime, now: datetime) -> Preview:
    """What a run as of the cutoff would do.

    Raises:
        UsageError: the cutoff lies in the future, or the partitioning changed and nobody has agreed to that.
        DataError, ModelError, UnknownModel: the run would fail with the same.
        Unavailable: a server does not answer.
    """
    from features.identity import source_digest
    from serving_cache.postgres import PostgresStore

    moment = check_cutoff(cutoff, now)
    version = Registry(settings.models_dir).resolve(pipeline.model)
    as_of = watermark(pipeline, settings, moment)
    check_watermark(pipeline, moment, as_of)
    with PostgresStore(settings.need("postgres_url")) as store:
        store.need_same_partitioning(pipeline)
        pointer = store.pointer(pipeline.name)
        source, basis = store.basis(pipeline.name)
        costs = measured(store.recent_stages(pipeline.name, STAGES_LOOKED_AT_MAX))
    current = None if pointer is None else pointer.generation
    here = Now(
        model=version.id,
        model_hash=version.hash,
        code=code_digest(pipeline),
        source=source_digest(pipeline, settings, as_of, moment),
        outputs=pipeline.stored_columns,
        partitioning=repr(pipeline.partitions),
        whole=not row_by_row(pipeline.gates),
    )
    reasons = {
        partition: reason_of(basis.get(partition), here, current, as_of, source)
        for partition in range(pipeline.partitions.count)
    }
    asked = [partition for partition, reason in reasons.items() if reason is None]
    reasons |= _by_features(pipeline, settings, (moment, as_of, version.id), asked, basis, current)
    run = _plan_of(pipeline, moment, as_of, version.id)
    rows = rows_of_grid(pipeline.partitions) or _counted(pipeline, settings, run, reasons, basis)
    plans = tuple(
        PartitionPlan(
            partition=partition,
            label=pipeline.partitions.label(partition),
            action="carry" if reason == UNCHANGED else "score",
            reason=str(reason),
            rows=rows.get(partition),
        )
        for partition, reason in sorted(reasons.items())
    )
    scored = [plan.partition for plan in plans if plan.action == "score"]
    count = rows_in(scored, rows)
    shards = len(cut(pipeline, scored, costs, rows))
    return Preview(
        pipeline=pipeline.name,
        cutoff=moment,
        as_of=as_of,
        model=version.id,
        current=None if current is None else current.generation,
        partitions=plans,
        shards=shards,
        rows=count,
        scored=1.0 if costs is None or not pipeline.changed_only else costs.scored,
        seconds=None if costs is None else costs.seconds(count, shards),
    )


def _plan_of(pipeline: Pipeline, cutoff: datetime, as_of: datetime, model: str, *shards: list[int]) -> Plan:
    """The run as what reads its inputs knows it; there is no such generation."""
    return Plan(
        pipeline=pipeline.name,
        generation=0,
        token=0,
        cutoff=format_time(cutoff),
        as_of=format_time(as_of),
        model=model,
        shards=list(shards),
    )


def _counted(
    pipeline: Pipeline, settings: Settings, plan: Plan, reasons: Mapping[int, str | None], basis: Mapping[int, Basis]
) -> dict[int, int]:
    """Rows of each partition: as the views know its entities now, where it would be scored.

    Raises:
        FeatureError: a key in the views' files cannot be an entity's.
    """
    from jobs.members import Members

    members = Members(pipeline, settings, plan)
    return {
        partition: basis[partition].rows if reason == UNCHANGED else members.count([partition])
        for partition, reason in reasons.items()
    }


def watermark(pipeline: Pipeline, settings: Settings, cutoff: datetime) -> datetime:
    """as_of of a run as of the cutoff; nothing is brought up to date for it."""
    from features.ingest import reach

    return reach(pipeline, settings, cutoff)


def rows_in(partitions: list[int], rows: Mapping[int, int]) -> int:
    """Rows of some partitions; one that is not known counts as the mean of the others."""
    usual = sum(rows.values()) / len(rows) if rows else 0.0
    return round(sum(rows.get(partition, usual) for partition in partitions))


def reason_of(
    was: Basis | None, here: Now, current: GenerationRecord | None, as_of: datetime, source: str
) -> str | None:
    """Why a partition would be scored, or `UNCHANGED`; None if its features must be looked at.

    Args:
        was: what the current generation has of it.
        source: digest of what the current generation's features were read from.
    """
    if current is None or was is None:
        return "new: nothing is published yet" if current is None else "new: the current generation does not have it"
    if as_of < current.as_of:
        return f"new: a generation of the past, the current one is as of {format_time(current.as_of)}"
    if here.whole:
        return "all is scored: a gate is about the whole table"
    if was.reason:
        return f"not scored before: {was.reason}"
    if was.model_hash != here.model_hash:
        return f"model changed: {was.model} -> {here.model}"
    if was.partitioning != here.partitioning or was.outputs != here.outputs:
        return "code changed: another partitioning or other outputs"
    if was.code_digest != here.code:
        return "code changed: what reads, scores or judges, a library, or the declaration"
    if not was.kept:
        return f"rows are brought together: few partitions are left of generation {was.origin}"
    if not was.input_digest:
        return "inputs not known: scored before digests were kept"
    return UNCHANGED if source and source == here.source else None


def _by_features(
    pipeline: Pipeline,
    settings: Settings,
    run: tuple[datetime, datetime, str],
    asked: list[int],
    basis: Mapping[int, Basis],
    current: GenerationRecord | None,
) -> dict[int, str]:
    """The reasons of partitions whose features must be compared."""
    from jobs.inputs import fetch
    from jobs.listing import list_digests, listed

    cutoff, as_of, model = run
    if not asked or current is None:
        return {}
    if pipeline.source is not None and as_of != current.as_of:
        return dict.fromkeys(
            asked, f"inputs changed: observations of {format_time(as_of)} after {format_time(current.as_of)}"
        )
    found: dict[int, str] = {}
    items = listed(pipeline, settings, as_of)
    for shard in cut(pipeline, asked):
        plan = _plan_of(pipeline, cutoff, as_of, model, shard)
        table = fetch(pipeline, settings, plan, shard)
        digests = partition_digests(table, shard) if items is None else list_digests(items, table, shard)
        for partition, digest in digests.items():
            same = digest == basis[partition].input_digest
            found[partition] = UNCHANGED if same else "inputs changed: other features than the current generation's"
    return found
