"""What the batch job's time and memory do when the world grows: seconds for each further row, and the most memory.

    make bench NAME=growth

The job is that of `NAME=batch`, in a fresh process for each size, so that its
memory is its own; warm, on one core, servers on the other. `marginal_us` is
what each further row takes from one size to the next, in microseconds;
`growth` is that of the last step over that of the first, and should be 1.
`peak_mb` is the most that the process and its children had at once, gates
included. The plot is written as a PNG: into the docs at full size, into the cache otherwise.

World: 100,000, 1,000,000 and 10,000,000 cells (`--rows` for the last), 4 hours of offline history.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from almanac.registry import Registry
from almanac.settings import load_settings
from benchmarks.batch import Job
from benchmarks.join import watched
from benchmarks.measuring import Cores, finish, machine, on_core, options, run, say, significant
from benchmarks.reference import World, make_world, reference_pipeline, trees_of
from benchmarks.servers import running_servers

ROWS, ROWS_QUICK = 10_000_000, 40_000
STEPS = (100, 10, 1)
"""Parts of the last size: the sizes."""
ROUNDS = 3
LONG_ROWS = 3_000_000
"""A size from which on one round is as long as several of the others."""
MEMORY_MB_MAX = 3 * 1024**3 / 1e6
GROWTH_MAX = 1.05
PLOT = Path(__file__).resolve().parent.parent / "docs" / "growth.png"


def measured(cells: int, trees: int, rounds: int, cores: Cores) -> dict[str, Any]:
    """One size: its figures, medians over the rounds, in a process and on servers of its own."""
    with running_servers(cores) as settings:
        say(f"making a world of {cells:,} cells")
        world = make_world(settings, cells, trees=trees)
        told = {"cells": cells, "as_of": world.as_of.isoformat(), "rounds": rounds, "core": cores.measured}
        before = dict(os.environ)
        os.environ.update(world.environment())
        try:
            command = [sys.executable, "-m", "benchmarks.growth", "--inside", json.dumps(told)]
            found, peak = watched(command, f"the run of {cells:,} cells")
        finally:
            os.environ.clear()
            os.environ.update(before)
    figures = {"rows": world.grid.cells, **found, "peak_mb": peak}
    say("  ".join(f"{name} {significant(value)}" for name, value in figures.items()))
    return figures


def inside(told: Mapping[str, Any]) -> dict[str, float]:
    """Be the process that is measured: seconds of a run without and with its gates, and of processor time."""
    logging.disable(logging.WARNING)
    settings = load_settings()
    pipeline = reference_pipeline(told["cells"])
    version = Registry(settings.models_dir).resolve(pipeline.model)
    world = World(pipeline=pipeline, settings=settings, version=version, as_of=datetime.fromisoformat(told["as_of"]))
    with on_core(told["core"]):
        job = Job(world)
        job.warm()
        runs = [job.run() for _ in range(told["rounds"])]
    cells = world.grid.cells
    return {
        "seconds": statistics.median(cells / one["rate"] for one in runs),
        "with_gates": statistics.median(one["seconds"] for one in runs),
        "cpu": statistics.median(one["cpu"] for one in runs),
    }


def marginal(sizes: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """Microseconds for each further row, from each size to the next."""
    return [1e6 * (after[key] - before[key]) / (after["rows"] - before["rows"]) for before, after in pairwise(sizes)]


def plotted(sizes: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw seconds and memory over rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [one["rows"] for one in sizes]
    figure, (time_of, memory_of) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    time_of.loglog(rows, [one["seconds"] for one in sizes], "o-", label="without gates")
    time_of.loglog(rows, [one["with_gates"] for one in sizes], "s--", label="with gates")
    time_of.set(xlabel="rows", ylabel="seconds", title="a whole batch run")
    time_of.legend()
    memory_of.semilogx(rows, [one["peak_mb"] for one in sizes], "o-")
    memory_of.axhline(MEMORY_MB_MAX, linestyle=":", color="grey")
    memory_of.set(xlabel="rows", ylabel="MB", title="most memory of its process", ylim=(0, MEMORY_MB_MAX * 1.1))
    for axes in (time_of, memory_of):
        axes.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main() -> None:
    """Measure each size, draw, and print the line; or be the process that is measured."""
    if len(sys.argv) > 1 and sys.argv[1] == "--inside":
        print(json.dumps(inside(json.loads(sys.argv[2]))))
        return
    asked = options(__doc__, rounds=ROUNDS)
    rows, trees, cores = asked.size(ROWS, ROWS_QUICK), trees_of(asked.quick), Cores.choose()
    counts = [max(1, rows // part) for part in STEPS]
    sizes = [measured(count, trees, 1 if count >= LONG_ROWS else asked.rounds, cores) for count in counts]
    path = PLOT if rows == ROWS and not asked.quick else load_settings().cache_dir / "bench" / PLOT.name
    plotted(sizes, path)
    say(f"the plot is {path}")
    further = marginal(sizes, "seconds")
    peak = max(one["peak_mb"] for one in sizes)
    finish(
        {
            "name": "growth",
            "unit": "us/row",
            "ours": further[-1],
            "marginal_us": further,
            "marginal_cpu_us": marginal(sizes, "cpu"),
            "growth": further[-1] / further[0],
            "growth_max": GROWTH_MAX,
            "sizes": {f"{one['rows']:.0f}": {name: one[name] for name in one if name != "rows"} for one in sizes},
            "memory_mb": peak,
            "memory_mb_max": MEMORY_MB_MAX,
            "within": further[-1] / further[0] <= GROWTH_MAX and peak < MEMORY_MB_MAX,
            "plot": path.name,
            "trees": trees,
            **machine(cores),
        }
    )


if __name__ == "__main__":
    run(main)
