"""The stream's worker where lists are ranked: baskets a second, folded in, ranked and committed exactly once.

    make bench NAME=stream-shop

Ours is `streaming.worker` on a real broker with the real features in Redis:
each basket is believed or refused, folded into its customer's history and
ranked among 50 candidate items; a history and a list are written for each, in
one transaction with the offsets. `features` is the sink that brings histories
to the online store. Floors: the scoring of as many pairs alone, in the same
batches (`floor`), and the same transactions with nothing in between.

World: 5,000 customers of a simulated crowd, 4,000 baskets of five lines a round (`--rows`), 4 partitions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import numpy as np

from almanac.clock import format_time
from almanac.scoring import Scorer
from benchmarks.measuring import Cores, Measure, finish, in_turn, machine, median, on_core, options, ratio, run, say
from benchmarks.servers import running_servers
from benchmarks.services import own_memory_mb
from benchmarks.shop_world import TREES, TREES_QUICK, Shop, items_of, known_entities, make_shop, sample
from benchmarks.stream import Topic, Transactions, check_once, profiled_thread, timed
from features.materialize.run import materialize
from features.online import OnlineFeatures, observation_row
from features.online_histories import OnlineHistories
from streaming.publish import Outgoing
from streaming.report import Report
from streaming.sink import Features, Sink
from streaming.worker import BATCH_RECORDS_MAX, Surroundings, Worker

CUSTOMERS, CUSTOMERS_QUICK = 5_000, 300
EVENTS, EVENTS_QUICK = 4_000, 600
ROUNDS = 3
LINES = 5
SEED = 11


class Baskets(Topic):
    """The topic of purchases, filled a round at a time: all customers in turn, each basket newer than the last."""

    def __init__(self, world: Shop, events: int) -> None:
        super().__init__(world, events)
        self._customers = [key for keys in known_entities(world.pipeline, world.settings, world.as_of) for key in keys]
        self._items = items_of(world.pipeline, world.settings, world.as_of).items.keys
        self._dice = np.random.default_rng(SEED)

    def _round(self) -> Iterator[Outgoing]:
        for number in range(self.sent, self.sent + self.events):
            lap, place = divmod(number, len(self._customers))
            customer = self._customers[place]
            chosen = self._dice.choice(len(self._items), LINES, replace=False).tolist()
            body = {
                "customer_id": customer,
                "observed_at": format_time(self._world.as_of + timedelta(milliseconds=1 + lap)),
                "lines": [{"item_id": self._items[item], "quantity": 1 + item % 4, "price": 2.5} for item in chosen],
            }
            yield Outgoing(value=msgspec.json.encode(body), key=customer.encode())


class Ours:
    """The worker, and the sink that it waits for when it begins."""

    def __init__(self, world: Shop, topic: Baskets) -> None:
        self._world, self._topic = world, topic

    def worker(self) -> Mapping[str, Any]:
        """Fill the topic, which nothing counts, then handle what is in it."""
        self._topic.fill()
        around = Surroundings(
            online=partial(OnlineFeatures, dated=True), observation_row=observation_row, histories=OnlineHistories
        )
        worker = Worker(self._world.pipeline, self._world.settings, around)
        return timed(worker.report, "events", worker.run, self._topic.events)

    def features(self) -> Mapping[str, Any]:
        """Histories to the online store, as the sink of that name does it."""
        pipeline, settings = self._world.pipeline, self._world.settings
        report = Report("features")
        target = Features(pipeline, lambda: OnlineFeatures(pipeline, settings), observation_row, report)
        sink = Sink(pipeline.features_topic, f"almanac-{pipeline.name}-sink-features", settings, report)
        return timed(report, "feature_rows", partial(sink.run, target), self._topic.events)


class Scoring:
    """The model alone: as many pairs as a batch of events has, in memory."""

    def __init__(self, world: Shop, topic: Baskets) -> None:
        self._events = topic.events
        self._scorer = Scorer.load(world.version, world.pipeline)
        self._sample = sample(world.pipeline, world.settings, world.as_of, min(BATCH_RECORDS_MAX, world.entities))

    def measure(self) -> Mapping[str, Any]:
        """Entities a second."""
        done, began = 0, time.perf_counter()
        while done < self._events:
            for part in self._sample.parts:
                self._scorer.score_matrix(part.inputs)
            done += len(self._sample.keys)
        return {"rate": done / (time.perf_counter() - began)}

    @property
    def pairs(self) -> float:
        """Of an entity, on average."""
        return self._sample.pairs / len(self._sample.keys)


def main() -> None:
    """Measure, or profile, and print the line."""
    asked = options(__doc__, rounds=ROUNDS)
    cores, trees = Cores.choose(), TREES_QUICK if asked.quick else TREES
    with ExitStack() as stack:
        settings = stack.enter_context(running_servers(cores, with_kafka=True))
        say("making the world: a crowd, features offline and online, model, topics")
        world = make_shop(settings, CUSTOMERS_QUICK if asked.quick else CUSTOMERS, trees=trees)
        materialize(world.pipeline, world.settings, world.as_of)
        topic = Baskets(world, asked.size(EVENTS, EVENTS_QUICK))
        stack.enter_context(on_core(cores.measured))
        ours = Ours(world, topic)
        if asked.profile:
            with profiled_thread(world, topic):
                ours.worker()
            return
        scoring = Scoring(world, topic)
        contenders: dict[str, Measure] = {
            "ours": ours.worker,
            "features": ours.features,
            "floor": scoring.measure,
            "transactions": Transactions(world, topic).measure,
        }
        found = in_turn(contenders, asked.rounds)
        check_once(world, topic.sent)
        rates = {name: median(results, "rate") for name, results in found.items()}
        finish(
            {
                "name": "stream-shop",
                "unit": "events/s",
                "ours": rates["ours"],
                "floor": rates["floor"],
                "floor_transactions": rates["transactions"],
                "ratio_floor": ratio(rates["ours"], rates["floor"]),
                "ratio_floor_transactions": ratio(rates["ours"], rates["transactions"]),
                "sinks": {"features": rates["features"]},
                "exactly_once": True,
                "customers": world.entities,
                "pairs_an_event": scoring.pairs,
                "memory_mb": {"process": own_memory_mb()},
                "events": topic.events,
                "trees": trees,
                "rounds": asked.rounds,
                **machine(cores),
            }
        )


if __name__ == "__main__":
    run(main)
