"""`python -m almanac.demo [--pipeline shop] [--data FILE] [--keep]`: what `make demo` runs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from almanac.demo import lists, past, stages
from almanac.demo.report import DemoFailed, Report
from almanac.demo.world import World
from almanac.errors import AlmanacError
from almanac.plain_text import one_line
from almanac.settings import PROJECT_ROOT

STATE_DIR = ".almanac-demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every stage; 0 only if every claim held."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--pipeline", choices=("weather", "shop"), default="weather", help="which one to show")
    parser.add_argument("--data", type=Path, help="file of real observations: GRIB or Parquet; of shop's purchases")
    parser.add_argument("--keep", action="store_true", help="leave the stack running and print the addresses")
    parser.add_argument("--running", action="store_true", help="use the stack that runs, and a model that is in it")
    options = parser.parse_args(arguments)
    data = options.data.resolve() if options.data else None
    if data is not None and not data.is_file():
        print(f"almanac: {options.data} is not a file: give DATA=<GRIB or Parquet file>", file=sys.stderr)
        return 2
    state_dir = Path(os.environ.get("ALMANAC_STATE_DIR") or PROJECT_ROOT / STATE_DIR).resolve()
    declared = lists.DECLARED if options.pipeline == "shop" else None
    world = World(
        state_dir=state_dir, data=data, report=Report(), pipeline=options.pipeline, declared=declared,
        keep=options.keep, running=options.running,
    )  # fmt: skip
    failure: str | None = None
    try:
        (lists.show if options.pipeline == "shop" else show)(world)
    except AlmanacError as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "interrupted"
    finally:
        if options.keep:
            print_addresses(world)
        else:
            world.report.stage("almanac down")
            world.run("down", check=False)
    world.report.print_table()
    if data is not None and failure is None and options.pipeline == "weather":
        print_accuracy(world)
    if failure:
        print(f"almanac: the demonstration stopped: {one_line(failure)}", file=sys.stderr)
    return 0 if world.report.held and failure is None else 1


def show(world: World) -> None:
    """The stages, in order."""
    report = world.report
    stages.anew(world)
    report.stage("almanac train weather: LightGBM on Feast's historical features, converted to ONNX")
    # A run that begins on the hour would serve what is newer than the past that is gone through.
    with world.stillness("until the recent past has been rehearsed, so that nothing newer is served before it"):
        world.run("train", "weather", show=True)
        report.stage("the recent past is rehearsed: batch, then events through Kafka, hour by hour")
        past.rehearsal(world)
    report.stage("Airflow precomputes the grid")
    generation = stages.batch(world)
    stages.features_online(world)
    report.stage("what was predicted in the past is compared with what has been observed")
    past.outcomes(world)
    report.stage("the lookup service answers")
    cell = stages.fresh_lookup(world)
    report.stage("a Kafka event corrects one cell")
    # A run that publishes would change every cell, and renew what is to turn stale.
    with world.stillness("until all parts have returned, so that what changes is by events and outages alone"):
        stages.event_changes_one_cell(world, cell)
        stages.malformed_event(world)
        report.stage("parts are stopped")
        stages.outage(world, cell)
        report.stage("everything returns")
        stages.corrections_again(world, cell)
    stages.generations_again(world, cell, generation)


def print_accuracy(world: World) -> None:
    """The model's error on real observations beside the baselines' at each horizon, from its manifest."""
    from almanac.output import print_table

    newest = world.json("models", "weather")[-1]
    baselines = list(next(iter(newest["metrics"].values()))["baselines"])
    print_table(
        ["output", "model", *(name.replace("_", " ") for name in baselines), "model / better baseline"],
        [
            [output, f"{m['mae']:.3f}", *(f"{m['baselines'][name]:.3f}" for name in baselines), f"{m['ratio']:.3f}"]
            for output, m in newest["metrics"].items()
        ],
        title=f"Mean absolute error of {newest['id']} in kelvin, all cells and hours of the held-out window",
    )


def print_addresses(world: World) -> None:
    """Where a person can go on looking."""
    print("\nThe stack is left running. To go on:")
    for name, value in world.variables.items():
        print(f"  export {name}={shlex.quote(value)}")
    try:
        world.run("status", show=True, check=False)
        found = world.settings
        print(f"  Airflow UI   {found.airflow_url}  (user {found.airflow_username}, password in endpoints.json)")
        example = (
            "weather/point?lat=51.5&lon=-0.1" if world.pipeline == "weather" else f"{world.pipeline}/entities/nobody"
        )
        print(f"  lookup       {found.lookup_url}/v1/{example}")
    except (AlmanacError, DemoFailed) as error:
        print(f"  {error}")
    print("  almanac down stops it")


if __name__ == "__main__":
    sys.exit(main())
