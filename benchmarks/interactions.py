"""Interactions: offline features of 1 million simulated entities with 9 million lines, from nothing, and a night.

Each runs in a process of its own, whose memory is looked at. Beside what an ingest takes stand reading the same
lines (floor), and folding them event by event (peer: what the bulk form spares), of a hundredth of the entities; the
rows of these are compared with the bulk form's. `--rows` is the number of entities.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from almanac.errors import StackError
from almanac.interactions import Simulated
from almanac.pipeline import Interactions, Pipeline
from almanac.settings import Settings, load_settings
from benchmarks.measuring import Cores, finish, machine, on_core, options, profiled, ratio, run, say

ENTITIES, ENTITIES_QUICK = 1_000_000, 2_000
SHARE = 100  # entities for each one that is folded by the peer
HISTORY = timedelta(days=180)
LINES_PER_ENTITY = 10.0
NIGHT = datetime(2026, 6, 30, 3, tzinfo=UTC)
SECONDS_MAX = 1_800


def world(entities: int, folder: Path) -> tuple[Pipeline, Settings]:
    """A pipeline whose source is a crowd of so many entities, which began half a year ago."""
    from features.sources.lines import open_lines
    from pipelines.shop import shop

    if not isinstance(shop.source, Interactions):
        raise StackError("shop declares no interactions: benchmark a pipeline that does")
    size = Simulated(
        entities=entities, items=max(entities // 50, 100), history=HISTORY, lines_per_entity=LINES_PER_ENTITY
    )
    pipeline = replace(shop, source=replace(shop.source, simulated=size))
    settings = load_settings(state_dir=folder, source_data="", redis_url=None, postgres_url=None)
    open_lines(pipeline, settings, now=NIGHT)
    return pipeline, settings


def ingested(entities: int, folder: Path) -> dict[str, Any]:
    """From nothing to the first night, then one night more."""
    from features.ingest import refresh

    pipeline, settings = world(entities, folder)
    found: dict[str, Any] = {}
    for name, cutoff in (("first", NIGHT), ("night", NIGHT + timedelta(days=1))):
        began = time.perf_counter()
        rows = refresh(pipeline, settings, cutoff, window=timedelta(0)).rows
        found |= {f"{name}_seconds": time.perf_counter() - began, f"{name}_rows": rows}
    return {**found, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def compared(entities: int, folder: Path) -> dict[str, Any]:
    """Reading all lines, and folding those of some entities one by one; their rows are the bulk form's.

    Raises:
        StackError: one differs.
    """
    from features.interactions.bulk import Baskets, histories
    from features.interactions.fold import Event, advance
    from features.interactions.lines import Lines

    pipeline, settings = world(entities, folder)
    lines = Lines(settings.features_dir / pipeline.name)
    began = time.perf_counter()
    baskets = lines.baskets(NIGHT - 2 * HISTORY, NIGHT)
    found: dict[str, Any] = {"lines": len(baskets.at), "read_seconds": time.perf_counter() - began}
    few = baskets.part(0, max(len(baskets.entities) // SHARE, 1))
    began = time.perf_counter()
    starts = np.flatnonzero(np.diff(few.event, prepend=few.event[0] - 1))
    rows: dict[str, dict[str, Any]] = {}
    for first, until in zip(starts, np.append(starts[1:], len(few.event)), strict=True):
        taken = tuple(
            (few.items[few.item[n]], float(few.quantity[n]), float(few.price[n])) for n in range(first, until)
        )
        key = few.entities[few.entity[first]]
        rows[key] = advance(rows.get(key), Event(entity=key, at=int(few.at[first]), lines=taken)).row
    found |= {"folded_lines": len(few.at), "fold_seconds": time.perf_counter() - began}
    own = Baskets(
        few.entities[: len(rows)], few.items, few.entity, few.item, few.at, few.event, few.quantity, few.price
    )
    began = time.perf_counter()
    made = histories(own, None, 0, newest_only=True)
    found["bulk_seconds"] = time.perf_counter() - began
    for row in made.drop_columns(["at"]).to_pylist():
        if {name: value for name, value in row.items() if name != "entity"} != rows[row["entity"]]:
            raise StackError(f"the history of {row['entity']} in bulk is not that of the fold: see the property test")
    return found


def alone(part: str, entities: int, folder: Path) -> dict[str, Any]:
    """A part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.interactions", "--child", part, str(entities), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    if done.returncode:
        raise StackError(f"{part} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Ingest, compare, print."""
    if sys.argv[1:2] == ["--child"]:
        part = {"ingested": ingested, "compared": compared}[sys.argv[2]]
        print(json.dumps(part(int(sys.argv[3]), Path(sys.argv[4]))))
        return
    given = options(__doc__, rounds=1)
    entities, cores = given.size(ENTITIES, ENTITIES_QUICK), Cores.choose()
    with tempfile.TemporaryDirectory() as folder:
        if given.profile:
            with profiled("interactions"):
                ingested(entities, Path(folder))
            return
        with on_core(cores.measured):
            found = alone("ingested", entities, Path(folder))
            say(f"from nothing {found['first_seconds']:.1f} s, a night {found['night_seconds']:.1f} s")
            found |= alone("compared", entities, Path(folder))
    bulk = found["folded_lines"] / found["bulk_seconds"]
    finish(
        {
            "benchmark": "interactions",
            "entities": entities,
            **found,
            "lines_per_second": found["lines"] / found["first_seconds"],
            "ratio_to_fold": ratio(bulk, found["folded_lines"] / found["fold_seconds"]),
            "ratio_to_reading": ratio(found["read_seconds"], found["first_seconds"]),
            **machine(cores),
        }
    )


if __name__ == "__main__":
    run(main)
