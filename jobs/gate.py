"""Gates: Great Expectations over features before scoring, and over predictions before publishing.

One validation covers many partitions, because a validation costs about 0.1 s
however few its rows are; the rows that fail are mapped back to their
partitions, and only those are quarantined. An expectation about the table as a
whole (a row count, say) names no rows: when it fails, the gate refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from almanac.errors import DeclarationError, GateError
from almanac.pipeline import Gate
from jobs.expectations import expectation, validate
from jobs.inputs import PARTITION as PARTITION
from jobs.quarantine import Finding

if TYPE_CHECKING:
    import pyarrow as pa

ENTITIES_SHOWN_MAX = 3
OF_COLUMNS = ("expect_column_values_", "expect_column_value_", "expect_column_pair_")
"""Expectations that look at the columns of `COLUMN_ARGUMENTS` and at no others."""
COLUMN_ARGUMENTS = ("column", "column_A", "column_B")


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """What a gate found.

    Attributes:
        rows: how many rows were looked at.
        expectations: how many expectations were checked.
        failing: partition -> the reason it is to be quarantined.
        unchanged: partitions that the current generation has of the same inputs, model and code.
        findings: the expectations that failed, with the rows of each partition.
        reports: partition -> where a person finds what was found, below the state directory.
    """

    rows: int
    expectations: int
    failing: dict[int, str] = field(default_factory=dict)
    unchanged: frozenset[int] = frozenset()
    findings: tuple[Finding, ...] = ()
    reports: dict[int, str] = field(default_factory=dict)

    @property
    def settled(self) -> frozenset[int]:
        """Partitions that are not to be scored."""
        return self.unchanged | self.failing.keys()


def check(table: pa.Table, gates: Sequence[Gate], *, entity: str) -> GateReport:
    """Check a table that has a `_partition` column against some gates.

    Args:
        table: the entity column, `_partition`, and the columns the gates name.
        gates: those of one kind (`features` or `predictions`).
        entity: name of the entity column, for the reasons.

    Raises:
        DeclarationError: a gate names an unknown expectation, argument or column.
        GateError: an expectation about the whole table failed.
    """
    if not gates or not table.num_rows:
        return GateReport(rows=table.num_rows, expectations=0)
    failing: dict[int, str] = {}
    findings: list[Finding] = []
    for outcome in _validate(table, gates, entity):
        if outcome.success:
            continue
        config = outcome.expectation_config
        what = f"{config.type}({_arguments(config.kwargs)})"
        raised = _exception_of(outcome.exception_info)
        if raised:
            raise DeclarationError(f"gate {what} could not be evaluated ({raised}): correct the declaration's gates")
        rows = outcome.result.get("unexpected_index_list") or []
        if not rows:
            raise GateError(f"gate {what} failed on the whole table: {outcome.result.get('observed_value')}")
        by_partition: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            shown = {name: _plain(value) for name, value in row.items() if name != PARTITION}
            by_partition.setdefault(int(row[PARTITION]), []).append(shown)
        result = {name: value for name, value in outcome.result.items() if not isinstance(value, list)}
        result.pop("unexpected_index_query", None)
        findings.append(Finding(expectation=what, result=result, rows=by_partition))
        for partition, bad in by_partition.items():
            failing.setdefault(partition, _reason(what, bad, entity, str(config.kwargs.get("column"))))
    return GateReport(rows=table.num_rows, expectations=len(gates), failing=failing, findings=tuple(findings))


def _plain(value: Any) -> Any:
    """A value as JSON has it: no NumPy types; what is not finite as text."""
    found = value.item() if hasattr(value, "item") else value
    return str(found) if isinstance(found, float) and not math.isfinite(found) else found


def _reason(what: str, bad: list[dict[str, Any]], entity: str, column: str) -> str:
    shown = ", ".join(f"{entity} {row[entity]} ({row.get(column)})" for row in bad[:ENTITIES_SHOWN_MAX])
    more = f" and {len(bad) - ENTITIES_SHOWN_MAX} more" if len(bad) > ENTITIES_SHOWN_MAX else ""
    return f"{what} failed for {shown}{more}"


def _arguments(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in kwargs.items() if name != "batch_id")


def _exception_of(info: dict[str, Any]) -> str | None:
    for entry in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if entry.get("raised_exception"):
            return str(entry.get("exception_message")).strip().splitlines()[0]
    return None


def _validate(table: pa.Table, gates: Sequence[Gate], entity: str) -> list[Any]:
    expectations = []
    for gate in gates:
        try:
            expectations.append(expectation(gate.expectation, gate.kwargs))
        except Exception as error:  # noqa: BLE001  GX raises its own and pydantic's errors, with no common base
            first = str(error).strip().splitlines()[0]
            raise DeclarationError(
                f"gate {gate.expectation}({_arguments(dict(gate.kwargs))}) is not one of Great Expectations' "
                f"({first}): correct its name or arguments"
            ) from None
    detail = {"result_format": "COMPLETE", "unexpected_index_column_names": [PARTITION, entity]}
    return validate(_looked_at(table, gates, entity), expectations, detail)


def _looked_at(table: pa.Table, gates: Sequence[Gate], entity: str) -> pa.Table:
    """The columns that the gates name: making a data frame of the others would cost more than looking at these.

    Single precision becomes double: Great Expectations takes anything else a value at a time.
    """
    import pyarrow as pa

    named = {str(gate.kwargs.get(name)) for gate in gates for name in COLUMN_ARGUMENTS}
    if all(gate.expectation.startswith(OF_COLUMNS) and "row_condition" not in gate.kwargs for gate in gates):
        table = table.select([name for name in table.column_names if name in named | {PARTITION, entity}])
    fields = [field.with_type(pa.float64()) if field.type == pa.float32() else field for field in table.schema]
    return table.cast(pa.schema(fields))
