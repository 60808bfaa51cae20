"""What a check of a pipeline's features found, and what follows from it: records and decisions, without I/O.

Written by the jobs, kept in Postgres, shown by the command line, the page and the monitor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

BINS = 10
"""Shares of equal size that a feature's reference is cut into, nulls apart."""
SHARE_LEAST = 1e-4
"""What an empty bin counts as in the stability index, whose logarithm has no zero."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One entity whose online value is not the offline one."""

    entity: str
    moment: datetime
    online: float | None
    offline: float | None


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    """Online values of one feature beside the offline ones of the same moments.

    Args:
        compared: pairs; unequal: those that differ, nulls on one side included.
        only_online, only_offline: pairs with a null on the other side.
        greatest, mean: absolute difference, over pairs of numbers; None without any. `mean` counts equal pairs too.
    """

    compared: int
    unequal: int
    only_online: int
    only_offline: int
    greatest: float | None = None
    mean: float | None = None
    examples: tuple[Example, ...] = ()

    @property
    def share(self) -> float | None:
        """Share of unequal pairs; None where nothing was compared."""
        return self.unequal / self.compared if self.compared else None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The values of one feature over some time.

    Args:
        rows: all of them; nulls: null or NaN; infinite: neither a number nor a null.
        mean, least, greatest: of the numbers; None without any.
        shares: of the bins between the reference's edges, then of nulls.
    """

    rows: int
    nulls: int
    infinite: int = 0
    mean: float | None = None
    least: float | None = None
    greatest: float | None = None
    shares: tuple[float, ...] = ()

    @property
    def null_share(self) -> float | None:
        """Share of nulls; None without rows."""
        return self.nulls / self.rows if self.rows else None


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of one feature from a training window.

    Args:
        profile: of the whole window.
        edges: ascending; where the reference is cut into bins.
        low, high: quantiles, widened; nearly all values lie between.
        mean_low, mean_high: between which the mean of a part of the window lay, widened; None if it had too few parts.
        null_share_max: share of nulls that is allowed.
        drift_max: stability index that is allowed; None if the window had too few parts to know.
    """

    profile: Profile
    edges: tuple[float, ...]
    low: float | None
    high: float | None
    mean_low: float | None
    mean_high: float | None
    null_share_max: float
    drift_max: float | None


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of one view, and how; a version never changes.

    Args:
        definition: fingerprint of the view as it was; another one is learned anew.
        parts: of `recent`'s length that the window had rows in.
        how: in words.
    """

    view: str
    version: int
    learned_at: datetime
    start: datetime
    end: datetime
    rows: int
    parts: int
    definition: str
    how: str
    bounds: Mapping[str, Bounds]


class FeatureFound(msgspec.Struct, frozen=True, kw_only=True):
    """One feature at one check; what could not be known is None."""

    view: str
    feature: str
    skew: Skew | None = None
    profile: Profile | None = None
    drift: float | None = None
    drift_max: float | None = None


class ViewFound(msgspec.Struct, frozen=True, kw_only=True):
    """One view at one check.

    Args:
        ttl_seconds: for how long a row may be used; None for ever.
        pushed: whether events push it.
        offline_newest, online_newest: event time of the newest row; online: of the sampled entities'.
        missing, expired: sampled entities without an online row, and with one that is older than the ttl.
        in_flight: sampled entities whose online row came by an event that is not in the offline store yet.
        refused: the learned expectations that recent rows did not meet, in words.
        bounds_version: of what was learned; None if nothing was.
    """

    view: str
    ttl_seconds: float | None
    pushed: bool
    offline_newest: datetime | None = None
    online_newest: datetime | None = None
    sampled: int = 0
    missing: int = 0
    expired: int = 0
    in_flight: int = 0
    expectations: int = 0
    refused: tuple[str, ...] = ()
    bounds_version: int | None = None

    @property
    def newest(self) -> datetime | None:
        """Event time of the newest row that scoring could use, from either store."""
        return max((when for when in (self.offline_newest, self.online_newest) if when is not None), default=None)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check of one pipeline's features."""

    pipeline: str
    service: str
    checked_at: datetime
    sampled: int
    seconds: float
    views: tuple[ViewFound, ...]
    features: tuple[FeatureFound, ...]


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """By what names are sorted as a person would: `lag_2h` before `lag_12h`."""
    return tuple((text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", name))


def stability_index(reference: Sequence[float], now: Sequence[float]) -> float:
    """The population stability index of two distributions over the same bins; 0 for equal ones.

    By custom below 0.1 means no change to speak of, above 0.25 a considerable one.
    """
    total = 0.0
    for before, after in zip(reference, now, strict=True):
        b, a = max(before, SHARE_LEAST), max(after, SHARE_LEAST)
        total += (a - b) * math.log(a / b)
    return total


def age_of_view(view: ViewFound, now: datetime) -> timedelta | None:
    """Age of a view's newest row; None for a view that holds at all times, or has no row."""
    if view.ttl_seconds is None or view.newest is None:
        return None
    return now - view.newest


def view_state(view: ViewFound, now: datetime) -> str:
    """What can be said of a view's freshness, in words: `usable`, or `expired` with its age, and never a guess."""
    if view.newest is None:
        return "empty: no row is known"
    if view.ttl_seconds is None:
        return "holds at all times"
    age = now - view.newest
    if age > timedelta(seconds=view.ttl_seconds):
        return f"expired: newest row {words(age)} old, usable for {words(timedelta(seconds=view.ttl_seconds))}"
    if view.sampled and view.expired == view.sampled:
        return f"expired online: {view.expired:,} of {view.sampled:,} sampled entities"
    return "usable"


def troubles(check: Check, skew_max: float, now: datetime) -> list[str]:
    """What a person should look at, a line each; none where all is well."""
    found = []
    for view in check.views:
        state = view_state(view, now)
        if state.startswith(("expired", "empty")):
            found.append(f"view {view.view} is {state}")
        if view.missing:
            found.append(f"view {view.view}: {view.missing:,} of {view.sampled:,} sampled entities have no online row")
        found += [f"view {view.view}: {one}" for one in view.refused]
    for one in check.features:
        if one.skew is not None and (share := one.skew.share) is not None and share > skew_max:
            found.append(
                f"{one.view}.{one.feature}: {share:.1%} of {one.skew.compared:,} online values are not the offline ones"
            )
        if one.drift is not None and one.drift_max is not None and one.drift > one.drift_max:
            found.append(f"{one.view}.{one.feature}: drift {one.drift:.2f}, usual is at most {one.drift_max:.2f}")
    return found


def words(span: timedelta) -> str:
    """A duration for a person: `45 s`, `12 min`, `7 h 5 min`, `3 d 4 h`."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60 % 60, seconds // 3600 % 24, seconds // 86_400
    large = [f"{days} d"] if days else []
    large += [f"{hours} h"] if hours else []
    large += [f"{minutes} min"] if minutes and not days else []
    return " ".join(large)
