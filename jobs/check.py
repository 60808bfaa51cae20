"""Steps 2 and 4: the gate on inputs before scoring, the gate on predictions before publishing."""

from __future__ import annotations

import logging
from typing import Literal

from almanac.errors import GateError
from almanac.pipeline import Gate, Pipeline
from almanac.settings import Settings
from jobs.gate import PARTITION, GateReport, check
from jobs.plan import Plan
from jobs.stages import stage

log = logging.getLogger(__name__)

REASONS_SHOWN_MAX = 3


def check_coverage(pipeline: Pipeline, failing: dict[int, str], what: str) -> None:
    """Refuse when so many partitions fail that the generation could not reach its coverage.

    Raises:
        GateError: names the share left, the share needed and the first reasons.
    """
    total = pipeline.partitions.count
    left = (total - len(failing)) / total
    if left >= pipeline.coverage_min:
        return
    shown = "; ".join(
        f"{pipeline.partitions.label(partition)}: {reason}"
        for partition, reason in list(failing.items())[:REASONS_SHOWN_MAX]
    )
    raise GateError(
        f"gate on {what} of {pipeline.name}: {len(failing)} of {total} partitions fail, {left:.0%} left, "
        f"{pipeline.coverage_min:.0%} needed ({shown}): mend the input and run again; the current generation stays"
    )


def gate_features(pipeline: Pipeline, settings: Settings, plan: Plan) -> GateReport:
    """Check the features of every partition; quarantine those that fail.

    Raises:
        GateError: too little would be left to publish.
    """
    from jobs.score import features_of

    partitions = [partition for shard in plan.shards for partition in shard]
    with stage("gate_features", pipeline.name, settings, generation=plan.generation) as record:
        record.partitions = len(partitions)
        with record.step("features"):
            table = features_of(pipeline, settings, plan, partitions)
        record.rows = table.num_rows
        with record.step("expectations"):
            report = check(table, _gates(pipeline, "features"), entity=pipeline.entity)
        return _conclude(pipeline, settings, plan, "features", report)


def gate_predictions(pipeline: Pipeline, settings: Settings, plan: Plan) -> GateReport:
    """Check the staged predictions of every partition; quarantine those that fail.

    Raises:
        GateError: too little would be left to publish.
    """
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import Attempt

    attempt = Attempt(pipeline=plan.pipeline, generation=plan.generation, token=plan.token)
    with stage("gate_predictions", pipeline.name, settings, generation=plan.generation) as record:
        with record.step("postgres"), PostgresStore(settings.need("postgres_url")) as store:
            table = store.staged_rows(attempt)
        record.rows = table.num_rows
        names = [PARTITION if name == "partition" else name for name in table.column_names]
        with record.step("expectations"):
            report = check(table.rename_columns(names), _gates(pipeline, "predictions"), entity=pipeline.entity)
        return _conclude(pipeline, settings, plan, "predictions", report)


def _gates(pipeline: Pipeline, kind: Literal["features", "predictions"]) -> list[Gate]:
    return [gate for gate in pipeline.gates if gate.on == kind]


def _conclude(pipeline: Pipeline, settings: Settings, plan: Plan, what: str, report: GateReport) -> GateReport:
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import Attempt

    attempt = Attempt(pipeline=plan.pipeline, generation=plan.generation, token=plan.token)
    with PostgresStore(settings.need("postgres_url")) as store:
        for partition, reason in report.failing.items():
            log.warning("quarantined pipeline=%s partition=%d reason=%s", pipeline.name, partition, reason)
            store.quarantine(attempt, partition, reason)
    check_coverage(pipeline, report.failing, what)
    return report
