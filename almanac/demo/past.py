"""The stages about outcomes: the recent past is gone through before the present is served; then errors are known."""

from __future__ import annotations

from almanac.airflow_api import AirflowApi
from almanac.demo.stages import DAG_PARSED_SECONDS
from almanac.demo.world import World

REHEARSED_HOURS = 10
"""How many hours back the rehearsal begins."""
UNTIL_HOURS = 6
"""How many hours back it ends: six hours after its last events is now, so that every event has both outcomes."""
COMPARED = ("t2m_1h", "t2m_6h")


def rehearsal(world: World) -> None:
    """Batch and stream in turn, hour by hour, from features as they were."""
    with AirflowApi(world.settings) as airflow:
        world.wait_for(
            "Airflow parsing the DAG", lambda: airflow.has_dag("weather") or None, seconds=DAG_PARSED_SECONDS
        )
    world.run("rehearse", "weather", "--hours", str(REHEARSED_HOURS), "--until", str(UNTIL_HOURS), show=True)


def outcomes(world: World) -> None:
    """The run for now brought the observations of the rehearsed moments: what was served, against them."""
    world.run("quality", "weather", show=True)
    paired = {row["output"]: row for row in world.json("quality", "weather")["paired"] if row["source"] == "stream"}
    rows = [paired[output] for output in COMPARED if output in paired]
    evidence = "; ".join(
        f"{row['output']} {row['mae']:.3f} K beside {row['beside_mae']:.3f} K over {row['n']:,} pairs" for row in rows
    )
    world.report.claim(
        len(rows) == len(COMPARED) and all(row["mae"] < row["beside_mae"] for row in rows),
        "stream answers err less than the batch ones they stood in for, 1 and 6 hours ahead",
        evidence or "no outcome",
    )
