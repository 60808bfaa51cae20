"""What Airflow costs a run: the time of a DAG's run less what its tasks did in it, beside one mapped task a partition.

    make bench NAME=orchestration

A real Airflow, configured as `almanac up` does it, runs the pipeline's real DAG. `overhead_seconds` are those of the
run in which none of its stages was at work: scheduling, process starts, imports, what lies between tasks.
`one_slot_seconds` are those in which one shard was at work and another one could have been. `beyond_warm_seconds` is
the run less the same steps as functions of one process that has done them before. The peer's DAG maps a task over
every partition and does nothing in it, on the same Airflow; `ratio_peer` is its time over our overhead.

`share_of_run` is that of a run of 10,000,000 rows. It is reckoned, from runs of the world's rows in as many shards as
they are cut into and in eight, and rather too large: as if two shards at once took half the time of one after the
other. `--rows` sets the number of partitions, of 256 rows each: with 39,100 of them the run itself has ten million
rows, nothing is reckoned, and it is measured once.

World: 1,000 partitions (`--rows`), 4 hours of offline history.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from almanac.airflow_api import AirflowApi
from almanac.clock import PARTITION_KEY_FORMAT, parse_time
from almanac.errors import StackError, Unavailable
from almanac.settings import Settings
from almanac.stack import postgres
from almanac.stack.servers import running_airflow
from benchmarks.batch import Job
from benchmarks.measuring import Cores, finish, machine, options, ratio, run, say
from benchmarks.reference import NAME, TILE, World, make_world, trees_of
from benchmarks.servers import running_servers
from jobs.shards import SHARD_ROWS_MAX, SHARD_SECONDS, SHARDS_AT_ONCE

if TYPE_CHECKING:
    from serving_cache.stage_times import StageTime

PARTITIONS, PARTITIONS_QUICK = 1_000, 20
ROUNDS = 3
AT_ROWS = 10_000_000
RUN_SECONDS_MAX = 3_600.0
PARSED_SECONDS_MAX = 120.0
POLL_SECONDS = 0.5
PEER = "one_task_a_partition"
ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "dags" / "almanac_pipelines.py", ROOT / "benchmarks" / "airflow" / f"{PEER}.py")
# Without a number of partitions, shards are cut as for anyone: by what earlier runs took.
DECLARATION = """
from dataclasses import replace
from benchmarks.reference import reference_pipeline

reference = replace(reference_pipeline({cells}), shard_partitions={partitions})
"""
TURNS = 4  # of shards at once, in the run that shows what each further turn costs
ONCE = ("plan", "clean_up")  # stages that do not grow with the rows
LARGE_ROWS = 1_000_000  # from here on one run goes before the measured ones, and Airflow's own first run scores nothing


class Orchestra:
    """Runs of our DAG and of the peer's, on one Airflow; `cells` is what the declaration was asked for."""

    def __init__(self, world: World, cells: int, settings: Settings, airflow: AirflowApi) -> None:
        self._world, self._cells, self._settings, self._airflow = world, cells, settings, airflow

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

    def ours(self, shards: int | None = None) -> dict[str, Any]:
        """One run that scores everything: its seconds, and those that its stages worked.

        Args:
            shards: to cut it into; None for as many as anyone's run is cut into.
        """
        partitions = None if shards is None else math.ceil(self._world.pipeline.partitions.count / shards)
        declaration = DECLARATION.format(cells=self._cells, partitions=partitions)
        Path(self._world.settings.pipelines).write_text(declaration)
        seconds = self._run(NAME, self._world.as_of.strftime(PARTITION_KEY_FORMAT), {"anew": True})
        times = self._times()
        stages: dict[str, float] = {}
        for one in times:
            stages[one.stage] = stages.get(one.stage, 0.0) + one.seconds
        scored = [one for one in times if one.stage == "score"]
        work = covered(times)
        return {
            "seconds": seconds,
            "work_seconds": work,
            "overhead_seconds": seconds - work,
            "one_slot_seconds": 2 * covered(scored) - stages["score"] if len(scored) > 1 else 0.0,
            "shards": len(scored),
            "stages": stages,
        }

    def first(self, *, anew: bool) -> None:
        """The scheduler's own first run.

        Args:
            anew: scores everything; else finds that nothing changed, which takes seconds however many rows there are.
        """
        self._run(NAME, self._world.as_of.strftime(PARTITION_KEY_FORMAT), {"anew": anew})

    def peer(self) -> float:
        """One run that maps a task over every partition: its seconds, in which nothing is done."""
        return self._run(PEER, None, {})

    def _run(self, dag: str, key: str | None, params: dict[str, Any]) -> float:
        started = self._airflow.trigger(dag, partition_key=key, note="a benchmark", params=params)
        give_up_at = time.monotonic() + RUN_SECONDS_MAX
        while True:
            found: dict[str, Any] = {"state": "not known"}
            with suppress(Unavailable):  # its API may be slow while the cores are at work; its times are its own
                found = self._airflow.call("GET", f"/dags/{dag}/dagRuns/{started}")
            if found["state"] == "success":
                return (parse_time(found["end_date"]) - parse_time(found["queued_at"])).total_seconds()
            if found["state"] == "failed" or time.monotonic() > give_up_at:
                why = self._airflow.why_failed(dag, started)
                raise StackError(f"run {started} of {dag} is {found['state']} ({why}): see Airflow's logs")
            time.sleep(POLL_SECONDS)

    def _times(self) -> list[StageTime]:
        """The stages of the current generation's run, but that of another DAG beside it."""
        from serving_cache.postgres import PostgresStore

        with PostgresStore(self._settings.need("postgres_url")) as store:
            pointer = store.pointer(NAME)
            assert pointer is not None  # noqa: S101  (a run was published)
            found = store.stage_times(NAME, pointer.generation.generation)
        return [one for one in found if one.stage != "materialize"]


def covered(times: Sequence[StageTime]) -> float:
    """Seconds in which at least one stage was at work."""
    total, reached = 0.0, -math.inf
    for one in sorted(times, key=lambda one: one.started_at):
        began = one.started_at.timestamp()
        total += max(0.0, began + one.seconds - max(began, reached))
        reached = max(reached, began + one.seconds)
    return total


def at_rows(ours: dict[str, Any], turns: dict[str, Any], rows: int) -> dict[str, float]:
    """What a run of `AT_ROWS` rows is reckoned to take at least, and how much of it is Airflow's.

    Args:
        ours, turns: runs of so many rows, in as many shards as they are cut into, and in `TURNS` turns of shards.
    """
    scale, stages = AT_ROWS / rows, ours["stages"]
    scoring = stages["score"] * scale
    shards = max(math.ceil(scoring / SHARD_SECONDS), math.ceil(AT_ROWS / SHARD_ROWS_MAX))
    count = math.ceil(shards / SHARDS_AT_ONCE)
    each = max(0.0, turns["overhead_seconds"] - ours["overhead_seconds"]) / (TURNS - 1)
    overhead = ours["overhead_seconds"] + (count - 1) * each
    once = sum(stages.get(name, 0.0) for name in ONCE)
    work = once + (sum(stages.values()) - once - stages["score"]) * scale + scoring / SHARDS_AT_ONCE
    return {
        "rows": AT_ROWS, "seconds": work + overhead, "overhead_seconds": overhead, "shards": count * SHARDS_AT_ONCE,
        "turn_seconds": each,
    }  # fmt: skip


def middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median overhead."""
    return sorted(found, key=lambda one: float(one["overhead_seconds"]))[len(found) // 2]


def result_of(
    found: dict[int | None, list[dict[str, Any]]], warm: float, peer: float | None, world: World
) -> dict[str, Any]:
    """The JSON line, of the runs with the median overhead.

    Args:
        found: runs by the number of shards that were asked for.
    """
    rows, partitions = world.grid.cells, world.pipeline.partitions.count
    ours, large = middle(found[None]), None
    share = share_of_run = ours["overhead_seconds"] / ours["seconds"]
    for asked, runs in found.items():
        if asked is not None:
            large = at_rows(ours, middle(runs), rows)
            share_of_run = large["overhead_seconds"] / large["seconds"]
    return {
        "name": "orchestration",
        "unit": "s",
        **ours,
        "beyond_warm_seconds": ours["seconds"] - warm,
        "share": share,
        "peer": peer,
        "ratio_peer": ratio(peer, ours["overhead_seconds"]),
        "share_of_run": share_of_run,
        "large_run": large,
        "partitions": partitions,
        "rows": rows,
        "rounds": len(found[None]),
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
        job, large = Job(world), world.grid.cells >= LARGE_ROWS
        warm = [job.run()["seconds"] for _ in range(1 if large else 2)][-1]
        say(
            f"{world.grid.cells:,} rows in {world.pipeline.partitions.count:,} partitions: {warm:.1f} s without Airflow"
        )
        with_airflow = airflow_of(world, stack)
        orchestra = Orchestra(world, cells, with_airflow, stack.enter_context(AirflowApi(with_airflow)))
        orchestra.wait_parsed()
        orchestra.first(anew=not large)
        kinds = (None,) if world.grid.cells >= AT_ROWS else (None, TURNS * SHARDS_AT_ONCE)
        found: dict[int | None, list[dict[str, Any]]] = {shards: [] for shards in kinds}
        for number in range(asked.rounds):
            for shards, runs in found.items():
                runs.append(orchestra.ours(shards))
                say(f"round {number + 1}/{asked.rounds}  " + "  ".join(f"{k} {v}" for k, v in runs[-1].items()))
        peer = orchestra.peer() if asked.peers else None
        finish({**result_of(found, warm, peer, world), **machine(cores)})


if __name__ == "__main__":
    run(main)
