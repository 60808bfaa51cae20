"""A night on which few entities have anything new, beside one that ranks for all: seconds, without Airflow.

    make bench NAME=rerun-shop

Both are the batch job of `NAME=batch-shop`, gates included, warm, in one process; what is ingested is there before.
Before `one_percent` so many of the entities took something (their events lie in the archive, as the stream leaves
them), before `ten_percent` ten times as many; items are as they were the night before. All partitions have changed, and
all of their blocks are made anew; `scored` says for how many entities the model was asked. `full` asks for all, as of
the same moment, and must come to the same blocks. `remembering` is what keeping the digests adds to it, by processor
time.

World: the pipeline `shop`, 100,000 simulated entities (`--rows`), 150 trees.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from almanac.errors import StackError
from benchmarks.batch import Job
from benchmarks.measuring import Cores, finish, in_turn, machine, median, on_core, options, ratio, run, say
from benchmarks.servers import running_servers
from benchmarks.shop_world import TREES, TREES_QUICK, Shop, known_entities, make_shop

ENTITIES, ENTITIES_QUICK = 100_000, 1_000
ROUNDS = 3
ONE, TEN = 0.01, 0.1
EVENTS_AT_ONCE = 10_000
NIGHT = timedelta(minutes=1)
"""Between two runs; none is that of another midnight, which would bring other items."""


class Nights:
    """Runs of one world, each as of a later moment than the one before."""

    def __init__(self, world: Shop) -> None:
        self._world = replace(world, pipeline=replace(world.pipeline, changed_only=True))
        self._plain = replace(world, pipeline=replace(world.pipeline, changed_only=False))
        self._keys = [key for keys in known_entities(world.pipeline, world.settings, world.as_of) for key in keys]
        self._chance, self._at, self._events = np.random.default_rng(7), world.as_of, 0
        self._jobs = 0

    def after(self, share: float) -> dict[str, Any]:
        """The run after a night in which a share of the entities took something.

        Raises:
            StackError: it came to other blocks than the run that ranks for all.
        """
        self._take(share)
        found = self._run(self._world, anew=False)
        hashes = self._hashes()
        plain = self._run(self._plain, anew=True)
        full = self._run(self._world, anew=True)  # and the next night knows what it was made from
        if self._hashes() != hashes:
            raise StackError("ranking for some came to other blocks than ranking for all: look at the digests")
        scored = found["scored"] - found["unchanged"]
        return {
            "seconds": found["seconds"],
            "cpu": found["cpu"],
            "full": full["seconds"],
            "full_cpu": full["cpu"],
            "plain_cpu": plain["cpu"],
            "scored": scored / len(self._keys),
        }

    def first(self) -> None:
        """Imports, caches, connections, and blocks that know what they were made from."""
        self._run(self._world, anew=True)

    def _run(self, world: Shop, *, anew: bool) -> dict[str, Any]:
        from serving_cache.postgres import PostgresStore

        known = sum(map(len, known_entities(world.pipeline, world.settings, self._at)))
        self._jobs += 1
        found = _Job(world, known, self._jobs).run(self._at, anew=anew)
        with PostgresStore(world.settings.need("postgres_url")) as store:
            newest = store.generations(world.pipeline.name, 1)[0].generation
            times = store.stage_times(world.pipeline.name, newest)
        return {**found, "unchanged": sum(one.unchanged for one in times)}

    def _hashes(self) -> dict[int, str]:
        from serving_cache.postgres import PostgresStore

        name = self._world.pipeline.name
        with PostgresStore(self._world.settings.need("postgres_url")) as store:
            newest = store.generations(name, 1)[0].generation
            return {part: entry.block_hash for part, entry in store.manifest(name, newest).items()}

    def stored(self) -> float:
        """Bytes that one entity's digests take in the record, by the server's own account."""
        import psycopg

        with psycopg.connect(self._world.settings.need("postgres_url")) as connection:
            row = connection.execute(
                "SELECT sum(pg_column_size(d.*)), sum(m.rows) FROM entity_digests d JOIN generation_partitions m "
                "USING (pipeline, generation, partition) WHERE m.origin = m.generation"
            ).fetchone()
        return float(row[0] / row[1]) if row and row[1] else 0.0

    def _take(self, share: float) -> None:
        """Some entities take an item each; then features are brought up."""
        from features.ingest import refresh
        from features.ranked import items_at
        from jobs.plan import FEATURE_WINDOW

        pipeline, settings = self._world.pipeline, self._world.settings
        self._at += NIGHT
        items = items_at(pipeline, settings, self._at).keys
        chosen = self._chance.choice(len(self._keys), round(share * len(self._keys)), replace=False)
        for start in range(0, len(chosen), EVENTS_AT_ONCE):
            some = [self._keys[place] for place in chosen[start : start + EVENTS_AT_ONCE]]
            bought = [items[place] for place in self._chance.integers(0, len(items), len(some))]
            self._archive(some, bought, self._at)
        refresh(pipeline, settings, self._at, window=FEATURE_WINDOW)

    def _archive(self, keys: list[Any], bought: list[str], at: datetime) -> None:
        from features.archive import Archived, open_archive
        from features.archive_lines import archived_lines
        from features.layout import EVENT_TIMESTAMP

        pipeline = self._world.pipeline
        rows = [
            {pipeline.entity: key, EVENT_TIMESTAMP: at, **archived_lines([(item, 1.0, 2.5)])}
            for key, item in zip(keys, bought, strict=True)
        ]
        first, self._events = self._events, self._events + len(rows)
        events = [
            Archived(row=row, topic="benchmark", partition=0, offset=first + number) for number, row in enumerate(rows)
        ]
        open_archive(pipeline, self._world.settings).write(events, at)


class _Job(Job):
    """A run by its number: runs of other jobs of this world have other keys."""

    def __init__(self, world: Shop, entities: int, number: int) -> None:
        super().__init__(world, rows=entities, scoring="score_matrix")
        self._runs = number


def main() -> None:
    """Measure and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores, trees = Cores.choose(), TREES_QUICK if asked.quick else TREES
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores))
        say("making the world: histories, items, model, tables")
        world = make_shop(settings, asked.size(ENTITIES, ENTITIES_QUICK), trees=trees)
        stack.enter_context(on_core(cores.measured))
        nights = Nights(world)
        nights.first()
        found = in_turn({"one": lambda: nights.after(ONE), "ten": lambda: nights.after(TEN)}, asked.rounds)
        every = [*found["one"], *found["ten"]]
        full, one, ten = median(every, "full"), median(found["one"], "seconds"), median(found["ten"], "seconds")
        cpu = median(every, "full_cpu")
        finish(
            {
                "name": "rerun-shop",
                "unit": "s",
                "ours": one,
                "full": full,
                "ratio_full": ratio(full, one),
                "one_percent": {
                    "share": one / full,
                    "share_cpu": median(found["one"], "cpu") / cpu,
                    "scored": median(found["one"], "scored"),
                },
                "ten_percent": {
                    "share": ten / full,
                    "share_cpu": median(found["ten"], "cpu") / cpu,
                    "scored": median(found["ten"], "scored"),
                },
                "remembering": cpu / median(every, "plain_cpu") - 1,
                "postgres_bytes_per_entity": nights.stored(),
                "entities": world.entities,
                "trees": trees,
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
