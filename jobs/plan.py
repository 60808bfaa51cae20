"""Step 1 of a batch run: bring the features up to date, pick the model, open a generation, cut shards."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from almanac.clock import format_time, need_utc, parse_time
from almanac.errors import DataError, ModelError, UsageError
from almanac.pipeline import Pipeline
from almanac.registry import Registry
from almanac.settings import Settings
from jobs.costs import STAGES_LOOKED_AT_MAX, measured
from jobs.models import scorer_of
from jobs.row_gates import row_by_row
from jobs.shards import cut, rows_of_grid
from jobs.stages import Stage, stage

log = logging.getLogger(__name__)

FEATURE_WINDOW = timedelta(hours=3)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one batch run is about; small and JSON, so that it can travel between tasks.

    Attributes:
        pipeline, generation, token: the attempt that holds the fencing token.
        cutoff: no observation after this moment is used.
        as_of: the newest observation at or before the cutoff.
        model: id of the model version, such as `bikes-v3`.
        shards: the partitions of each task; what is done already, or unchanged, is in none.
        unchanged: partitions carried forward because nothing of what they are made from has changed.
        anew: whether all others are scored, though they may turn out unchanged.
        definitions: digest of the feature views that the run was planned with; empty in plans of before.
        code: digest of the code and the declaration that it was planned with; empty in plans of before.
    """

    pipeline: str
    generation: int
    token: int
    cutoff: str
    as_of: str
    model: str
    shards: list[list[int]]
    unchanged: int = 0
    anew: bool = False
    definitions: str = ""
    code: str = ""

    @property
    def moment(self) -> datetime:
        """`as_of` as a time."""
        return parse_time(self.as_of)

    def is_by_this_code(self, pipeline: Pipeline) -> bool:
        """Whether this process has the code and the declaration that the run was planned with; says so if not.

        What other code scores must not be carried forward as the work of the planned one.
        """
        from jobs.digests import code_digest

        same = self.code == code_digest(pipeline)
        if not same:
            log.warning(
                "code or declaration of pipeline=%s changed since generation=%d was planned: what this task scores is "
                "kept by no later run as unchanged", self.pipeline, self.generation,
            )  # fmt: skip
        return same

    def shards_without(self, partitions: Collection[int]) -> list[list[int]]:
        """The shards that remain when some partitions are left out; empty ones are dropped."""
        kept = [[partition for partition in shard if partition not in partitions] for shard in self.shards]
        return [shard for shard in kept if shard]

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        return cls(**value)


def check_cutoff(cutoff: datetime, now: datetime) -> datetime:
    """Return the cutoff in UTC; a run for the future cannot be right.

    Raises:
        UsageError: the cutoff lies ahead of now.
    """
    moment = need_utc(cutoff)
    if moment > now:
        raise UsageError(
            f"a run as of {format_time(moment)} lies in the future (now {format_time(now)}): give a past partition key"
        )
    return moment


def check_watermark(pipeline: Pipeline, cutoff: datetime, as_of: datetime) -> None:
    """Refuse a generation that would be expired at the moment it speaks of.

    Raises:
        DataError: the newest observation is older than `usable_for` at the cutoff.
    """
    behind = cutoff - as_of
    if behind > pipeline.freshness.usable_for:
        raise DataError(
            f"the newest observation of {pipeline.name} at {format_time(cutoff)} is from {format_time(as_of)}, "
            f"longer ago than usable_for ({pipeline.freshness.usable_for}): bring the source up to date"
        )


def check_columns(pipeline: Pipeline, known: Collection[str], inputs: Sequence[str], what: str) -> None:
    """Refuse a model that reads what the pipeline's FeatureService does not have.

    Raises:
        ModelError: names the columns and what there is.
    """
    foreign = [name for name in inputs if name not in known]
    if foreign or len(set(inputs)) != len(inputs):
        raise ModelError(
            f"{what} reads {', '.join(foreign) or 'a column twice'}, which FeatureService {pipeline.features} does not "
            f"have (it has {', '.join(known)}): train on these features, or add the others to the service"
        )


def plan(
    pipeline: Pipeline,
    settings: Settings,
    *,
    run_key: str,
    cutoff: datetime,
    now: datetime,
    backfill: bool = False,
    anew: bool = False,
) -> Plan:
    """Open (or resume) the generation of one run.

    Args:
        run_key: names the run; the same key again resumes its unfinished generation.
        cutoff: the run's partition date, or its trigger time where it has none.
        backfill: made for the past: archived when it is published, whatever readers have.
        anew: score everything, what did not change too.

    Raises:
        UsageError: the cutoff lies in the future.
        DataError: the source has nothing recent enough before the cutoff.
        ModelError, UnknownModel: the declared model cannot be used.
    """
    with stage("plan", pipeline.name, settings) as record:
        run = _Run(key=run_key, cutoff=check_cutoff(cutoff, now), backfill=backfill, anew=anew)
        return _plan(pipeline, settings, record, run, now)


@dataclass(frozen=True, kw_only=True)
class _Run:
    key: str
    cutoff: datetime
    backfill: bool
    anew: bool


def _plan(pipeline: Pipeline, settings: Settings, record: Stage, run: _Run, now: datetime) -> Plan:
    from features.identity import definitions_digest, source_digest
    from features.ingest import refresh
    from features.store import one_look, service_columns
    from jobs.digests import code_digest
    from jobs.listing import listed
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import GenerationStart

    code = code_digest(pipeline)
    version = Registry(settings.models_dir).resolve(pipeline.model)
    scorer = scorer_of(version, pipeline)  # a model that does not fit stops the run before anything is written
    with record.step("features"), one_look():
        ingested = refresh(pipeline, settings, run.cutoff, window=FEATURE_WINDOW)
        if pipeline.source is None and pipeline.ranking is None:
            check_columns(pipeline, service_columns(pipeline, settings), scorer.inputs, f"model {version.id}")
        definitions = definitions_digest(pipeline, settings)
        source = source_digest(pipeline, settings, ingested.as_of, run.cutoff)
        items = listed(pipeline, settings, ingested.as_of)
    check_watermark(pipeline, run.cutoff, ingested.as_of)
    every = list(range(pipeline.partitions.count))
    start = GenerationStart(
        run_key=run.key,
        cutoff=run.cutoff,
        as_of=ingested.as_of,
        model=version.id,
        model_hash=version.hash,
        clock_shift=ingested.clock_shift,
        partitions=tuple(every),
        code_digest=code,
        source_digest=source,
        backfill=run.backfill,
        default_list=items.default() if items is not None and pipeline.default is not None else None,
    )
    with PostgresStore(settings.need("postgres_url")) as store:
        attempt = store.begin_generation(pipeline, start, now=now)
        # A gate on the whole table must see all of it.
        whole = not row_by_row(pipeline.gates)
        anew = run.anew or whole
        unchanged = [] if anew else store.carry_unchanged(attempt)
        rows = rows_of_grid(pipeline.partitions) or {
            part: was.rows for part, was in store.basis(pipeline.name)[1].items()
        }
        left = every if whole else store.pending(attempt, every)
        shards = cut(pipeline, left, measured(store.recent_stages(pipeline.name, STAGES_LOOKED_AT_MAX)), rows)
    record.generation, record.partitions = attempt.generation, sum(map(len, shards))
    log.info(
        "planned pipeline=%s generation=%d as_of=%s model=%s shards=%d unchanged=%d",
        pipeline.name, attempt.generation, format_time(ingested.as_of), version.id, len(shards), len(unchanged),
    )  # fmt: skip
    return Plan(
        pipeline=pipeline.name,
        generation=attempt.generation,
        token=attempt.token,
        cutoff=format_time(run.cutoff),
        as_of=format_time(ingested.as_of),
        model=version.id,
        shards=shards,
        unchanged=len(unchanged),
        anew=anew,
        definitions=definitions,
        code=code,
    )
