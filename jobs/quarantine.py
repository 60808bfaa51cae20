"""What a gate or the scoring found wrong, kept where a person can open it.

    <state_dir>/quarantine/<pipeline>/g<generation>-<token>-<what>-<first partition>.html, and .json

One pair of files for each validation or piece of a shard that failed some partition: the page
needs nothing from elsewhere, the JSON has Great Expectations' own results. The
ledger's reason, the task's log and so the answers' reason name the page. Files
go after `KEPT_DAYS`, or when there are more than `FILES_MAX`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from almanac.errors import Unavailable
from almanac.pipeline import Pipeline
from almanac.settings import QUARANTINE, Settings
from jobs.plan import Plan

log = logging.getLogger(__name__)

KEPT_DAYS = 30
FILES_MAX = 500
ROWS_SHOWN_MAX = 50
"""Rows of one partition that a report shows; it says how many there are."""

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #ccc;padding:.2rem .6rem;"
    "text-align:left;vertical-align:top}th{background:#f4f4f4}code{background:#f4f4f4;padding:0 .2rem}"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One expectation that failed.

    Args:
        expectation: with its arguments.
        result: Great Expectations' own, without its lists of rows.
        rows: partition to its failing rows: the entity, and the value where the expectation is about a column.
    """

    expectation: str
    result: Mapping[str, Any]
    rows: Mapping[int, Sequence[Mapping[str, Any]]]


def keep(pipeline: Pipeline, settings: Settings, plan: Plan, what: str, findings: Sequence[Finding]) -> str:
    """Write the report of one validation; returns its place below the state directory, empty if it could not be kept.

    Args:
        what: `features` or `predictions`, which a gate looked at; `inputs`, which the scoring could not take.
        findings: of which at least one names a partition.
    """
    from features.files import replacing

    first = min(partition for finding in findings for partition in finding.rows)
    name = f"g{plan.generation}-{plan.token}-{what}-{first}"
    folder = settings.state_dir / QUARANTINE / pipeline.name
    failed = "cannot be scored" if what == "inputs" else "failed their gate"
    title = f"{pipeline.name}: {what} that {failed}, generation {plan.generation} as of {plan.as_of}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        for suffix, text in ((".json", _json(title, findings)), (".html", _page(pipeline, title, findings))):
            with replacing(folder / f"{name}{suffix}") as temporary:
                temporary.write_text(text)
    except (OSError, Unavailable) as error:  # a full disk must not stop what the gate is for
        log.warning("the report of a gate is not kept (%s); the reasons are in this log and the ledger", error)
        return ""
    place = f"{QUARANTINE}/{pipeline.name}/{name}.html"
    log.warning("what the gate found pipeline=%s: open %s", pipeline.name, settings.state_dir.absolute() / place)
    return place


def _tidy(folder: Path) -> None:
    """Remove old reports."""
    files = sorted(folder.glob("g*-*.*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for place, path in enumerate(files):
        if place >= FILES_MAX or time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400:
            path.unlink(missing_ok=True)


def _json(title: str, findings: Sequence[Finding]) -> str:
    said = [
        {
            "expectation": finding.expectation,
            "result": finding.result,
            "partitions": [
                {"partition": partition, "failing": len(rows), "rows": [dict(row) for row in rows[:ROWS_SHOWN_MAX]]}
                for partition, rows in sorted(finding.rows.items())
            ],
        }
        for finding in findings
    ]
    return json.dumps({"title": title, "failed": said}, indent=1, default=str)


def _page(pipeline: Pipeline, title: str, findings: Sequence[Finding]) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"]
    parts.append(
        f"<h1>{escape(title)}</h1><p>The rows below kept their partitions out of the generation; the last good"
    )
    parts.append(
        f"predictions stand in. Mend the input and run again: <code>almanac trigger {pipeline.name}</code></p>"
    )
    for finding in findings:
        parts.append(f"<h2><code>{escape(finding.expectation)}</code></h2><p>")
        parts.append(
            " · ".join(
                f"{escape(name.replace('_', ' '))}: {escape(str(value))}"
                for name, value in finding.result.items()
                if isinstance(value, int | float | str)
            )
        )
        parts.append("</p>")
        for partition, rows in sorted(finding.rows.items()):
            parts.append(_table(pipeline.partitions.label(partition), rows))
    return "".join(parts)


def _table(label: str, rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    more = f", the first {ROWS_SHOWN_MAX} of them" if len(rows) > ROWS_SHOWN_MAX else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(row.get(name)))}</td>" for name in names) + "</tr>"
        for row in rows[:ROWS_SHOWN_MAX]
    )
    return f"<h3>{escape(label)}: {len(rows)} failing rows{more}</h3><table><tr>{head}</tr>{body}</table>"
