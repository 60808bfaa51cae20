"""The models that the stream scores with: that of the generation which answers, and that of the registry's alias.

They are one nearly always. While the alias names another version (it was moved,
and no generation by that version is published yet; or a rollback went back to a
generation by the version before), each event is scored by both: a lookup
believes only overlays by the model of the generation that answers, and the next
generation is to find the overlays of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from almanac import metrics
from almanac.errors import AlmanacError, PredictionError, Unavailable
from almanac.pipeline import Pipeline
from almanac.ranked import Value
from almanac.registry import ALIASES_FILE, MODEL_FILE
from almanac.settings import Settings
from streaming.answering import Standing
from streaming.report import Report

if TYPE_CHECKING:
    from almanac.registry import ModelVersion, Registry
    from almanac.scoring import Scorer

RECHECK_SECONDS = 2.0
"""How often the alias file and the models' are looked at, and a version that did not load is tried again."""

Stamp = tuple[int, int, int] | None
S_co = TypeVar("S_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Model(Generic[S_co]):
    """A model that events are scored with.

    Args:
        id: of its version, such as `bikes-v3`.
        scorer: the loaded model.
        answers: whether readers are to be answered by it: it is the model of the generation that answers, or, while
            none is published or that is not known, the alias's.
    """

    id: str
    scorer: S_co
    answers: bool = True


class Answering(Protocol):
    """What is known of the generation that answers: `streaming.answering.Pointers` is one."""

    def standing(self) -> Standing:
        """What is known now; returns at once."""
        ...

    def first(self) -> Standing:
        """The same, after the first look at the stores, which is waited for."""
        ...


def by_each(
    models: Sequence[Model[S]], work: Callable[[Model[S]], T]
) -> tuple[list[tuple[Model[S], T]], dict[str, str]]:
    """Do something with each model; one that fails does not stop the others.

    Returns:
        What came of each model that did not fail, and for each other's id why.

    Raises:
        Exception: every model failed; this is the first one's error.
    """
    done: list[tuple[Model[S], T]] = []
    failed: dict[str, Exception] = {}
    for model in models:
        try:
            done.append((model, work(model)))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one model is not the other's matter
            failed[model.id] = error
    if failed and not done:
        raise next(iter(failed.values()))
    return done, {name: " ".join(str(error).split()) or type(error).__name__ for name, error in failed.items()}


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the models made of a batch's events, each event by its place in the batch.

    Args:
        values: what each model predicted, by event and model id; nothing where a list has no items.
        errors: of events that no model predicted though one has what it needs: why.
        lacking: of events that lack features for every model: those that the first one lacks.
        failed: of each model that could not be used for the batch, why, by its id.
    """

    values: Mapping[int, Mapping[str, Mapping[str, Value]]]
    errors: Mapping[int, PredictionError]
    lacking: Mapping[int, Sequence[str]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def unscored(self, models: int) -> int:
        """How many predictions one of so many models did not make of an event that another one predicted."""
        return sum(models - len(each) for each in self.values.values())


def merged(made: Iterable[tuple[str, int, Mapping[str, Value] | PredictionError]]) -> Predicted:
    """What several models made of events, event by event: an error counts where no model has anything else.

    Args:
        made: model, event and what came of it, a model after the other.
    """
    values: dict[int, dict[str, Mapping[str, Value]]] = {}
    errors: dict[int, PredictionError] = {}
    for model, index, outcome in made:
        if isinstance(outcome, PredictionError):
            errors.setdefault(index, outcome)
        else:
            values.setdefault(index, {})[model] = outcome
    return Predicted(values=values, errors={index: error for index, error in errors.items() if index not in values})


class CurrentModels:
    """The versions that events are to be scored with now, loaded.

    A version that does not load is reported once, and the other one is scored with alone; if none of them loads, those
    before stay in use. So does a loaded one whose file was changed since, for what was proved is what is in memory.

    Args:
        answering: follows the generation that answers; None where there is none: then the alias's version is all.
    """

    def __init__(
        self, pipeline: Pipeline, settings: Settings, report: Report, answering: Answering | None = None
    ) -> None:
        self._pipeline = pipeline
        self._root = settings.models_dir
        self._report = report
        self._answering = answering
        self._standing = Standing()
        self._aliased: str | None = None
        self._loaded: dict[str, tuple[ModelVersion, Scorer]] = {}
        self._models: tuple[Model[Scorer], ...] = ()
        self._stamp: list[Stamp] | None = None
        self._checked_at: float | None = None
        self._said = ""
        self._lacking = ""
        self._failed: Mapping[str, str] = {}

    def warm(self, now_seconds: float) -> None:
        """Wait for the first word of which generation answers, then load.

        Raises:
            Unavailable: as `get`.
        """
        if self._answering is not None:
            self._answering.first()
        self.get(now_seconds)

    def get(self, now_seconds: float) -> tuple[Model[Scorer], ...]:
        """The models, that of the generation which answers first.

        Args:
            now_seconds: monotonic time.

        Raises:
            Unavailable: no version could be loaded yet; says why. Worth trying again: one may be registered.
        """
        standing = Standing() if self._answering is None else self._answering.standing()
        due = self._checked_at is None or now_seconds - self._checked_at >= RECHECK_SECONDS
        if due or standing != self._standing or not self._models:
            moved = standing.model != self._standing.model
            self._checked_at, self._standing = now_seconds, standing
            if moved or self._stamp is None or self._look() != self._stamp:
                self._follow()
            self._tell()
        return self._models

    def failed(self, why: Mapping[str, str]) -> None:
        """Take note of which models could not be used for a batch, and why, by id; each is said once until it works."""
        for model in why.keys() - self._failed.keys():
            self._report.warn(f"goes on without model {model}: {why[model]}")
        if why != self._failed:
            self._failed = dict(why)
            self._tell()

    def _tell(self) -> None:
        """Say to whoever asks how the worker is whether corrections reach readers, as far as that is known."""
        said = [self._lacking] if self._lacking else []
        if self._standing.why:
            said.append(f"which generation answers cannot be read: {self._standing.why}")
        said += [f"{m.id} fails: {self._failed[m.id]}" for m in self._models if m.answers and m.id in self._failed]
        self._report.lacks("; ".join(said))

    def _follow(self) -> None:
        from almanac.registry import Registry

        registry, why = Registry(self._root), list[str]()
        try:
            self._aliased = registry.identify(self._pipeline.model)
        except AlmanacError as error:
            why.append(str(error))
        answering = self._standing.model or self._aliased
        wanted = [found for found in dict.fromkeys((answering, self._aliased)) if found is not None]
        loaded = [found for found in wanted if self._load(registry, found, why)]
        if not loaded and not self._models:
            raise Unavailable("; ".join(why))
        if loaded:
            models = tuple(Model(found, self._loaded[found][1], found == answering) for found in loaded)
        else:
            models = self._models
        self._say(models, why)
        goes_on = any(model.id == answering for model in models)
        self._lacking = "" if goes_on else f"{answering}, which is to answer, is not scored with: {'; '.join(why)}"
        metrics.STREAM_MODELS.labels(self._pipeline.name).set(len(models))
        metrics.STREAM_CORRECTS.labels(self._pipeline.name).set(1 if goes_on else 0)
        self._models = models
        self._loaded = {found.id: self._loaded[found.id] for found in models}
        self._stamp = None if why else self._look()  # what failed is tried again, whatever its file says

    def _load(self, registry: Registry, model: str, why: list[str]) -> bool:
        """Load a version unless it is loaded; whether there is one to score with, and why not a better one."""
        from almanac.scoring import Scorer

        try:
            version = registry.version(model)
            if model not in self._loaded or self._loaded[model][0] != version:
                self._loaded[model] = (version, Scorer.load(version, self._pipeline))
        except AlmanacError as error:
            why.append(str(error))
        return model in self._loaded

    def _say(self, models: Sequence[Model[Scorer]], why: Sequence[str]) -> None:
        """A line where other models are scored with than before, and one where something else is the matter."""
        named = " and ".join(f"model {model.id}" for model in models)
        if [model.id for model in models] != [model.id for model in self._models]:
            self._report.warn(f"scores with {named}")
        said = "; ".join(dict.fromkeys(why))
        if said and said != self._said:
            self._report.warn(f"keeps {named}: {said}")
        self._said = said

    def _look(self) -> list[Stamp]:
        """What tells that the alias moved, or that a loaded version's file is another."""
        paths = [self._root / self._pipeline.model_name / ALIASES_FILE]
        paths += [version.path / MODEL_FILE for version, _ in self._loaded.values()]
        return [_stamp(path) for path in paths]


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
