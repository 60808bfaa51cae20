"""The batch job: rows a second from offline features at rest to a published generation.

    make bench NAME=batch

Ours is what the tasks of a run call, in one process: plan, features point in
time, scoring, blocks, rows to Postgres, blocks to Redis, publish. The gates are
run too, but their expectations count in `with_gates` alone, for the peer has
none. Stages are timed by the job itself, as every run is. The floor
is the scoring alone, on features in memory, one thread like ours, before and
after ours: at most a million rows, again and again. The peer is
Feast's `get_historical_features` into pandas, LightGBM's `predict` on one
thread, a Redis key a prediction (pipelined), and `DataFrame.to_sql`; same
model, same servers, a million rows at most. `ratio_peer_rest` compares what is not scoring.

World: 10,000,000 cells (`--rows`), 4 hours of offline history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any

from almanac.clock import utc_now
from almanac.errors import StackError
from almanac.scoring import Scorer
from benchmarks.measuring import (
    Cores,
    Measure,
    Stopwatch,
    finish,
    in_turn,
    machine,
    median,
    on_core,
    options,
    profiled,
    ratio,
    run,
    say,
    shares,
)
from benchmarks.peer import running_peer
from benchmarks.reference import World, features_at, make_world, smaller, trees_of
from benchmarks.servers import running_servers
from benchmarks.services import own_memory_mb

ROWS, ROWS_QUICK = 10_000_000, 4_000
SMALLER_ROWS = 1_000_000
"""Rows of the peer's world, and of the features that the floor holds."""
ROUNDS = 1
WARM_PARTITIONS, WARM_ROWS = 64, 10_000
"""Of the run that goes before the measured ones: ours, and the peer's."""
DIFFERENCE_MAX = 0.02  # kelvin, between the means of our predictions and the peer's

STAGES = ("plan", "features", "model", "scoring", "blocks", "staging", "publish")
GATES = ("gate_features", "gate_predictions")


class Job:
    """The batch steps of one world, run after run, as the tasks of its DAG call them.

    Args:
        rows: that a run comes to; default: a row for each cell of the world's grid.
        scoring: the method of `Scorer` that they are scored by.
    """

    def __init__(self, world: World, *, rows: int | None = None, scoring: str = "score") -> None:
        self._world, self._scoring = world, scoring
        self._rows = world.grid.cells if rows is None else rows
        self._runs = 0

    def run(
        self, cutoff: datetime | None = None, *, anew: bool = True, between: Callable[[], object] | None = None
    ) -> dict[str, Any]:
        """One whole run; seconds of each stage, and rows a second without and with the gates.

        Args:
            cutoff: what the run is for; default: the newest hour.
            anew: everything is scored; otherwise what did not change is carried forward.
            between: done before each shard and after the last, on time of its own, not the run's.
        """
        from jobs.check import gate_features, gate_predictions
        from jobs.plan import plan
        from jobs.publish import clean_up, publish
        from jobs.score import score_shard

        pipeline, settings = self._world.pipeline, self._world.settings
        self._runs += 1
        rows, began, used = 0, time.perf_counter(), time.process_time()
        with Stopwatch({"scoring": (Scorer, self._scoring)}) as inside:
            made = plan(
                pipeline,
                settings,
                run_key=f"run {self._runs}",
                cutoff=cutoff or self._world.as_of,
                now=utc_now(),
                anew=anew,
            )
            report = gate_features(pipeline, settings, made)
            apart = _Apart(between)
            for shard in made.shards_without(report.failing):
                apart.turn()
                rows += score_shard(pipeline, settings, made, shard).rows
            apart.turn()
            gate_predictions(pipeline, settings, made)
            published = publish(pipeline, settings, made, now=utc_now())
        whole = time.perf_counter() - began - apart.seconds
        used = time.process_time() - used - apart.cpu
        clean_up(pipeline, settings, made)
        cells = self._rows
        if published.state != "current" or published.rows != cells or (anew and rows != cells):
            raise StackError(f"the run came to {published.state} with {rows} rows: see what it logged")
        stages = self._stages(made.generation, inside.seconds["scoring"])
        gates = sum(stages[stage] for stage in GATES)
        return {
            "rate": cells / (whole - gates),
            "rate_with_gates": cells / whole,
            "seconds": whole,
            "cpu": used,
            "scored": rows,
            "stages": stages,
        }

    def warm(self, partitions: int = WARM_PARTITIONS) -> None:
        """Imports, connections, the model: a run of a few partitions, given up before it is published."""
        from jobs.check import gate_features, gate_predictions
        from jobs.plan import plan
        from jobs.publish import clean_up
        from jobs.score import score_shard

        pipeline, settings = self._world.pipeline, self._world.settings
        every = plan(pipeline, settings, run_key="warm", cutoff=self._world.as_of, now=utc_now(), anew=True)
        made = replace(every, shards=[every.shards[0][:partitions]])
        gate_features(pipeline, settings, made)
        score_shard(pipeline, settings, made, made.shards[0])
        gate_predictions(pipeline, settings, made)
        clean_up(pipeline, settings, made)

    def _stages(self, generation: int, scoring: float) -> dict[str, float]:
        """Seconds of each stage, as the job itself recorded them."""
        from serving_cache.postgres_client import Client
        from serving_cache.stage_times import of_generation

        with Client(self._world.settings.need("postgres_url")) as client:
            records = of_generation(client, self._world.pipeline.name, generation)

        def spent(stage: str, step: str | None = None) -> float:
            found = [record for record in records if record.stage == stage]
            return sum(record.seconds if step is None else record.steps.get(step, 0.0) for record in found)

        # What is staged while the next piece is scored takes no time of its own: only waiting for it does.
        steps = {step: spent("score", step) for step in ("features", "score", "waiting")}
        gathering = spent("gate_features", "features")  # the gate fetches the features for both
        return {
            "plan": spent("plan"),
            "features": gathering + steps["features"],
            "model": spent("score") - sum(steps.values()),
            "scoring": scoring,
            "blocks": steps["score"] - scoring,
            "staging": steps["waiting"],
            "publish": spent("publish"),
            "gate_features": spent("gate_features") - gathering,
            "gate_predictions": spent("gate_predictions"),
        }


class _Apart:
    """What is done between the steps of a run, and its time, which is not the run's."""

    def __init__(self, work: Callable[[], object] | None) -> None:
        self._work = work
        self.seconds = self.cpu = 0.0

    def turn(self) -> None:
        """Do it once more."""
        if self._work is not None:
            began, used = time.perf_counter(), time.process_time()
            self._work()
            self.seconds += time.perf_counter() - began
            self.cpu += time.process_time() - used


class Floor:
    """Scoring alone: features of every cell of a world, read beforehand.

    Args:
        world: of so many cells as fit in memory.
        rows: how many are scored at each turn, the same ones again and again.
    """

    def __init__(self, world: World, rows: int) -> None:
        self._scorer = Scorer.load(world.version, world.pipeline)
        self._features = features_at(world).select(list(self._scorer.inputs))
        self._times = max(1, round(rows / world.grid.cells))
        self.means: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Rows a second."""
        began, used = time.perf_counter(), time.process_time()
        for _ in range(self._times):
            found = self._scorer.score(self._features)
        taken, used = time.perf_counter() - began, time.process_time() - used
        self.means = {name: float(values.mean(dtype="float64")) for name, values in found.items()}
        rows = self._features.num_rows * self._times
        return {"rate": rows / taken, "cpu_rate": rows / used}


def check_same(ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    """Refuse to compare two programs that answer differently.

    Raises:
        StackError: the means of an output differ.
    """
    for name, mean in ours.items():
        if abs(mean - theirs[name]) > DIFFERENCE_MAX:
            raise StackError(f"the peer answers {theirs[name]} on average for {name}, we {mean}: compare the models")


def stored(world: World) -> dict[str, float]:
    """Bytes that one cell's predictions (all outputs) take in each store, from the servers' own account."""
    import psycopg
    import redis

    cells = world.grid.cells
    with psycopg.connect(world.settings.need("postgres_url")) as connection:
        size = connection.execute(
            "SELECT max(pg_total_relation_size(inhrelid)) FROM pg_inherits "
            "WHERE inhparent = 'predictions_reference'::regclass"
        ).fetchone()
    client: Any = redis.Redis.from_url(world.settings.need("redis_url"))
    try:
        keys = list(client.scan_iter(match="almanac:{reference}:block:*", count=1000))
        used = [int(client.memory_usage(key) or 0) for key in keys]
    finally:
        client.close()
    generations = max(1, round(len(used) / world.pipeline.partitions.count))
    return {
        "postgres_bytes_per_cell": float(size[0] if size else 0) / cells,
        "redis_bytes_per_cell": sum(used) / generations / cells,
    }


def result_of(
    found: Mapping[str, list[Mapping[str, Any]]], world: World, peers: World, cores: Cores, trees: int
) -> dict[str, Any]:
    """The JSON line; `peers` is the world of peer and floor."""
    ours, floor = median(found["ours"], "rate"), median([*found["floor"], *found["floor_again"]], "rate")
    stages = _stages(found["ours"])
    peer = median(found["peer"], "rate") if "peer" in found else None
    theirs = None if peer is None else _stages(found["peer"])
    return {
        "name": "batch",
        "unit": "rows/s",
        "ours": ours,
        "peer": peer,
        "floor": floor,
        "ratio_peer": ratio(ours, peer),
        "ratio_peer_rest": None if theirs is None else _ratio_rest(stages, world, theirs, peers),
        "ratio_floor": ratio(ours, floor),
        "with_gates": median(found["ours"], "rate_with_gates"),
        "stages": shares({stage: stages[stage] for stage in STAGES}),
        "gates_seconds": {stage: stages[stage] for stage in GATES},
        "peer_stages": None if theirs is None else shares(theirs),
        "stored": stored(world),
        "memory_mb": {"job": own_memory_mb()},
        "rows": world.grid.cells,
        "peer_rows": peers.grid.cells,
        "trees": trees,
        "rounds": len(found["ours"]),
        **machine(cores),
    }


def _stages(results: list[Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds of each stage."""
    return {name: median([entry["stages"] for entry in results], name) for name in results[0]["stages"]}


def _ratio_rest(ours: Mapping[str, float], mine: World, theirs: Mapping[str, float], peers: World) -> float | None:
    """The peer's seconds a row for all that is not scoring, over ours."""
    spent = sum(ours[stage] for stage in STAGES if stage != "scoring") / mine.grid.cells
    return ratio(sum(taken for stage, taken in theirs.items() if stage != "scoring") / peers.grid.cells, spent)


def main() -> None:
    """Measure, or profile, and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores, trees = Cores.choose(), trees_of(asked.quick)
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        say("making the world: features, model, tables")
        world = make_world(settings, asked.size(ROWS, ROWS_QUICK), trees=trees)
        peers = smaller(world, SMALLER_ROWS)
        stack.enter_context(on_core(cores.measured))
        job, floor = Job(world), Floor(peers, world.grid.cells // 4)
        job.warm()  # a task that runs once an hour pays imports and connections once
        if asked.profile:
            with profiled("batch job"):
                job.run()
            return
        contenders: dict[str, Measure] = {"floor": floor.run, "ours": job.run, "floor_again": floor.run}
        if asked.peers:
            told = peers.for_peers()
            peer = stack.enter_context(
                running_peer("feast", "feast_batch.py", told, cores.measured, world.settings.state_dir)
            )
            peer.ask(do="run", cells=min(WARM_ROWS, peers.grid.cells))
            contenders["peer"] = lambda: peer.ask(do="run")
        found = in_turn(contenders, asked.rounds)
        for result in found.get("peer", ()):
            check_same(floor.means, result["means"])
        finish(result_of(found, world, peers, cores, trees))


if __name__ == "__main__":
    run(main)
