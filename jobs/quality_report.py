"""What `almanac quality` shows: the errors found, as rows for a table, bars for a terminal, a drawing for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from almanac.clock import format_time
from almanac.pipeline import Pipeline
from almanac.quality import SOURCES, Sums, horizons
from serving_cache.prediction_log import Progress

Errors = Mapping[tuple[str, str], Sums]

REPLACED = {"stream": "batch", "fresh": "replaced"}
"""What the older answer of a pair is called, by the source of the newer one."""
BAR_CELLS = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLORS = {"stream": "#0b7285", "batch": "#adb5bd", "fresh": "#e67700", "replaced": "#ced4da"}


def paired_rows(pipeline: Pipeline, errors: Errors) -> list[dict[str, Any]]:
    """For each output and source that stood in for another: both errors over the same entities and moments."""
    found = []
    for source, replaced in REPLACED.items():
        for output, _ in horizons(pipeline):
            sums = errors.get((output, source))
            if sums is None or not sums.paired_n:
                continue
            mae, other = sums.paired_absolute / sums.paired_n, sums.replaced_absolute / sums.paired_n
            found.append(
                {
                    "output": output,
                    "source": source,
                    "beside": replaced,
                    "mae": mae,
                    "beside_mae": other,
                    "ratio": mae / other if other else None,
                    "n": sums.paired_n,
                    "age_seconds": sums.paired_age / sums.paired_n,
                    "beside_age_seconds": sums.replaced_age / sums.paired_n,
                }
            )
    return found


def source_rows(pipeline: Pipeline, errors: Errors) -> list[dict[str, Any]]:
    """For each output and source: its own errors, over whatever was observed."""
    found = []
    for output, _ in horizons(pipeline):
        for source in SOURCES:
            sums = errors.get((output, source))
            if sums is None or not sums.n:
                continue
            found.append(
                {
                    "output": output,
                    "source": source,
                    "mae": sums.absolute_sum / sums.n,
                    "bias": sums.error_sum / sums.n,
                    "rmse": math.sqrt(sums.squared_sum / sums.n),
                    "as_now_mae": sums.as_now_absolute / sums.as_now_n if sums.as_now_n else None,
                    "n": sums.n,
                    "age_seconds": sums.age_sum / sums.n,
                }
            )
    return found


def nothing_yet(pipeline: Pipeline, progress: Progress) -> str:
    """One line that says why there is no outcome, and when there will be."""
    due = progress.next_due
    if due is None and progress.logged and progress.settled is not None:
        return (
            f"no moment since then: outcomes of {pipeline.name} are settled up to {format_time(progress.settled)}, and "
            "nothing that was served waits"
        )
    if due is None:
        return (
            f"nothing that {pipeline.name} served is known yet: `almanac trigger {pipeline.name}` publishes, and "
            f"`almanac rehearse {pipeline.name}`, before that, goes through the recent past"
        )
    return (
        f"no outcome of {pipeline.name} yet: {progress.logged:,} predictions wait, the first is about "
        f"{format_time(due)}; `almanac outcomes {pipeline.name}`, or the next run, settles it once that is observed"
    )


def hours_of(seconds: float) -> str:
    """An age in hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def print_report(pipeline: Pipeline, errors: Errors, progress: Progress) -> None:
    """Both tables, and the plot of the first."""
    from almanac.output import print_table

    unit = next((output.unit for output in pipeline.outputs if output.unit), "")
    pairs = paired_rows(pipeline, errors)
    for source, beside in REPLACED.items():
        rows = [row for row in pairs if row["source"] == source]
        if not rows:
            continue
        print_table(
            ["output", f"{source} error", f"{beside} error", "ratio", "pairs", f"{source} age", f"{beside} age"],
            [
                [
                    row["output"],
                    f"{row['mae']:.3f}",
                    f"{row['beside_mae']:.3f}",
                    "–" if row["ratio"] is None else f"{row['ratio']:.2f}",
                    f"{row['n']:,}",
                    hours_of(row["age_seconds"]),
                    hours_of(row["beside_age_seconds"]),
                ]
                for row in rows
            ],
            title=f"{source} answers and the {beside} answers they stood in for: same entities, same moments; "
            f"mean absolute error{f' in {unit}' if unit else ''}, age at the moment",
        )
        print(bars([(f"{row['output']} {name}", row[key]) for row in rows for name, key in _both(row)], unit))
        print()
    print_table(
        ["output", "source", "error", "bias", "RMSE", "as now", "n", "age"],
        [
            [
                row["output"],
                row["source"],
                f"{row['mae']:.3f}",
                f"{row['bias']:+.3f}",
                f"{row['rmse']:.3f}",
                None if row["as_now_mae"] is None else f"{row['as_now_mae']:.3f}",
                f"{row['n']:,}",
                hours_of(row["age_seconds"]),
            ]
            for row in source_rows(pipeline, errors)
        ],
        title=f"Each source by itself, over all that was observed{f', in {unit}' if unit else ''}",
    )
    if progress.settled is not None:
        print(f"moments up to {format_time(progress.settled)}; {progress.logged:,} predictions in the log")


def _both(row: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    return ((row["source"], "mae"), (row["beside"], "beside_mae"))


def bars(values: Sequence[tuple[str, float]], unit: str) -> str:
    """A line with a bar for each value, to the scale of the greatest."""
    greatest = max((value for _, value in values), default=0.0)
    width = max((len(label) for label, _ in values), default=0)
    lines = []
    for label, value in values:
        eighths = round(value / greatest * BAR_CELLS * 8) if greatest > 0 else 0
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"  {label:<{width}}  {bar} {value:.3f} {unit}".rstrip())
    return "\n".join(lines)


def draw(path: Path, pipeline: Pipeline, errors: Errors) -> None:
    """The bars of all pairs, or of all sources if there are no pairs, as an SVG file."""
    pairs = paired_rows(pipeline, errors)
    found = [(row["output"], name, float(row[key])) for row in pairs for name, key in _both(row)]
    if not found:
        found = [(row["output"], row["source"], float(row["mae"])) for row in source_rows(pipeline, errors)]
    unit = next((output.unit for output in pipeline.outputs if output.unit), "")
    greatest = max((value for *_, value in found), default=0.0) or 1.0
    height = 60 + 26 * len(found)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" '
        'font-size="13">',
        f'<text x="20" y="28" font-size="15">{escape(pipeline.name)}: mean absolute error {escape(unit)}</text>',
    ]
    for place, (output, source, value) in enumerate(found):
        top, length = 44 + 26 * place, value / greatest * 420
        lines.append(f'<text x="20" y="{top + 15}">{escape(output)} {escape(source)}</text>')
        lines.append(f'<rect x="200" y="{top}" width="{length:.1f}" height="20" fill="{_COLORS[source]}"/>')
        lines.append(f'<text x="{206 + length:.1f}" y="{top + 15}">{value:.3f}</text>')
    path.write_text("\n".join([*lines, "</svg>", ""]))


def since(text: str, now: datetime) -> datetime | None:
    """The moment that `--since` names: a time such as 2026-11-21T06:00Z, or so long ago: 90m, 24h, 7d.

    Raises:
        UsageError: neither of these.
    """
    from almanac.clock import parse_time
    from almanac.errors import UsageError

    if not text:
        return None
    units = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
    try:
        if text[-1] in units and text[:-1].isdecimal():
            return now - int(text[:-1]) * units[text[-1]]
        return parse_time(text)
    except (ValueError, OverflowError):
        raise UsageError(f"--since {text!r} is no time: give one such as 2026-11-21T06:00Z, or 90m, 24h, 7d") from None
