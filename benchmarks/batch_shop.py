"""The batch job where lists are ranked: entities a second from features at rest to a published generation.

    make bench NAME=batch-shop

Ours is what the tasks of a run call, in one process: plan, items and histories
point in time, windows, candidate items, their pairs' inputs, scoring, lists,
rows to Postgres, blocks to Redis, publish; with gates in `with_gates`. The
floor is scoring alone, of pairs in memory and on one thread like ours: those of
4,000 of the entities, three times a turn, before each shard of ours and after
the last, on the same core, so that a slow minute hits both. What it makes of
them must be what ours published. `ratio_floor` is what is left of it; `ratio_floor_cpu` the same by processor time,
which work beside it does not change. `peak_mb` is the most that the job's process, floor
included, and its children had at once.

The peer is pandas over the same lines of purchases and item tables, of some
entities: windows by groupby, candidate items by merges, LightGBM on one thread,
sort, a Redis key an entity and `to_sql` a row an item; its lists must be ours.

World: the pipeline `shop`, 1,000,000 simulated entities (`--rows`) with twelve
lines each on average, 4,000 items, 50 candidate items each, lists of 30; a
model of 150 trees. One round: some ten minutes in all on two quiet cores.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from almanac.errors import StackError
from almanac.registry import Registry
from almanac.scoring import Scorer
from almanac.settings import load_settings
from benchmarks.batch import GATES, STAGES, Job
from benchmarks.join import watched
from benchmarks.measuring import (
    Cores,
    finish,
    machine,
    median,
    on_core,
    options,
    profiled,
    ratio,
    run,
    say,
    shares,
    significant,
)
from benchmarks.peer import running_peer
from benchmarks.servers import running_servers
from benchmarks.shop_world import TREES, TREES_QUICK, Shop, make_shop, sample, shop_pipeline

ENTITIES, ENTITIES_QUICK = 1_000_000, 1_000
FLOOR_ENTITIES, FLOOR_TIMES = 4_000, 3
PEER_ENTITIES, PEER_TURNS = 20_000, 2
WARM_PARTITIONS, WARM_PEER_ENTITIES = 2, 200
MEMORY_MB_MAX = 3 * 1024**3 / 1e6
RATIO_MIN = 0.7
SAME_MIN, DIFFERENCE_MAX = 0.999, 1e-3
"""Of the peer's lists: what share of their items ours have too, and by how much scores differ. LightGBM adds its trees
up in double precision, ONNX Runtime in single."""


class Floor:
    """Scoring alone: the pairs of the first entities, made beforehand, again and again.

    Args:
        entities: whose pairs are scored.
        times: how often at each turn.
    """

    def __init__(self, world: Shop, entities: int = FLOOR_ENTITIES, times: int = FLOOR_TIMES) -> None:
        self._world, self._times = world, times
        self._score = Scorer.score_matrix  # as it is, not as the job's stopwatch has it
        self._scorer = Scorer.load(world.version, world.pipeline)
        self.sample = sample(world.pipeline, world.settings, world.as_of, entities)
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def warm(self) -> None:
        """Score them once, which counts for nothing."""
        for part in self.sample.parts:
            self._score(self._scorer, part.inputs)

    def turn(self) -> None:
        """Score them once more."""
        began, used = time.perf_counter(), time.process_time()
        for _ in range(self._times):
            self.warm()
        self.seconds.append(time.perf_counter() - began)
        self.cpu.append(time.process_time() - used)

    def result(self) -> dict[str, float]:
        """Of all turns so far: entities a second of time and of processor time, and pairs a second."""
        entities, pairs = len(self.sample.keys) * self._times, self.sample.pairs * self._times
        return {
            "rate": entities / statistics.mean(self.seconds),
            "cpu_rate": entities / statistics.mean(self.cpu),
            "pairs_rate": pairs / statistics.mean(self.seconds),
            "candidates": self.sample.pairs / len(self.sample.keys),
            "turns": len(self.seconds),
        }

    @cached_property
    def lists(self) -> dict[str, tuple[list[str], list[float]]]:
        """Items and scores of each entity's list, as scoring alone has them."""
        from almanac.list_scoring import ranked, scored

        kept, items = self._world.ranking.kept, self.sample.items
        made = [one for part in self.sample.parts for one in ranked(scored(part, self._scorer, kept), items, ())]
        return {key: (list(one.items), list(one.scores)) for key, one in zip(self.sample.keys, made, strict=True)}


def check_published(world: Shop, lists: Mapping[str, tuple[list[str], list[float]]]) -> None:
    """Refuse to compare with a floor that scores something else.

    Raises:
        StackError: an entity's published list is another.
    """
    import psycopg

    from serving_cache.layout import view_name

    entity = world.pipeline.entity
    asked = f"SELECT {entity}, items, scores FROM {view_name(world.pipeline.name)} WHERE {entity} = ANY(%s)"  # noqa: S608
    with psycopg.connect(world.settings.need("postgres_url")) as connection:
        found = connection.execute(asked, (list(lists),)).fetchall()
    if len(found) != len(lists):
        raise StackError(f"{len(found)} of {len(lists)} entities have a published list: see what the run logged")
    for key, items, scores in found:
        wanted = lists[key]
        if items != wanted[0] or not np.array_equal(np.array(scores, np.float32), np.array(wanted[1], np.float32)):
            raise StackError(f"the published list of {key} is not what scoring alone makes of it: compare the two")


def check_peer(world: Shop, entities: int) -> dict[str, float]:
    """Hold the peer's lists to those that are published.

    Raises:
        StackError: they are others.
    """
    import psycopg

    from serving_cache.layout import view_name

    entity = world.pipeline.entity
    asked = (
        f"WITH ours AS (SELECT {entity} AS entity, unnest(items) AS item, unnest(scores) AS score "  # noqa: S608
        f"FROM {view_name(world.pipeline.name)} WHERE {entity} IN (SELECT entity FROM peer_lists)) "
        "SELECT count(*), count(o.item), max(abs(o.score - p.score)), count(DISTINCT p.entity), "
        "(SELECT count(*) FROM ours) FROM peer_lists p LEFT JOIN ours o USING (entity, item)"
    )
    with psycopg.connect(world.settings.need("postgres_url")) as connection:
        row = connection.execute(asked).fetchone()
    theirs, same, differ, found, ours = row or (0, 0, None, 0, 0)
    share = same / max(theirs, ours, 1)
    if found != entities or share < SAME_MIN or differ is None or differ > DIFFERENCE_MAX:
        raise StackError(
            f"the peer's lists of {found} of {entities} entities have {share:.1%} of our items, with scores that "
            f"differ by up to {differ}: compare the two"
        )
    return {"same_share": share, "difference_max": float(differ)}


@contextmanager
def environment(world: Shop) -> Iterator[None]:
    """Processes started here have the world's settings."""
    before = dict(os.environ)
    os.environ.update(world.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def inside(told: Mapping[str, Any]) -> dict[str, Any]:
    """Be the process that is measured: ours with the floor in between, round after round."""
    logging.disable(logging.WARNING)
    settings = load_settings(source_data="")
    pipeline = shop_pipeline(told["rows"])
    world = Shop(
        pipeline=pipeline,
        settings=settings,
        version=Registry(settings.models_dir).resolve(pipeline.model),
        as_of=datetime.fromisoformat(told["as_of"]),
        entities=told["entities"],
    )
    with on_core(told["core"]):
        job = Job(world, rows=world.entities, scoring="score_matrix")
        job.warm(WARM_PARTITIONS)
        floor = Floor(world)
        floor.warm()
        runs = []
        for number in range(told["rounds"]):
            runs.append(job.run(between=floor.turn))
            check_published(world, floor.lists)
            shown = {"seconds": runs[-1]["seconds"], "rate": runs[-1]["rate"], "floor": floor.result()["rate"]}
            say(f"round {number + 1}  " + "  ".join(f"{name} {significant(value)}" for name, value in shown.items()))
    stages = {name: median([one["stages"] for one in runs], name) for name in (*STAGES, *GATES)}
    return {
        **{name: median(runs, name) for name in ("rate", "rate_with_gates", "seconds", "cpu")},
        "stages": stages,
        "floor": floor.result(),
    }


def measured(world: Shop, rows: int, rounds: int, cores: Cores) -> tuple[dict[str, Any], float]:
    """Ours and the floor, in a process of their own; and the most memory that it had, in MB."""
    told = {
        "rows": rows, "entities": world.entities, "as_of": world.as_of.isoformat(), "rounds": rounds,
        "core": cores.measured,
    }  # fmt: skip
    with environment(world):
        command = [sys.executable, "-m", "benchmarks.batch_shop", "--inside", json.dumps(told)]
        return watched(command, f"the run of {world.entities:,} entities")


def result_of(
    world: Shop, ours: Mapping[str, Any], peak: float, peer: Mapping[str, Any] | None, cores: Cores
) -> dict[str, Any]:
    """The JSON line."""
    floor, stages = ours["floor"], ours["stages"]
    return {
        "name": "batch_shop",
        "unit": "entities/s",
        "ours": ours["rate"],
        "peer": peer and peer["rate"],
        "floor": floor["rate"],
        "ratio_peer": None if peer is None else ratio(ours["rate"], peer["rate"]),
        "ratio_floor": ratio(ours["rate"], floor["rate"]),
        "ratio_floor_cpu": ratio(world.entities / ours["cpu"], floor["cpu_rate"]),
        "ratio_floor_with_gates": ratio(ours["rate_with_gates"], floor["rate"]),
        "ratio_min": RATIO_MIN,
        "peak_mb": peak,
        "memory_mb_max": MEMORY_MB_MAX,
        "within": peak < MEMORY_MB_MAX and ours["rate"] >= RATIO_MIN * floor["rate"],
        "seconds": ours["seconds"],
        "stages": shares({name: stages[name] for name in STAGES}),
        "gates_seconds": {name: stages[name] for name in GATES},
        "floor_turns": floor["turns"],
        "pairs_rate": floor["pairs_rate"],
        "candidates": floor["candidates"],
        "peer_stages": peer and shares(peer["stages"]),
        "peer_same_share": peer and peer["same_share"],
        "peer_entities": peer and peer["entities"],
        "entities": world.entities,
        **machine(cores),
    }


def main() -> None:
    """Measure, or profile, and print the line; or be the process that is measured."""
    if len(sys.argv) > 1 and sys.argv[1] == "--inside":
        print(json.dumps(inside(json.loads(sys.argv[2]))))
        return
    asked = options(__doc__, rounds=1)
    cores, trees = Cores.choose(), TREES_QUICK if asked.quick else TREES
    rows = asked.size(ENTITIES, ENTITIES_QUICK)
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        say("making the world: lines, histories, items, model, tables")
        world = make_shop(settings, rows, trees=trees)
        say(f"{world.entities:,} entities have a history at {world.as_of:%Y-%m-%d %H:%M}")
        if asked.profile:
            stack.enter_context(on_core(cores.measured))
            job = Job(world, rows=world.entities, scoring="score_matrix")
            job.warm(WARM_PARTITIONS)
            with profiled("batch job of lists"):
                job.run()
            return
        peers: list[dict[str, Any]] = []
        entities = min(PEER_ENTITIES, world.entities)
        peer = None
        if asked.peers:
            folder = world.settings.state_dir
            peer = stack.enter_context(
                running_peer("feast", "pandas_lists.py", world.for_peers(), cores.measured, folder)
            )
            peer.ask(do="run", entities=min(WARM_PEER_ENTITIES, entities))
            peers.append(peer.ask(do="run", entities=entities))
            say(f"peer  {peers[-1]['rate']:.0f} entities/s")
        ours, peak = measured(world, rows, asked.rounds, cores)
        theirs = None
        if peer is not None:
            peers.append(peer.ask(do="run", entities=entities))
            stages = {name: median([one["stages"] for one in peers], name) for name in peers[0]["stages"]}
            theirs = {"rate": median(peers, "rate"), "stages": stages, "entities": entities}
            theirs |= check_peer(world, entities)
        finish(result_of(world, ours, peak, theirs, cores) | {"trees": trees, "rounds": asked.rounds})


if __name__ == "__main__":
    run(main)
