"""How features are distributed: what is learned of a training window, and how far recent rows are from it.

All of it is computed from a sample of a view's rows, with NumPy. Drift is the population stability index over bins
that hold a tenth of the reference each, nulls in a bin of their own: unlike a Kolmogorov-Smirnov test it needs the
reference's bins alone and not its rows, it has the same scale for every number of rows (with a hundred thousand, every
shift is significant), and it sees nulls and steps of discrete features too. How much of it is usual is learned: the
window's own parts are compared with the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from almanac.clock import MICROSECOND, at_micros, format_time, micros_of
from almanac.feature_checks import BINS, Bounds, Learned, Profile, stability_index, words
from features.layout import EVENT_TIMESTAMP
from features.own_files import literal, quoted
from features.tables import Table, opened

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_MAX = 200_000
"""Rows of a view that are looked at, chosen at random; more would not change a quantile that matters."""
ROWS_MIN = 100
"""Rows below which a distribution says nothing."""
PARTS_MIN = 7
"""Parts of the window below which nothing is known of what is usual."""
QUANTILE_LOW, QUANTILE_HIGH = 0.001, 0.999
WIDENED = 0.25
"""Share of the distance between the quantiles by which bounds are widened."""
MEAN_ROOM = 0.01
"""Share of the distance between the quantiles by which bounds of means are widened at least."""
NULLS_MORE = 0.01
"""Share of nulls allowed beyond the reference's greatest."""
DRIFT_TIMES = 1.5
"""Drift allowed, as a multiple of the greatest that a part of the window had."""
TIME_LIKE = 0.9999
"""Correlation with the event time from which on a feature is taken to be a time itself."""
_SEED = 20_261

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Values:
    """A sample of a view's rows.

    Args:
        columns: float64 (n,) by feature; NaN where null.
        moments: event times, microseconds since 1970, (n,).
        table: the same rows with the entity, as Arrow.
    """

    columns: Mapping[str, Floats]
    moments: NDArray[np.int64]
    table: pa.Table

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.moments)


def definition_of(table: Table) -> str:
    """A fingerprint of what a view reads: another one makes what was learned void."""
    said = repr((table.view, table.key, table.moment, table.created, sorted(table.features), table.ttl))
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def newest_of(table: Table, now: datetime) -> datetime | None:
    """Event time of a view's newest row up to now; None without any.

    Raises:
        FeatureError: there is no file, or it cannot be read.
    """
    moment = quoted(table.moment)
    with opened(table) as (connection, rows):
        found = connection.execute(
            f"SELECT epoch_us(max({moment})) FROM {rows} WHERE {moment} <= {literal(now)}"  # noqa: S608
        ).fetchone()
    return None if not found or found[0] is None else at_micros(found[0])


def values_of(table: Table, since: datetime | None, until: datetime) -> Values:
    """At most `ROWS_MAX` rows of a view, of those after `since` up to `until`; the same ones each time.

    Args:
        since: None for no limit.

    Raises:
        FeatureError: the files cannot be read.
    """
    columns = ", ".join(f"CAST({quoted(name)} AS DOUBLE) AS {quoted(name)}" for name in table.features)
    when = f"{quoted(table.moment)} <= {literal(until)}"
    if since is not None:
        when += f" AND {quoted(table.moment)} > {literal(since)}"
    with opened(table, table.features) as (connection, rows):
        found: pa.Table = connection.sql(
            f"SELECT {quoted(table.key)}, epoch_us({quoted(table.moment)}) AS {EVENT_TIMESTAMP}, {columns} "  # noqa: S608
            f"FROM (SELECT * FROM {rows} WHERE {when}) USING SAMPLE reservoir({ROWS_MAX} ROWS) REPEATABLE ({_SEED})"
        ).to_arrow_table()
    return Values(
        columns={name: found[name].to_numpy() for name in table.features},
        moments=found[EVENT_TIMESTAMP].to_numpy().astype(np.int64),
        table=found,
    )


def profile_of(values: Floats, edges: tuple[float, ...]) -> Profile:
    """The distribution of some values, NaN being null, over bins that end at `edges`."""
    rows, nulls = len(values), int(np.isnan(values).sum())
    finite = values[np.isfinite(values)]
    places = np.searchsorted(np.asarray(edges), values[~np.isnan(values)], side="left")
    counts = np.append(np.bincount(places, minlength=len(edges) + 1), nulls)
    return Profile(
        rows=rows,
        nulls=nulls,
        infinite=rows - nulls - len(finite),
        mean=float(finite.mean()) if len(finite) else None,
        least=float(finite.min()) if len(finite) else None,
        greatest=float(finite.max()) if len(finite) else None,
        shares=tuple((counts / max(rows, 1)).tolist()),
    )


def learn(
    table: Table, values: Values, span: tuple[datetime, datetime], *, part: timedelta, drift_max: float, now: datetime
) -> Learned:
    """What a training window says of each feature of a view. Its version is given when it is kept.

    Args:
        span: the window.
        part: length of the parts whose means and drifts say what is usual.
        drift_max: that is allowed in any case.
    """
    start, end = span
    index = (values.moments - micros_of(start)) // max(1, part // MICROSECOND)
    parts = [found for one in np.unique(index) if len(found := np.flatnonzero(index == one)) >= ROWS_MIN]
    return Learned(
        view=table.view,
        version=0,
        learned_at=now,
        start=start,
        end=end,
        rows=values.rows,
        parts=len(parts),
        definition=definition_of(table),
        how=(
            f"{values.rows:,} rows from {format_time(start)} to {format_time(end)} in {len(parts)} parts of "
            f"{words(part)}: quantiles {QUANTILE_LOW} and {QUANTILE_HIGH} widened by {WIDENED:.0%} of their distance, "
            f"least and greatest mean of a part widened alike, null share of the worst part and {NULLS_MORE:.0%}, "
            f"{DRIFT_TIMES} times the greatest drift of a part and at least {drift_max}"
        ),
        bounds={
            name: _of_time(column)
            if _follows(values.moments, column)
            else _bounds(column, parts, drift_max, still=table.ttl is None)
            for name, column in values.columns.items()
        },
    )


def _follows(moments: NDArray[np.int64], values: Floats) -> bool:
    """Whether a feature only says when its row is from: it moves on for ever, and is no sign of anything."""
    known = np.isfinite(values)
    times, numbers = moments[known].astype(np.float64), values[known]
    if len(numbers) < ROWS_MIN or np.ptp(times) == 0 or np.ptp(numbers) == 0:
        return False
    return bool(abs(np.corrcoef(times - times[0], numbers)[0, 1]) > TIME_LIKE)


def _of_time(values: Floats) -> Bounds:
    """The bounds of a feature that follows the time: of its nulls alone."""
    whole = profile_of(values, ())
    return Bounds(
        profile=whole,
        edges=(),
        low=None,
        high=None,
        mean_low=None,
        mean_high=None,
        null_share_max=min(1.0, (whole.null_share or 0.0) + NULLS_MORE),
        drift_max=None,
    )


def _bounds(values: Floats, parts: list[NDArray[np.int64]], drift_max: float, *, still: bool) -> Bounds:
    """Of one feature; one that is still has no parts, and moves by a correction alone."""
    finite = values[np.isfinite(values)]
    inner = np.quantile(finite, np.arange(1, BINS) / BINS) if len(finite) else np.empty(0)
    edges = tuple(np.unique(inner).tolist())
    whole = profile_of(values, edges)
    found = [profile_of(values[rows], edges) for rows in parts]
    known = len(found) >= PARTS_MIN
    means = [one.mean for one in found if one.mean is not None]
    low, high = _widened(*np.quantile(finite, [QUANTILE_LOW, QUANTILE_HIGH])) if len(finite) else (None, None)
    least = MEAN_ROOM * (high - low) if low is not None and high is not None else 0.0
    mean_low, mean_high = _widened(min(means), max(means), least) if known and means else (None, None)
    nulls = max((one.null_share or 0.0 for one in (whole, *found)), default=0.0)
    drifts = [stability_index(whole.shares, one.shares) for one in found]
    return Bounds(
        profile=whole,
        edges=edges,
        low=low,
        high=high,
        mean_low=mean_low,
        mean_high=mean_high,
        null_share_max=min(1.0, nulls + NULLS_MORE),
        drift_max=max(drift_max, DRIFT_TIMES * max(drifts)) if known else drift_max if still else None,
    )


def _widened(low: float, high: float, least: float = 0.0) -> tuple[float, float]:
    """Bounds with room on both sides, at least so much; a constant keeps a little for its rounding."""
    room = max(WIDENED * (high - low), 1e-6 * max(abs(low), abs(high)), least)
    return float(low - room), float(high + room)


def drift_of(bounds: Bounds, now: Profile) -> float | None:
    """How far recent values are from the reference; None where there are too few to say."""
    if min(now.rows, bounds.profile.rows) < ROWS_MIN:
        return None
    return stability_index(bounds.profile.shares, now.shares)
