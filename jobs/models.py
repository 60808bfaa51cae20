"""The model that a process scores with: made ready once, whatever number of shards it scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from almanac.pipeline import Pipeline
from almanac.registry import MODEL_FILE, ModelVersion

if TYPE_CHECKING:
    from almanac.scoring import Scorer

_held: list[tuple[Any, Scorer]] = []
"""The last one, and what it was loaded from and for."""


def scorer_of(version: ModelVersion, pipeline: Pipeline) -> Scorer:
    """The loaded model; that of the last call, if it is the same file for the same declaration.

    Its file is read and compared with its hash each time: a version whose file was
    changed is refused, whatever this process holds.

    Raises:
        ModelError: as `Scorer.load`.
    """
    from almanac.scoring import Scorer

    asked = (version, pipeline.features, pipeline.output_names, pipeline.entity)
    version.read(MODEL_FILE)
    if _held and _held[0][0] == asked:
        return _held[0][1]
    scorer = Scorer.load(version, pipeline)
    _held[:] = [(asked, scorer)]
    return scorer
