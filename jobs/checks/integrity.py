"""The check of a pipeline's features: skew, quality, drift and ages; kept in Postgres, and written as a page.

Numbered alike in docs/architecture.md:

1. read what the definitions say, and how far each view's files reach;
2. compare online features of some entities with the offline ones of the same moments;
3. learn bounds of a view from its training window, unless they are known for this definition of it;
4. judge recent rows by them: Great Expectations, and how far each distribution has moved;
5. keep the check in Postgres, where the monitor reads it, and write the page.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from almanac.clock import need_utc
from almanac.errors import FeatureError, UsageError
from almanac.feature_checks import Check, FeatureFound, Learned, ViewFound, natural, troubles
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from features.integrity.profile import (
    PARTS_MIN,
    ROWS_MIN,
    Values,
    definition_of,
    drift_of,
    learn,
    newest_of,
    profile_of,
    values_of,
)
from serving_cache.feature_checks import FeatureChecks

if TYPE_CHECKING:
    from features.integrity.skew import ViewSkew
    from features.tables import Table

log = logging.getLogger(__name__)

LINES_MAX = 20
"""Lines of the log that one check writes about what it found."""


def check_features(
    pipeline: Pipeline, settings: Settings, *, now: datetime, sample: int | None = None, relearn: bool = False
) -> Check:
    """Check a pipeline's features, and keep what was found.

    Args:
        sample: entities to compare; default: as declared.
        relearn: learn the bounds anew, whatever is known.

    Raises:
        FeatureError: the features cannot be read; says which view and what to do.
        Unavailable: Redis, Postgres or the registry does not answer.
    """
    from features.integrity.skew import compare, pushed_views
    from features.integrity.skew import sample as chosen
    from features.tables import tables_of
    from jobs.checks.page import write_page

    began, now = time.monotonic(), need_utc(now)
    # Step 1. Of a view with lists its numbers are checked; one that has no others is not.
    tables = tuple(table.numbers for table in tables_of(pipeline, settings) if table.numbers.features)
    pushed = pushed_views(pipeline, settings)
    newest = {table.view: newest_of(table, now) for table in tables}
    if not any(newest.values()):
        raise FeatureError(f"the views of {pipeline.features} have no rows: run the DAG {pipeline.name} first")
    size = pipeline.integrity.sample if sample is None else sample
    entities = chosen(pipeline, tables, now, size, round(now.timestamp()))
    skews = compare(pipeline, settings, tables, pushed, entities)  # step 2
    views: list[ViewFound] = []
    features: list[FeatureFound] = []
    with FeatureChecks(settings.need("postgres_url")) as kept:
        known = {} if relearn else kept.learned(pipeline.name)
        for table in tables:
            view = _fresh(table, pushed[table.view], newest[table.view], skews[table.view], now)
            at = newest[table.view]
            judged = _Quality(pipeline, table, kept, known.get(table.view), now).judge(at) if at else None
            views.append(view if judged is None else _with(view, judged))
            features += _features(table, skews[table.view], judged)
        check = Check(
            pipeline=pipeline.name,
            service=pipeline.features,
            checked_at=now,
            sampled=len(entities),
            seconds=time.monotonic() - began,
            views=tuple(sorted(views, key=lambda one: natural(one.view))),
            features=tuple(sorted(features, key=lambda one: (natural(one.view), natural(one.feature)))),
        )
        kept.keep(check)  # step 5
        try:
            page = str(write_page(pipeline, settings, check, kept, now))
        except UsageError as error:  # a full disk, or one that is not ours: the check is worth more than its page
            page = f"none: {error}"
    _say(check, pipeline.integrity.skew_max, now)
    log.info("features pipeline=%s checked in %.1f s, page %s", pipeline.name, check.seconds, page)
    return check


def summary_of(check: Check) -> dict[str, int]:
    """A check in a few numbers."""
    skews = [one.skew for one in check.features if one.skew is not None]
    return {
        "entities": check.sampled,
        "compared": sum(skew.compared for skew in skews),
        "unequal": sum(skew.unequal for skew in skews),
        "refused": sum(len(view.refused) for view in check.views),
    }


def _fresh(table: Table, pushed: bool, newest: datetime | None, skew: ViewSkew, now: datetime) -> ViewFound:
    moments = [when for when in skew.moments if when is not None]
    return ViewFound(
        view=table.view,
        ttl_seconds=None if table.ttl is None else table.ttl.total_seconds(),
        pushed=pushed,
        offline_newest=newest,
        online_newest=max(moments, default=None),
        sampled=len(skew.moments),
        missing=len(skew.moments) - len(moments),
        expired=sum(table.ttl is not None and now - when > table.ttl for when in moments),
        in_flight=int(np.count_nonzero(skew.in_flight)),
    )


class _Quality:
    """Steps 3 and 4 for one view."""

    def __init__(
        self, pipeline: Pipeline, table: Table, kept: FeatureChecks, known: Learned | None, now: datetime
    ) -> None:
        self._pipeline, self._table, self._kept, self._known, self._now = pipeline, table, kept, known, now
        self.learned: Learned | None = None
        self.recent: Values | None = None
        self.expectations = 0
        self.refused: tuple[str, ...] = ()

    def judge(self, newest: datetime) -> _Quality:
        """Judge the rows up to the newest."""
        from jobs.checks.suites import refused_by

        declared = self._pipeline.integrity
        since = None if self._table.ttl is None else newest - declared.recent
        self.recent = values_of(self._table, since, newest)
        self.learned = self._bounds(since, newest)
        if self.learned is not None and self.recent.rows >= ROWS_MIN:
            self.expectations, self.refused = refused_by(self.learned, self.recent.table, self._table.features)
        return self

    def _bounds(self, since: datetime | None, newest: datetime) -> Learned | None:
        """What is known of the view, or learned of it now; None where it has too few rows."""
        same = self._known is not None and self._known.definition == definition_of(self._table)
        if self._known is not None and same and (self._known.parts >= PARTS_MIN or since is None):
            return self._known
        declared, window = self._pipeline.integrity, self._pipeline.training.window
        span = (newest - window, newest) if since is None else (since - window, since)
        values = self.recent if since is None else values_of(self._table, *span)
        if values is None or values.rows < ROWS_MIN:  # no history yet: the recent rows themselves
            span, values = (since or span[0], newest), self.recent
        if values is None or values.rows < ROWS_MIN:
            return None
        found = learn(self._table, values, span, part=declared.recent, drift_max=declared.drift_max, now=self._now)
        if self._known is not None and same and found.parts < PARTS_MIN:
            return self._known  # a history that is still too short need not be learned at each check
        return self._kept.keep_learned(self._pipeline.name, found)


def _with(view: ViewFound, judged: _Quality) -> ViewFound:
    import msgspec

    return msgspec.structs.replace(
        view,
        expectations=judged.expectations,
        refused=judged.refused,
        bounds_version=None if judged.learned is None else judged.learned.version,
    )


def _features(table: Table, skew: ViewSkew, judged: _Quality | None) -> list[FeatureFound]:
    found = []
    for name in table.features:
        bounds = None if judged is None or judged.learned is None else judged.learned.bounds.get(name)
        recent = None if judged is None or judged.recent is None else judged.recent.columns[name]
        profile = None if recent is None else profile_of(recent, () if bounds is None else bounds.edges)
        found.append(
            FeatureFound(
                view=table.view,
                feature=name,
                skew=skew.features[name],
                profile=profile,
                drift=None if bounds is None or profile is None else drift_of(bounds, profile),
                drift_max=None if bounds is None else bounds.drift_max,
            )
        )
    return found


def _say(check: Check, skew_max: float, now: datetime) -> None:
    lines = troubles(check, skew_max, now)
    for line in lines[:LINES_MAX]:
        log.warning("features pipeline=%s %s", check.pipeline, line)
    if len(lines) > LINES_MAX:
        log.warning("features pipeline=%s and %d more: see the page", check.pipeline, len(lines) - LINES_MAX)
