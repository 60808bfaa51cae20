"""The page of a pipeline's features: what each is, how it moves, and who uses it. One HTML file, nothing beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from almanac.clock import format_time
from almanac.errors import UsageError
from almanac.feature_checks import Bounds, Check, FeatureFound, Learned, ViewFound, troubles, view_state, words
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from almanac.stack.status import FEATURE_PAGES
from jobs.checks.charts import histogram, sparkline
from jobs.checks.style import STYLE
from serving_cache.feature_checks import FeatureChecks, Moved

if TYPE_CHECKING:
    from features.tables import Table

HISTORY = timedelta(days=14)
"""How far the page's lines reach back."""

History = Mapping[tuple[str, str], Sequence[Moved]]


def page_of(settings: Settings, pipeline: str) -> Path:
    """Where a pipeline's page lies."""
    return settings.state_dir / FEATURE_PAGES / f"{pipeline}.html"


def write_page(pipeline: Pipeline, settings: Settings, check: Check, kept: FeatureChecks, now: datetime) -> Path:
    """Write the page of a check; returns where it is.

    Raises:
        UsageError: it cannot be written.
        Unavailable: Postgres or the registry does not answer.
    """
    from features.files import replacing
    from features.tables import tables_of

    text = render(
        pipeline,
        check,
        kept.learned(pipeline.name),
        kept.history(pipeline.name, now - HISTORY),
        tables_of(pipeline, settings),
        now,
    )
    path = page_of(settings, pipeline.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): the check itself is kept in Postgres") from None
    return path


def render(
    pipeline: Pipeline,
    check: Check,
    learned: Mapping[str, Learned],
    history: History,
    tables: Sequence[Table],
    now: datetime,
) -> str:
    """The page as HTML."""
    parts = [
        _head(pipeline, check, now),
        _to_look_at(pipeline, check, now),
        _views(check, learned, now),
        *(_view(view, check, learned.get(view.view), history, pipeline.integrity.skew_max) for view in check.views),
        _uses(pipeline, tables),
        _legend(),
    ]
    title = escape(f"Features of {pipeline.name}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f'{title}</title><meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f"</head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(pipeline: Pipeline, check: Check, now: datetime) -> str:
    compared = [one.skew for one in check.features if one.skew is not None and one.skew.compared]
    unequal = sum(skew.unequal for skew in compared)
    moved = sum(_moved(one) for one in check.features)
    stale = sum(view_state(view, now).startswith(("expired", "empty")) for view in check.views)
    refused = sum(len(view.refused) for view in check.views)
    cards = "".join(
        _card(name, value, bad)
        for name, value, bad in (
            ("views expired or empty", f"{stale} of {len(check.views)}", stale > 0),
            ("online values unlike offline", f"{unequal:,} of {sum(s.compared for s in compared):,}", unequal > 0),
            ("features that drift", f"{moved} of {len(check.features)}", moved > 0),
            ("expectations not met", f"{refused} of {sum(v.expectations for v in check.views)}", refused > 0),
        )
    )
    return (
        f"<header><h1>Features of <code>{escape(pipeline.name)}</code></h1><p>{escape(pipeline.description)}</p>"
        f'<p class="dim">FeatureService <code>{escape(check.service)}</code>, model <code>{escape(pipeline.model)}'
        f'</code>. Checked <time datetime="{format_time(check.checked_at)}">{check.checked_at:%Y-%m-%d %H:%M} UTC'
        f"</time> on {check.sampled:,} sampled entities, in {check.seconds:.1f} s.</p>"
        f'<ul class="cards">{cards}</ul></header>'
    )


def _card(name: str, value: str, bad: bool) -> str:
    return (
        f'<li class="{"bad" if bad else "good"}"><span class="mark" aria-hidden="true">{"!" if bad else "✓"}</span>'
        f"<strong>{escape(value)}</strong><span>{escape(name)}</span></li>"
    )


def _moved(one: FeatureFound) -> bool:
    return one.drift is not None and one.drift_max is not None and one.drift > one.drift_max


def _to_look_at(pipeline: Pipeline, check: Check, now: datetime) -> str:
    lines = troubles(check, pipeline.integrity.skew_max, now)
    if not lines:
        return '<section class="fine"><h2>Nothing to look at</h2><p>Every feature is as it should be.</p></section>'
    return f'<section class="look"><h2>To look at</h2><ul>{_items(escape(line) for line in lines)}</ul></section>'


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{line}</li>" for line in lines)


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; the first of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _age(moment: datetime | None, now: datetime, dated: bool) -> str:
    if moment is None:
        return '<span class="bad-word">none</span>'
    said = words(now - moment) if dated else "at all times"
    return f'<time datetime="{format_time(moment)}" title="{format_time(moment)}">{said}</time>'


def _views(check: Check, learned: Mapping[str, Learned], now: datetime) -> str:
    rows = []
    for view in check.views:
        state, dated = view_state(view, now), view.ttl_seconds is not None
        good = state in ("usable", "holds at all times")
        known = learned.get(view.view)
        rows.append(
            [
                f'<a href="#{escape(view.view)}"><code>{escape(view.view)}</code></a>',
                f'<span class="{"good-word" if good else "bad-word"}">{escape(state.partition(":")[0])}</span>',
                _age(view.offline_newest, now, dated),
                _age(view.online_newest, now, dated),
                words(timedelta(seconds=view.ttl_seconds)) if view.ttl_seconds is not None else "for ever",
                f"{view.missing} / {view.expired}",
                f"{view.in_flight}" if view.pushed else '<span class="dim">no events</span>',
                f"{view.expectations - len(view.refused)} of {view.expectations}",
                "–" if known is None else f'<span title="{escape(known.how)}">v{known.version}</span>',
            ]
        )
    columns = (
        "view", "state", "newest offline", "newest online", "usable for", "missing / expired",
        "in flight", "expectations met", "bounds",
    )  # fmt: skip
    return f"<section><h2>Views</h2>{_table('Feature views, their ages and states', columns, rows)}</section>"


def _view(view: ViewFound, check: Check, learned: Learned | None, history: History, skew_max: float) -> str:
    rows = [
        _feature(one, learned, history.get((one.view, one.feature), ()), skew_max)
        for one in check.features
        if one.view == view.view
    ]
    columns = (
        "feature",
        "distribution",
        "mean now",
        "in training",
        "nulls",
        "mean over time",
        "drift",
        "skew",
        "greatest gap",
    )
    how = "" if learned is None else f'<p class="dim">Bounds v{learned.version}: {escape(learned.how)}.</p>'
    return (
        f'<section id="{escape(view.view)}"><h2><code>{escape(view.view)}</code></h2>'
        f"{_table(f'Features of {view.view}', columns, rows)}{_examples(view, check)}{how}</section>"
    )


def _feature(one: FeatureFound, learned: Learned | None, past: Sequence[Moved], skew_max: float) -> list[str]:
    bounds = None if learned is None else learned.bounds.get(one.feature)
    now, before = one.profile, None if bounds is None else bounds.profile
    drawn = ""
    if now is not None and now.rows:
        reference = () if before is None else before.shares
        nulls = 0.0 if now.null_share is None else now.null_share
        drawn = histogram(
            now.shares, reference, f"{one.feature}: shares of {len(now.shares) - 1} bins now, {nulls:.1%} nulls"
        )
    share = one.skew.share if one.skew else None
    return [
        f"<code>{escape(one.feature)}</code>",
        drawn or '<span class="dim">no rows</span>',
        _number(None if now is None else now.mean),
        _number(None if before is None else before.mean),
        _nulls(one, bounds),
        sparkline([moved.mean for moved in past], f"mean of {one.feature} at the last {len(past)} checks"),
        _drift(one, past),
        "–" if share is None else _marked(f"{share:.2%}", share > skew_max),
        _number(None if one.skew is None else one.skew.greatest),
    ]


def _nulls(one: FeatureFound, bounds: Bounds | None) -> str:
    share = None if one.profile is None else one.profile.null_share
    if share is None:
        return "–"
    return _marked(f"{share:.1%}", bounds is not None and share > bounds.null_share_max)


def _drift(one: FeatureFound, past: Sequence[Moved]) -> str:
    if one.drift is None:
        return '<span class="dim">too few rows</span>'
    limit = "not known yet" if one.drift_max is None else f"{one.drift_max:.2f}"
    drawn = sparkline([moved.drift for moved in past], f"drift of {one.feature} over time", one.drift_max)
    return f"{_marked(f'{one.drift:.2f}', _moved(one))} <span class='dim'>usual to {limit}</span><br>{drawn}"


def _marked(text: str, bad: bool) -> str:
    return f'<strong class="bad-word"><span aria-hidden="true">! </span>{text}</strong>' if bad else text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _examples(view: ViewFound, check: Check) -> str:
    rows = [
        [
            f"<code>{escape(one.feature)}</code>",
            escape(example.entity),
            f"<time>{format_time(example.moment)}</time>",
            "null" if example.online is None else f"{example.online!r}",
            "null" if example.offline is None else f"{example.offline!r}",
        ]
        for one in check.features
        if one.view == view.view and one.skew is not None
        for example in one.skew.examples
    ]
    if not rows:
        return ""
    table = _table("Entities whose online value is another", ("feature", "entity", "moment", "online", "offline"), rows)
    return f"<details open><summary>Where online and offline differ</summary>{table}</details>"


def _uses(pipeline: Pipeline, tables: Sequence[Table]) -> str:
    rows = [
        [f"<code>{escape(table.view)}</code>", str(len(table.features)), f"<code>{escape(table.path)}</code>"]
        for table in tables
    ]
    return (
        f"<section><h2>Who uses what</h2><p>Pipeline <code>{escape(pipeline.name)}</code> → FeatureService "
        f"<code>{escape(pipeline.features)}</code> → feature views → their files:</p>"
        f"{_table('Views and the files they stand on', ('view', 'features', 'files'), rows)}</section>"
    )


def _legend() -> str:
    return (
        "<footer><h2>How to read this</h2><dl><dt>distribution</dt><dd>bars: shares of recent rows in bins that held a "
        "tenth of the training window each; strokes: that window; the last bar is nulls</dd><dt>drift</dt><dd>the "
        "population stability index of recent rows beside the training window; what is usual was learned from the "
        "window's own parts</dd><dt>skew</dt><dd>share of sampled online values that are not the offline ones of the "
        "same moment</dd><dt>in flight</dt><dd>rows that events brought and that the offline store does not have yet; "
        "they are compared once it has them</dd></dl></footer>"
    )
