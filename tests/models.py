"""Descriptions of models whose making nobody asks about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from almanac.manifest import Description, Input, Parity, Window

MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def description(features: str, inputs: Sequence[str], outputs: Sequence[str]) -> Description:
    """A model of one row."""
    return Description(
        features=features,
        inputs=tuple(Input(name=name) for name in inputs),
        outputs=tuple(outputs),
        training=Window(start=MOMENT, end=MOMENT),
        held_out=Window(start=MOMENT, end=MOMENT),
        rows=1,
        seed=1,
        parity=Parity(rows=1, difference_max=0.0, tolerance=1e-3),
        metrics={},
        references={},
        libraries={},
    )
