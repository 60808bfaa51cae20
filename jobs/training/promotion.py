"""From a measured model to the one that serves: registered, held to its gates, promoted or not.

1. the champion is measured on the challenger's held-out rows;
2. the gates judge, and what they said is registered with the version, which the alias `challenger` names;
3. the declared alias names it, if it passed and the champion that it was compared with still serves.

A pipeline without a declared challenger has no gates: its alias names each new version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from almanac.challenger import ALIAS, judge
from almanac.errors import ModelError, UnknownModel, UsageError
from almanac.manifest import Description, ListMetric, Measure, Metric
from almanac.pipeline import Pipeline
from almanac.registry import ModelVersion, Registry
from almanac.scoring import Scorer
from almanac.settings import Settings
from jobs.training.fitting import THREADS, Made, Progress


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The model that serves, as it can be compared with.

    Args:
        model_id: `bikes-v3`; empty if nothing serves.
        scorers: the one to measure; none where there is no gate, no champion, or one that cannot score these rows.
    """

    model_id: str = ""
    scorers: tuple[Scorer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """What became of a challenger: whether the pipeline's alias names it, and why, in one line."""

    version: int
    promoted: bool
    told: str


def champion(pipeline: Pipeline, settings: Settings, columns: Collection[str]) -> Champion:
    """Step 1: what serves now, where a challenger is declared.

    Args:
        columns: that the held-out rows have; a champion that wants others cannot be measured on them.
    """
    if pipeline.training.challenger is None:
        return Champion()
    try:
        version = Registry(settings.models_dir).resolve(pipeline.model)
    except UnknownModel:
        return Champion()
    try:
        scorer = Scorer.load(version, pipeline, threads=THREADS)
    except ModelError:
        return Champion(model_id=version.id)
    return Champion(model_id=version.id, scorers=(scorer,) if set(scorer.inputs) <= set(columns) else ())


def judged(
    pipeline: Pipeline,
    description: Description,
    rival: Champion,
    found: Sequence[Mapping[str, Metric] | Mapping[str, ListMetric]],
) -> Description:
    """Step 2: the description with what the gates say; as it was where no challenger is declared.

    Args:
        found: what was measured of the rival, if it was.
    """
    gates = pipeline.training.challenger
    if gates is None:
        return description
    theirs: dict[str, Measure] | None = dict(found[0]) if found else None
    verdict = judge(gates, description.measures, theirs, champion_id=rival.model_id)
    return msgspec.structs.replace(description, judged=verdict)


def register(
    pipeline: Pipeline, settings: Settings, made: Made, description: Description, *, now: datetime, progress: Progress
) -> ModelVersion:
    """Register the version; the pipeline's alias names it, or, where a challenger is declared, `challenger` does."""
    registry = Registry(settings.models_dir)
    registered = registry.register(pipeline.model_name, made.files, description, now=now)
    alias = pipeline.model_alias if pipeline.training.challenger is None else ALIAS
    registry.set_alias(pipeline.model_name, alias, registered.version)
    progress(f"registered {registered.id}; {pipeline.model_name}@{alias} names it")
    return registered


def promote(pipeline: Pipeline, settings: Settings, version: int, *, overrule: bool = False) -> Promoted:
    """Step 3: let the declared alias name a version if its gates passed it.

    Doing so again changes nothing. If another champion was named since it was compared, it stays.

    Args:
        version: a registered one.
        overrule: a person takes it whatever the gates said.

    Raises:
        UnknownModel: there is no such version.
        UsageError: the pipeline declares no challenger, so that there are no gates to pass.
    """
    if pipeline.training.challenger is None:
        raise UsageError(
            f"pipeline {pipeline.name} declares no challenger, and its alias names each new version: "
            "declare Training(challenger=Challenger(…))"
        )
    registry = Registry(settings.models_dir)
    found = registry.resolve(f"{pipeline.model_name}@{version}")
    serving = registry.aliases(pipeline.model_name).get(pipeline.model_alias)
    said = found.manifest.judged
    if serving == version:
        return Promoted(version=version, promoted=True, told=f"{pipeline.model} names {found.id} already")
    reasons = "; ".join(said.reasons) if said is not None else "no gate has judged it"
    if overrule:
        registry.set_alias(pipeline.model_name, pipeline.model_alias, version)
        return Promoted(version=version, promoted=True, told=f"{found.id} promoted over its gates: {reasons}")
    if said is None or not said.passed:
        stays = f"{pipeline.model_name}-v{serving} stays" if serving else f"{pipeline.model} names no version yet"
        told = f"{found.id} not promoted: {reasons}. {stays}; see `almanac models {pipeline.model_name}`"
        return Promoted(version=version, promoted=False, told=told)
    serves = f"{pipeline.model_name}-v{serving}" if serving else ""
    name, alias = pipeline.model_name, pipeline.model_alias
    if said.champion != serves or not registry.set_alias(name, alias, version, instead_of=serving or 0):
        compared = f"compared with {said.champion or 'no model'}, but {serves or 'another'} serves by now"
        return Promoted(version=version, promoted=False, told=f"{found.id} not promoted: {compared}; train again")
    return Promoted(version=version, promoted=True, told=f"{found.id} promoted: {reasons}")


def summary_of(version: ModelVersion) -> dict[str, Any]:
    """What Airflow keeps of a training: the version, its measures beside the baselines', and what the gates said."""
    manifest = version.manifest
    return {
        "version": version.version,
        "model": version.id,
        "rows": manifest.rows,
        "measures": {name: round(measure.ratio, 4) for name, measure in manifest.measures.items()},
        "passed": manifest.judged is not None and manifest.judged.passed,
        "reasons": list(manifest.judged.reasons) if manifest.judged is not None else [],
    }
