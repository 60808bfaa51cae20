"""The model that the stream scores with: it follows the registry's alias while the worker runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from almanac.errors import AlmanacError, Unavailable
from almanac.pipeline import Pipeline
from almanac.registry import MODEL_FILE
from almanac.settings import Settings
from streaming.report import Report

if TYPE_CHECKING:
    from almanac.registry import ModelVersion
    from almanac.scoring import Scorer

RECHECK_SECONDS = 2.0
"""How often the alias file and the model's are looked at."""

Stamp = tuple[int, int, int] | None


class CurrentModel:
    """The version that the pipeline's alias names, loaded.

    A version that does not load is reported once and the one before stays in use; so does a loaded one whose file
    was changed since, for what was proved is what is in memory.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, report: Report) -> None:
        self._pipeline = pipeline
        self._root = settings.models_dir
        self._report = report
        self._loaded: tuple[ModelVersion, Scorer] | None = None
        self._stamp: list[Stamp] = []
        self._checked_at: float | None = None
        self._said = ""

    def get(self, now_seconds: float) -> tuple[str, Scorer]:
        """The version's id and its scorer.

        Args:
            now_seconds: monotonic time.

        Raises:
            Unavailable: no version could be loaded yet; says why. Worth trying again: one may be registered.
        """
        if self._checked_at is None or now_seconds - self._checked_at >= RECHECK_SECONDS or self._loaded is None:
            self._checked_at = now_seconds
            self._follow()
        if self._loaded is None:
            raise Unavailable(f"model {self._pipeline.model} is not loaded: see `almanac models`")
        version, scorer = self._loaded
        return version.id, scorer

    def _follow(self) -> None:
        from almanac.registry import Registry
        from almanac.scoring import Scorer

        stamp = self._look()
        if stamp == self._stamp and self._loaded is not None:
            return
        try:
            version = Registry(self._root).resolve(self._pipeline.model)
            if self._loaded is None or self._loaded[0] != version:
                self._loaded = (version, Scorer.load(version, self._pipeline))
                self._report.warn(f"scores with model {version.id}")
            self._stamp, self._said = self._look(), ""
        except AlmanacError as error:
            if self._loaded is None:
                raise Unavailable(str(error)) from error
            if str(error) != self._said:
                self._said = str(error)
                self._report.warn(f"keeps model {self._loaded[0].id}: {error}")

    def _look(self) -> list[Stamp]:
        """What tells that the alias moved, or that the loaded version's file is another."""
        paths = [self._root / self._pipeline.model_name / "aliases.json"]
        if self._loaded is not None:
            paths.append(self._loaded[0].path / MODEL_FILE)
        return [_stamp(path) for path in paths]


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
