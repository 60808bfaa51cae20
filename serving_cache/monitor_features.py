"""What the monitor shows of features: the newest check of each pipeline, and the ages that go on since."""

from __future__ import annotations

from datetime import datetime

from almanac import metrics
from almanac.feature_checks import Check, FeatureFound, age_of_view
from almanac.pipeline import Pipeline

UNKNOWN = float("nan")


def show_features(pipeline: Pipeline, check: Check | None, now: datetime) -> None:
    """Set the metrics of one look; what nothing is known of is not a number."""
    name = pipeline.name
    metrics.FEATURE_SKEW_LIMIT.labels(name).set(pipeline.integrity.skew_max)
    if check is None:
        return
    metrics.FEATURES_CHECKED.labels(name).set(check.checked_at.timestamp())
    for view in check.views:
        age = age_of_view(view, now)
        if age is not None:
            metrics.FEATURE_AGE.labels(name, view.view).set(age.total_seconds())
        if view.ttl_seconds is not None:
            metrics.FEATURE_TTL.labels(name, view.view).set(view.ttl_seconds)
        metrics.FEATURE_REFUSED.labels(name, view.view).set(len(view.refused))
        for state, count in (("missing", view.missing), ("expired", view.expired), ("in_flight", view.in_flight)):
            metrics.FEATURE_ENTITIES.labels(name, view.view, state).set(count)
    for one in check.features:
        _show(name, one)


def _show(name: str, one: FeatureFound) -> None:
    labels = (name, one.view, one.feature)
    skew, profile = one.skew, one.profile
    metrics.FEATURE_SKEW.labels(*labels).set(_number(None if skew is None else skew.share))
    metrics.FEATURE_GAP.labels(*labels, "greatest").set(_number(None if skew is None else skew.greatest))
    metrics.FEATURE_GAP.labels(*labels, "mean").set(_number(None if skew is None else skew.mean))
    metrics.FEATURE_NULLS.labels(*labels).set(_number(None if profile is None else profile.null_share))
    metrics.FEATURE_DRIFT.labels(*labels).set(_number(one.drift))
    metrics.FEATURE_DRIFT_LIMIT.labels(*labels).set(_number(one.drift_max))


def _number(value: float | None) -> float:
    return UNKNOWN if value is None else value
