"""What a run costs, from what the stages of earlier runs took: pure arithmetic over their records."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving_cache.stage_times import StageTime

STAGES_LOOKED_AT_MAX = 500
"""Records of stages, the newest, that a cost is taken from."""
BY_ROW = ("gate_features", "score", "gate_predictions")
BY_RUN = ("plan", "publish", "clean_up")
SCORING = "score"
NOT_BY_ROW = ("model", SCORING)
"""Steps of a stage that do not grow with all its rows."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that a run takes, Airflow's own apart.

    Attributes:
        run: whatever is scored: planning, publishing, cleaning up.
        shard: of each shard: loading the model.
        row: of each row, on one core: features, gates, scoring, staging.
        scored: share of the rows of the newest run that were scored, the others having the inputs that they had; `row`
            reckons with it.
    """

    run: float
    shard: float
    row: float
    scored: float = 1.0

    def seconds(self, rows: float, shards: int) -> float:
        """An estimate for a run."""
        return self.run + shards * self.shard + rows * self.row


def measured(records: Iterable[StageTime]) -> Costs | None:
    """The costs that records of stages speak of; None before the first run has scored something."""
    records = list(records)
    by_stage: dict[str, list[StageTime]] = {}
    for found in records:
        by_stage.setdefault(found.stage, []).append(found)
    scored = [found for found in by_stage.get("score", []) if found.rows]
    if not scored:
        return None
    loading = [found.steps.get("model", 0.0) for found in scored]
    rows = [_by_row(by_stage.get(stage, [])) for stage in BY_ROW]
    newest = max(found.generation or 0 for found in scored)
    last = [found for found in scored if (found.generation or 0) == newest]
    share = 1 - sum(found.unchanged for found in last) / sum(found.rows for found in last)
    return Costs(
        run=sum(statistics.median(one.seconds for one in by_stage[stage]) for stage in BY_RUN if stage in by_stage),
        shard=statistics.median(loading),
        row=sum(rows) + share * _by_scored_row(scored),
        scored=share,
    )


def _by_row(records: Sequence[StageTime]) -> float:
    """Seconds of each row, whether it is scored or not."""
    rows = sum(found.rows for found in records)
    seconds = sum(
        found.seconds - sum(found.steps.get(name, 0.0) for name in NOT_BY_ROW) for found in records if found.rows
    )
    return seconds / rows if rows else 0.0


def _by_scored_row(records: Sequence[StageTime]) -> float:
    """Seconds of each row that is scored; nothing is known where none was."""
    rows = sum(found.rows - found.unchanged for found in records)
    return sum(found.steps.get(SCORING, 0.0) for found in records) / rows if rows else 0.0
