"""Measure a registered model that ranks on what was taken lately."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from almanac.clock import DAY_MICROSECONDS, at_micros, format_time
from almanac.errors import FeatureError, UsageError
from almanac.manifest import ListMetric
from almanac.pipeline import Pipeline
from almanac.registry import ModelVersion, Registry
from almanac.scoring import Scorer
from almanac.settings import Settings
from features.store import one_look
from jobs.training.fitting import THREADS, Progress
from jobs.training.ranker import measure, prepare
from jobs.training.ranker_data import held_out_since

_SPAN = re.compile(r"(\d{1,5})([dh])")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What was measured of a model.

    Args:
        lists: by the way of asking.
        start, end: the time that was measured.
        warning: what speaks against the figures; empty if nothing does.
    """

    model_id: str
    lists: dict[str, ListMetric]
    start: datetime
    end: datetime
    warning: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        lists = {way: msgspec.structs.asdict(metric) | {"ratio": metric.ratio} for way, metric in self.lists.items()}
        window = {"start": format_time(self.start), "end": format_time(self.end)}
        return {"model": self.model_id, "held_out": window, "lists": lists, "warning": self.warning}


def span_of(text: str) -> timedelta:
    """A span such as `30d` or `48h`, in whole days where the lists are nightly.

    Raises:
        UsageError: it is no such span, or shorter than a day.
    """
    match = _SPAN.fullmatch(text)
    span = timedelta(0)
    if match:
        span = timedelta(days=int(match[1])) if match[2] == "d" else timedelta(hours=int(match[1]))
    if span < timedelta(days=1):
        raise UsageError(f"--holdout {text} is not a time of a day at least: give 30d or 720h")
    return span


def evaluate_lists(
    pipeline: Pipeline,
    settings: Settings,
    *,
    model: str,
    holdout: timedelta | None,
    now: datetime,
    progress: Progress,
) -> Evaluated:
    """Recall and NDCG of a registered model's lists in the newest `holdout` of what was taken.

    Args:
        model: a registered version or alias; empty for the declared one.
        holdout: None for what the declaration holds out.

    Raises:
        UsageError: the pipeline ranks nothing.
        UnknownModel, ModelError: the model is not there, or does not fit the declaration.
        SourceError, FeatureError: the source cannot be used, features are missing, or nothing was taken.
    """
    if pipeline.ranking is None:
        raise UsageError(
            f"pipeline {pipeline.name} ranks nothing: `almanac models {pipeline.model_name}` has its model's errors, "
            f"`almanac quality {pipeline.name}` those of what was served"
        )
    version = Registry(settings.models_dir).resolve(model or pipeline.model)
    scorer = Scorer.load(version, pipeline, threads=THREADS)
    span = holdout or pipeline.training.holdout
    training = replace(pipeline.training, holdout=span, window=max(pipeline.training.window, 2 * span))
    asked = replace(pipeline, training=training)
    taken = prepare(asked, settings, now=now, progress=progress)
    since = held_out_since(asked, int(taken.moments[-1]))
    if since <= int(taken.moments[0]) // DAY_MICROSECONDS * DAY_MICROSECONDS:
        raise FeatureError(f"nothing was taken before the last {span}: give a shorter --holdout, or more interactions")
    progress(f"measuring {version.id} from {format_time(at_micros(since))}")
    with one_look():
        lists = measure(asked, settings, (scorer,), taken, since, by_night=True)[0]
    return Evaluated(
        model_id=version.id,
        lists=lists,
        start=at_micros(since),
        end=at_micros(taken.moments[-1]),
        warning=flattered(version, at_micros(since)),
    )


def flattered(version: ModelVersion, start: datetime) -> str:
    """What to say of a model that learned from the time it is measured on, which begins at `start`; empty of others."""
    window = version.manifest.training
    if window is None or window.end < start:
        return ""
    return (
        f"{version.id} was trained up to {format_time(window.end)}: what is measured from {format_time(start)} on "
        "flatters it: measure a version that was trained before, or give a shorter --holdout"
    )
