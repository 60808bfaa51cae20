"""Steps 2 and 4: the gate on inputs before scoring, the gate on predictions before publishing."""

from __future__ import annotations

import logging
from typing import Literal

from almanac.errors import GateError
from almanac.pipeline import Gate, Pipeline
from almanac.settings import Settings
from jobs.gate import PARTITION, GateReport, check
from jobs.lacking import explained
from jobs.members import grouped
from jobs.plan import Plan
from jobs.quarantine import keep
from jobs.row_gates import row_by_row
from jobs.stages import stage

log = logging.getLogger(__name__)

REASONS_SHOWN_MAX = 3
ROWS_AT_ONCE_MAX = 1_000_000
"""Rows after which inputs, or predictions, are checked and let go: some hundred MB. An expectation on a whole table of
inputs sees so many."""


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
    """Check the features of every partition; quarantine those that fail, and carry forward what did not change.

    Raises:
        GateError: too little would be left to publish.
    """
    from jobs.digests import partition_digests
    from jobs.inputs import gathered
    from jobs.listing import list_digests, listed
    from jobs.pieces import rows_at_once
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import Attempt

    attempt = Attempt(pipeline=plan.pipeline, generation=plan.generation, token=plan.token)
    with (
        stage("gate_features", pipeline.name, settings, generation=plan.generation) as record,
        PostgresStore(settings.need("postgres_url")) as store,
    ):
        record.partitions = sum(len(shard) for shard in plan.shards)
        gates = _gates(pipeline, "features")
        failing: dict[int, str] = {}
        reports: dict[int, str] = {}
        unchanged: set[int] = set()
        anew = plan.anew or not plan.is_by_this_code(pipeline)
        items = None if anew else listed(pipeline, settings, plan.moment)
        tables = gathered(pipeline, settings, plan, rows_at_once(pipeline, ROWS_AT_ONCE_MAX))
        while True:
            with record.step("features"):
                about, table = next(tables, ([], None))
            if table is None:
                break
            record.rows += table.num_rows
            with record.step("expectations"):
                found = check(table, gates, entity=pipeline.entity)
                failing |= explained(pipeline, settings, table, found.failing, plan.moment)
                reports |= _kept(pipeline, settings, plan, "features", found)
            with record.step("digests"):
                passed = [partition for partition in about if partition not in failing]
                if not anew:
                    digests = partition_digests(table, passed) if items is None else list_digests(items, table, passed)
                    unchanged.update(store.carry_unchanged(attempt, digests))
        report = GateReport(
            rows=record.rows, expectations=len(gates), failing=failing, unchanged=frozenset(unchanged), reports=reports
        )
        log.info(
            "gated pipeline=%s generation=%d rows=%d quarantined=%d unchanged=%d",
            pipeline.name, plan.generation, report.rows, len(failing), len(unchanged),
        )  # fmt: skip
        return _conclude(pipeline, settings, plan, "features", report)


def gate_predictions(pipeline: Pipeline, settings: Settings, plan: Plan) -> GateReport:
    """Check the staged predictions of every partition; quarantine those that fail.

    Raises:
        GateError: too little would be left to publish.
    """
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import Attempt

    attempt = Attempt(pipeline=plan.pipeline, generation=plan.generation, token=plan.token)
    gates = _gates(pipeline, "predictions")
    failing: dict[int, str] = {}
    reports: dict[int, str] = {}
    with (
        stage("gate_predictions", pipeline.name, settings, generation=plan.generation) as record,
        PostgresStore(settings.need("postgres_url")) as store,
    ):
        sizes = store.staged_sizes(attempt)
        record.rows, record.partitions = sum(sizes.values()), len(sizes)
        most = ROWS_AT_ONCE_MAX if row_by_row(gates) else max(record.rows, 1)
        for about in grouped(list(sizes), list(sizes.values()), most) if gates else ():
            with record.step("postgres"):
                table = store.staged_rows(attempt, None if len(about) == len(sizes) else about)
            names = [PARTITION if name == "partition" else name for name in table.column_names]
            with record.step("expectations"):
                found = check(table.rename_columns(names), gates, entity=pipeline.entity)
                failing |= found.failing
                reports |= _kept(pipeline, settings, plan, "predictions", found)
        report = GateReport(rows=record.rows, expectations=len(gates), failing=failing, reports=reports)
        return _conclude(pipeline, settings, plan, "predictions", report)


def _kept(pipeline: Pipeline, settings: Settings, plan: Plan, what: str, report: GateReport) -> dict[int, str]:
    """Keep what a validation found, if it failed somebody; returns each failing partition's report."""
    if not report.failing:
        return {}
    return dict.fromkeys(report.failing, keep(pipeline, settings, plan, what, report.findings))


def _gates(pipeline: Pipeline, kind: Literal["features", "predictions"]) -> list[Gate]:
    return [gate for gate in pipeline.gates if gate.on == kind]


def _conclude(pipeline: Pipeline, settings: Settings, plan: Plan, what: str, report: GateReport) -> GateReport:
    from serving_cache.postgres import PostgresStore
    from serving_cache.records import Attempt

    attempt = Attempt(pipeline=plan.pipeline, generation=plan.generation, token=plan.token)
    with PostgresStore(settings.need("postgres_url")) as store:
        for partition, reason in report.failing.items():
            log.warning("quarantined pipeline=%s partition=%d reason=%s", pipeline.name, partition, reason)
            place = report.reports.get(partition, "")
            store.quarantine(attempt, partition, reason, report=place)
    check_coverage(pipeline, report.failing, what)
    return report
