"""The held-out time of a pipeline that ranks, as it happened, through Kafka: streamed lists beside nightly ones.

    make replay DATA=<file> [DAYS=30]

1. Learn: a model from what was taken before the held-out time, as `almanac train` makes it.
2. Each midnight: a batch run as of it, by the DAG's steps (plan, score, publish), and its features brought online.
3. Each event in its order: just before it is sent the entity's list is looked up, once as the lookup answers and once
   from the generation alone; then it goes through Kafka, worker and sinks, the same threads that `almanac up` runs. An
   entity's list depends on its own events, so those of others that come before its next are sent together.
4. Before an entity's next event: wait until the sinks have applied what the worker made of the last one.
5. Compare: recall and NDCG of both lists, basket by basket, and how sure that is.

Servers are real, the clock is not: it stands at the moment of each event, so that nobody knows what came later. Where
no file is named, a simulated crowd takes. `--quick` is two days of a small one, which shows that it works.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from almanac.clock import format_time
from almanac.errors import UsageError
from almanac.interactions import Interactions, Simulated
from almanac.pipeline import Pipeline
from almanac.settings import Settings
from benchmarks.measuring import Cores, finish, machine, run, say
from benchmarks.replaying import Looked, Replay, Told, judged, spread, told
from benchmarks.servers import running_servers

DAY = timedelta(days=1)
DAYS_MAX = 30
QUICK_DAYS = 2
QUICK = Simulated(entities=80, items=60, history=timedelta(days=40), lines_per_entity=60)
SURE = (2.5, 97.5)
"""Percentiles between which the mean difference lies in 95 of 100 samples of entities."""


def declared(name: str, quick: bool) -> Pipeline:
    """The pipeline to replay; its model is in use at once, whatever gates a challenger has to pass.

    Raises:
        UsageError: it ranks nothing, or has no stream.
    """
    from almanac.declarations import pipeline as find

    found = find(name)
    if found.ranking is None or found.lines is None or not isinstance(found.source, Interactions):
        raise UsageError(f"pipeline {name} has no lists that events change: choose one with a ranking and lines")
    training = replace(found.training, challenger=None)
    if not quick:
        return replace(found, training=training)
    small = replace(training, window=20 * DAY, holdout=3 * DAY, rows_max=6_000, trees=15, leaves=7)
    return replace(found, training=small, source=replace(found.source, simulated=QUICK))


def replayed(pipeline: Pipeline, settings: Settings, days: int) -> Iterator[tuple[datetime, list[Looked]]]:
    """Day after day what was looked up."""
    with Replay(pipeline, settings) as replay:
        first, events = told(pipeline, settings, days)
        replay.learn(say)
        for number in range(days):
            night = first + number * DAY
            replay.night(night)
            today = [event for event in events if night <= event.at < night + DAY]
            yield night, [looked for part in parts(today) for looked in replay.through(part)]


def parts(events: Sequence[Told], most: int = 500) -> Iterator[list[Told]]:
    """The events in their order, cut where an entity comes again."""
    part: list[Told] = []
    for event in events:
        if len(part) == most or any(event.entity == other.entity for other in part):
            yield part
            part = []
        part.append(event)
    if part:
        yield part


def main() -> None:
    """Replay, a line a day, then the comparison, and last one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="shop")
    parser.add_argument("--data", default="", help="Parquet file of what was taken; default: a simulated crowd")
    parser.add_argument("--days", type=int, default=DAYS_MAX, help="days of the held-out time, from its first on")
    parser.add_argument("--seed", type=int, default=1, help="of the samples that say how sure the difference is")
    parser.add_argument("--quick", action="store_true", help="small and once: does it work? Not a measurement")
    given = parser.parse_args()
    pipeline = declared(given.pipeline, given.quick)
    most = pipeline.training.holdout // DAY
    days = min(given.days, QUICK_DAYS) if given.quick else given.days
    if not 1 <= days <= most:
        raise UsageError(f"--days {given.days}: the model of {pipeline.name} holds out {most} days: give 1 to {most}")
    if given.data and not Path(given.data).is_file():
        raise UsageError(f"--data {given.data} is no file: give a Parquet file of what was taken")
    cores, began = Cores.choose(), time.perf_counter()
    with running_servers(cores, with_kafka=True) as servers:
        data = f"{pipeline.name}={Path(given.data).resolve()}" if given.data else ""
        settings = servers.model_copy(update={"source_data": data})
        found: list[Looked] = []
        length = pipeline.ranking.length if pipeline.ranking is not None else 0
        for night, looked in replayed(pipeline, settings, days):
            found += looked
            again = sum(one.since_night for one in looked)
            day = f"{format_time(night)}  {len(looked):>5} baskets, {again:>3} after another of the same day"
            say(day + so_far(found, length))
    told_of = compared(found, pipeline, given.seed)
    finish(
        {
            "benchmark": "replay", "pipeline": pipeline.name, "days": days, "seconds": time.perf_counter() - began,
            **told_of, **machine(cores),
        }
    )  # fmt: skip


def so_far(found: Sequence[Looked], length: int) -> str:
    """Recall of both lists up to now, for the line of a day; empty while nothing was looked up."""
    if not found:
        return ""
    nightly, streamed = (values.mean() for values in judged(found, length)["recall"])
    return f"; so far recall at {length} nightly {nightly:.4f}, streamed {streamed:.4f}"


def compared(found: Sequence[Looked], pipeline: Pipeline, seed: int) -> dict[str, Any]:
    """The table, printed, and as JSON."""
    length = pipeline.ranking.length if pipeline.ranking is not None else 0
    quality = judged(found, length)
    again = np.array([one.since_night for one in found], np.bool_)
    owners = np.array([str(one.entity) for one in found])
    figures: dict[str, Any] = {}
    for name, chosen in (("every_basket", np.ones(len(found), np.bool_)), ("after_an_event_of_the_day", again)):
        figures[name] = {"baskets": int(chosen.sum())}
        for measure, (nightly, streamed) in quality.items():
            if not chosen.any():
                continue
            low, high = spread(owners[chosen], (streamed - nightly)[chosen], seed, SURE)
            row = {
                "nightly": float(nightly[chosen].mean()), "streamed": float(streamed[chosen].mean()),
                "difference": float((streamed - nightly)[chosen].mean()), "from": low, "to": high,
            }  # fmt: skip
            figures[name][f"{measure}_at_{length}"] = row
            say(
                f"{name.replace('_', ' ')} ({int(chosen.sum()):,}): {measure} at {length} "
                f"nightly {row['nightly']:.4f}, streamed {row['streamed']:.4f}, difference {row['difference']:+.4f} "
                f"({row['from']:+.4f} to {row['to']:+.4f})"
            )
    return figures


if __name__ == "__main__":
    run(main)
