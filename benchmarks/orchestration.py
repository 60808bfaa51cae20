"""What Airflow costs a run: the time of a DAG's run less what its tasks did in it, beside one mapped task a partition.

    make bench NAME=orchestration

A real Airflow, configured as `almanac up` does it, runs the pipeline's real DAG. `work_seconds` is what the run's
stages recorded of themselves, one after the other, shards two at a time; `overhead_seconds` is all the rest of the
run: scheduling, process starts, imports, what lies between tasks. `beyond_warm_seconds` is the run less the same steps
as functions of one process that has done them before. The peer's DAG maps a task over every partition and does
nothing in it, on the same Airflow; `ratio_peer` is its time over our overhead.

`share_of_run` is that of a run of 10,000,000 rows, which is reckoned, and rather too large: scoring grows with the
rows and nothing else does, two shards are at work at once, and each further one costs what a task of the peer's
does. `--rows` sets the number of partitions, of 256 rows each: with 39,100 of them the run itself has ten million rows.

World: 1,000 partitions (`--rows`), 4 hours of offline history.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from almanac.airflow_api import AirflowApi
from almanac.clock import PARTITION_KEY_FORMAT, parse_time
from almanac.errors import StackError
from almanac.settings import Settings
from almanac.stack import postgres
from almanac.stack.servers import running_airflow
from benchmarks.batch import Job
from benchmarks.measuring import Cores, finish, machine, options, ratio, run, say
from benchmarks.reference import NAME, TILE, World, make_world, trees_of
from benchmarks.servers import running_servers
from jobs.shards import SHARD_SECONDS, SHARDS_AT_ONCE

PARTITIONS, PARTITIONS_QUICK = 1_000, 20
ROUNDS = 3
AT_ROWS = 10_000_000
RUN_SECONDS_MAX = 3_600.0
PARSED_SECONDS_MAX = 120.0
POLL_SECONDS = 0.5
PEER = "one_task_a_partition"
ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "dags" / "almanac_pipelines.py", ROOT / "benchmarks" / "airflow" / f"{PEER}.py")
# Shards as they are cut for anyone, by what earlier runs took.
DECLARATION = """
from dataclasses import replace
from benchmarks.reference import reference_pipeline

reference = replace(reference_pipeline({cells}), shard_partitions=None)
"""


class Orchestra:
    """Runs of our DAG and of the peer's, on one Airflow."""

    def __init__(self, world: World, settings: Settings, airflow: AirflowApi) -> None:
        self._world, self._settings, self._airflow = world, settings, airflow

    def wait_parsed(self) -> None:
        """Wait until Airflow knows both DAGs.

        Raises:
            StackError: it does not get to know them.
        """
        give_up_at = time.monotonic() + PARSED_SECONDS_MAX
        while not (self._airflow.has_dag(NAME) and self._airflow.has_dag(PEER)):
            if time.monotonic() > give_up_at:
                raise StackError("Airflow does not find the DAGs: look at its import errors")
            time.sleep(POLL_SECONDS)

    def ours(self) -> dict[str, Any]:
        """One run that scores everything: its seconds, and those that its stages worked."""
        seconds = self._run(NAME, self._world.as_of.strftime(PARTITION_KEY_FORMAT), {"anew": True})
        stages = self._stages()
        shards = stages.pop("score")
        abreast = max(max(shards), sum(shards) / SHARDS_AT_ONCE)
        work = sum(map(sum, stages.values())) + abreast
        return {
            "seconds": seconds,
            "work_seconds": work,
            "overhead_seconds": seconds - work,
            "shards": len(shards),
            "stages": {"score": sum(shards)} | {name: sum(spent) for name, spent in stages.items()},
        }

    def peer(self) -> float:
        """One run that maps a task over every partition: its seconds, in which nothing is done."""
        return self._run(PEER, None, {})

    def _run(self, dag: str, key: str | None, params: dict[str, Any]) -> float:
        started = self._airflow.trigger(dag, partition_key=key, note="a benchmark", params=params)
        give_up_at = time.monotonic() + RUN_SECONDS_MAX
        while True:
            found = self._airflow.call("GET", f"/dags/{dag}/dagRuns/{started}")
            if found["state"] == "success":
                return (parse_time(found["end_date"]) - parse_time(found["queued_at"])).total_seconds()
            if found["state"] == "failed" or time.monotonic() > give_up_at:
                why = self._airflow.why_failed(dag, started)
                raise StackError(f"run {started} of {dag} is {found['state']} ({why}): see Airflow's logs")
            time.sleep(POLL_SECONDS)

    def _stages(self) -> dict[str, list[float]]:
        """Seconds of each stage of the current generation's run, but that of another DAG beside it."""
        from serving_cache.postgres import PostgresStore

        with PostgresStore(self._settings.need("postgres_url")) as store:
            pointer = store.pointer(NAME)
            assert pointer is not None  # noqa: S101  (a run was published)
            found: dict[str, list[float]] = {}
            for one in store.stage_times(NAME, pointer.generation.generation):
                found.setdefault(one.stage, []).append(one.seconds)
        found.pop("materialize", None)
        return found


def at_rows(ours: dict[str, Any], rows: int, peer_seconds: float | None, partitions: int) -> dict[str, float]:
    """What a run of `AT_ROWS` rows is reckoned to take, and how much of it is Airflow's."""
    scoring = ours["stages"]["score"] * AT_ROWS / rows
    shards = max(ours["shards"], math.ceil(scoring / SHARD_SECONDS))
    work = sum(seconds for name, seconds in ours["stages"].items() if name != "score") + scoring / SHARDS_AT_ONCE
    each = 0.0 if peer_seconds is None else peer_seconds / partitions
    overhead = ours["overhead_seconds"] + (shards - ours["shards"]) * each
    return {"rows": AT_ROWS, "seconds": work + overhead, "overhead_seconds": overhead, "shards": shards}


def result_of(found: list[dict[str, Any]], warm: float, peer: float | None, world: World) -> dict[str, Any]:
    """The JSON line, of the run with the median overhead."""
    rows, partitions = world.grid.cells, world.pipeline.partitions.count
    ours = sorted(found, key=lambda one: float(one["overhead_seconds"]))[len(found) // 2]
    large = at_rows(ours, rows, peer, partitions)
    return {
        "name": "orchestration",
        "unit": "s",
        **ours,
        "beyond_warm_seconds": ours["seconds"] - warm,
        "share": ours["overhead_seconds"] / ours["seconds"],
        "peer": peer,
        "ratio_peer": ratio(peer, ours["overhead_seconds"]),
        "share_of_run": large["overhead_seconds"] / large["seconds"],
        "large_run": large,
        "partitions": partitions,
        "rows": rows,
        "rounds": len(found),
    }


def airflow_of(world: World, stack: ExitStack) -> Settings:
    """Start Airflow with our DAG and the peer's; returns settings that have its address."""
    settings = world.settings
    dags = settings.state_dir / "dags"
    dags.mkdir()
    for file in FILES:
        shutil.copy(file, dags)
    port = urlsplit(settings.need("postgres_url")).port or 0
    database = postgres.url(settings.state_dir, port, "airflow", "postgresql+psycopg2")
    variables = {
        **world.environment(),
        "BENCH_PARTITIONS": str(world.pipeline.partitions.count),
        "AIRFLOW__CORE__MAX_MAP_LENGTH": str(world.pipeline.partitions.count),  # 1,024 unless the peer is let have more
    }
    return stack.enter_context(running_airflow(settings, database, dags, variables))


def main() -> None:
    """Measure and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores = Cores.choose()
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        cells = asked.size(PARTITIONS, PARTITIONS_QUICK) * TILE**2
        world = make_world(settings, cells, trees=trees_of(asked.quick))
        Path(world.settings.pipelines).write_text(DECLARATION.format(cells=cells))
        job = Job(world)
        warm = statistics.median([job.run()["seconds"] for _ in range(2)][1:])
        say(
            f"{world.grid.cells:,} rows in {world.pipeline.partitions.count:,} partitions: {warm:.1f} s without Airflow"
        )
        with_airflow = airflow_of(world, stack)
        orchestra = Orchestra(world, with_airflow, stack.enter_context(AirflowApi(with_airflow)))
        orchestra.wait_parsed()
        orchestra.ours()  # the scheduler's own first run
        found = []
        for number in range(asked.rounds):
            found.append(orchestra.ours())
            say(f"round {number + 1}/{asked.rounds}  " + "  ".join(f"{k} {v}" for k, v in found[-1].items()))
        peer = orchestra.peer() if asked.peers else None
        finish({**result_of(found, warm, peer, world), **machine(cores)})


if __name__ == "__main__":
    run(main)
