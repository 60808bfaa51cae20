"""A run in which nothing changed, beside the full one: seconds, without Airflow.

    make bench NAME=rerun

Both are the batch job of `NAME=batch`, gates included, warm, in one process. The
full run scores everything; the unchanged one finds by the digest of the files
that it need not, carries every partition forward by reference, and publishes.
`by_features` is the run between: the files were written anew with the same
rows, so that only the digests of the features tell that nothing changed.

World: 1,000,000 cells (`--rows`), 4 hours of offline history.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from almanac.errors import StackError
from benchmarks.batch import Job
from benchmarks.measuring import Cores, finish, in_turn, machine, median, on_core, options, ratio, run, say
from benchmarks.reference import World, make_world, trees_of
from benchmarks.servers import running_servers
from features.identity import SETTLED_SECONDS

ROWS, ROWS_QUICK = 1_000_000, 4_000
ROUNDS = 3


class Rerun:
    """Runs of one world, full and unchanged."""

    def __init__(self, world: World) -> None:
        self._world, self._job = world, Job(world)

    def full(self) -> dict[str, Any]:
        """Everything is scored."""
        return self._job.run()

    def unchanged(self) -> dict[str, Any]:
        """Nothing changed since the run before.

        Raises:
            StackError: something was scored all the same.
        """
        found = self._job.run(anew=False)
        if found["scored"]:
            raise StackError(f"{found['scored']} rows were scored though nothing changed: look at the digests")
        return found

    def by_features(self) -> dict[str, Any]:
        """Every file looks changed, and none is."""
        for path in self._files():
            os.utime(path)
        time.sleep(SETTLED_SECONDS)
        return self.unchanged()

    def _files(self) -> list[Path]:
        return sorted((self._world.settings.features_dir / self._world.pipeline.name).glob("*/*.parquet"))


def main() -> None:
    """Measure and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores, trees = Cores.choose(), trees_of(asked.quick)
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        say("making the world: features, model, tables")
        world = make_world(settings, asked.size(ROWS, ROWS_QUICK), trees=trees)
        time.sleep(SETTLED_SECONDS)
        stack.enter_context(on_core(cores.measured))
        runs = Rerun(world)
        runs.full()  # imports, caches, connections
        found = in_turn({"full": runs.full, "unchanged": runs.unchanged, "by_features": runs.by_features}, asked.rounds)
        full, ours = median(found["full"], "seconds"), median(found["unchanged"], "seconds")
        finish(
            {
                "name": "rerun",
                "unit": "s",
                "ours": ours,
                "full": full,
                "ratio_full": ratio(full, ours),
                "share": ours / full,
                "by_features": median(found["by_features"], "seconds"),
                "rows": world.grid.cells,
                "trees": trees,
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
