"""The stages about outcomes: the recent past is gone through before the present is served; then errors are known."""

from __future__ import annotations

from typing import Any

from almanac.demo.world import World

REHEARSED_HOURS = 10
REHEARSED_HOURS_REAL = 14
"""How many hours back the rehearsal begins: with real observations further, for the sake of six hours ahead."""
UNTIL_HOURS = 6
"""How many hours back it ends: six hours after its last events is now, so that every event has both outcomes."""
ONE_HOUR, SIX_HOURS = "t2m_1h", "t2m_6h"


def rehearsal(world: World) -> None:
    """Batch and stream in turn, hour by hour, from features as they were."""
    hours = REHEARSED_HOURS if world.data is None else REHEARSED_HOURS_REAL
    world.run("rehearse", "weather", "--hours", str(hours), "--until", str(UNTIL_HOURS), show=True)


def outcomes(world: World) -> None:
    """The run for now brought the observations of the rehearsed moments: what was served, against them."""
    world.run("quality", "weather", show=True)
    paired = {row["output"]: row for row in world.json("quality", "weather")["paired"] if row["source"] == "stream"}
    _claim(world, paired.get(ONE_HOUR), "stream answers err less than the batch ones they stood in for, 1 hour ahead")
    if world.data is not None:
        _claim(world, paired.get(SIX_HOURS), "and 6 hours ahead")
    # Of the simulated atmosphere a few hours say too little about that far ahead: shown, and not claimed.


def _claim(world: World, row: dict[str, Any] | None, what: str) -> None:
    if row is None:
        world.report.claim(False, what, "no outcome")
        return
    world.report.claim(
        row["mae"] < row["beside_mae"],
        what,
        f"{row['output']} {row['mae']:.3f} K beside {row['beside_mae']:.3f} K over {row['n']:,} pairs",
    )
