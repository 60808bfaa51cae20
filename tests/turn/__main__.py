"""Hours turn in a demonstration: `make turn [PIPELINE=shop]`, or `python -m tests.turn --turn 3:within --turn 8:after`.

Without `--turn` it is shown again and again, until an hour has turned before, within and after each of its stages.
With `--quick` one of those times of both demonstrations is shown, and another one at each commit.
The files that `ALMANAC_PIPELINES` names are declared; by default the small ones of the acceptance tests.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import get_args

from almanac.declarations import pipelines
from almanac.demo import __main__ as demonstration
from almanac.settings import load_settings
from tests.proofs.plan import commits
from tests.turn import clock
from tests.turn.demonstration import At, TurningReport, Where, turning
from tests.turn.scheduler import Scheduler

SMALL = [Path(__file__).parents[1] / "acceptance" / name for name in ("tiny_weather.py", "tiny_shop.py")]
STAGES_IN_TURN: dict[str, tuple[range, ...]] = {
    "weather": (range(1, 4), range(4, 7), range(7, 10)),
    "shop": (range(1, 3), range(3, 4), range(4, 7)),
}
"""Of each range one hour turns at a time: as in the world, an hour turns only once Airflow may have run since."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Show it; 0 only if every claim held, each time."""
    parser = argparse.ArgumentParser(prog="python -m tests.turn", description=__doc__)
    parser.add_argument("--pipeline", choices=("weather", "shop"), default="weather")
    parser.add_argument("--turn", type=At.parse, action="append", help="where an hour turns: 3:within")
    parser.add_argument("--quick", action="store_true", help="show one demonstration once")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    parser.add_argument("--running", action="store_true", help="use the stack that runs")
    parser.add_argument("--own", action="store_true", help="start no runs of other pipelines")
    options = parser.parse_args(arguments)
    rest = ["--keep"] * options.keep + ["--running"] * options.running
    if options.quick:
        options.pipeline, options.turn = quick(commits())
    passes = [options.turn] if options.turn else list(everywhere(STAGES_IN_TURN[options.pipeline]))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("ALMANAC_STATE_DIR", folder)
        os.environ.setdefault(clock.VARIABLE, str(Path(os.environ["ALMANAC_STATE_DIR"]).with_suffix(".clock")))
        os.environ.setdefault("ALMANAC_PIPELINES", ",".join(map(str, SMALL)))
        if clock.__file__ not in os.environ["ALMANAC_PIPELINES"]:
            os.environ["ALMANAC_PIPELINES"] += f",{clock.__file__}"
        path = Path(os.environ[clock.VARIABLE])
        given = path.exists()
        clock.write(path, clock.read(path) if given else 0.0)
        clock.follow(path)
        failed = []
        for turns in passes:
            if not given:
                clock.write(path, clock.behind(len(turns)))
            tags = [f"pipeline:{name}" for name in ([options.pipeline] if options.own else pipelines())]
            if not show(options.pipeline, turns, rest, tags):
                failed.append(turns)
    for turns in failed:
        print(f"did not hold: {' '.join(f'--turn {at.stage}:{at.where}' for at in turns)}", file=sys.stderr)
    return 1 if failed else 0


def everywhere(ranges: Sequence[range]) -> Iterator[list[At]]:
    """The places of each time that it is shown: one of each range of stages, until each has been."""
    places = [[At(stage, where) for stage in stages for where in get_args(Where)] for stages in ranges]
    for turns in zip_longest(*places):
        yield [at for at in turns if at is not None]


def quick(number: int) -> tuple[str, list[At]]:
    """One of the times that either demonstration is shown; as many numbers as there are of them name each once."""
    every = [(pipeline, turns) for pipeline, ranges in STAGES_IN_TURN.items() for turns in everywhere(ranges)]
    return every[number % len(every)]


def show(pipeline: str, turns: Sequence[At], options: Sequence[str], tags: Sequence[str]) -> bool:
    """Show it once, with hours that turn at some places; whether all was claimed, held, and turned."""
    state = Path(os.environ["ALMANAC_STATE_DIR"])
    scheduler = Scheduler(Path(os.environ[clock.VARIABLE]), lambda: load_settings(state_dir=state), tags)
    report = TurningReport(turns=turns, scheduler=scheduler)
    with turning(report):
        code = demonstration.main(["--pipeline", pipeline, *options])
        report.finish()
    scheduler.end()
    dags = sorted({dag for dag, _ in scheduler.runs})
    print(
        f"{scheduler.turns} hours turned, at {scheduler.under_way} of them a run was under way; "
        f"{len(scheduler.runs)} runs were started as scheduled: {', '.join(dags) or 'none'}",
        flush=True,
    )
    if code == 0 and "--running" not in options:
        shown = report.number if "--keep" in options else report.number - 1  # the last one takes the stack down
        assert shown == STAGES_IN_TURN[pipeline][-1].stop - 1, f"{shown} stages: bring STAGES_IN_TURN up to date"
    return code == 0 and set(report.done) == set(turns)


if __name__ == "__main__":
    sys.exit(main())
