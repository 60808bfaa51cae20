"""Out of core: a point-in-time join of 100 million source rows (10 features) with 1 million entity rows.

The rows are written to Parquet files in a temporary folder (6 GB at full size),
hour by hour, and the join runs in a process of its own, whose memory, with that
of its children, is looked at all the while. Every value of the result is
compared with what the generator's formula says. `--rows` is the number of
source rows; there are a hundredth as many entity rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psutil

from almanac.clock import micros_of
from almanac.errors import StackError
from benchmarks.measuring import Cores, finish, machine, options, profiled, run, say

if TYPE_CHECKING:
    import pyarrow as pa

ROWS, ROWS_QUICK = 100_000_000, 100_000
KEYS_MAX = 100_000
ENTITY_SHARE = 100  # source rows for each entity row
FILE_ROWS = 2_000_000
FEATURES = tuple(f"feature_{number}" for number in range(10))
KEY, MOMENT = "entity_id", "event_timestamp"
BEGAN_US = micros_of(datetime(2020, 1, 1, tzinfo=UTC))
HOUR_US = 3_600_000_000
TTL = timedelta(days=2)
MEMORY_MB_MAX, SECONDS_MAX = 4_096, 600
LOOK_SECONDS = 0.05
SEED = 7
FRACTION_BITS = 24  # of a float32

Longs = npt.NDArray[np.int64]


def mixed(keys: Longs, hours: Longs | int, salt: int) -> npt.NDArray[np.uint64]:
    """A number that looks random and depends on key, hour and salt alone."""
    found: npt.NDArray[np.uint64] = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    found += np.atleast_1d(hours).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    found += np.uint64(salt * 0x165667B19E3779F9 % 2**64)
    found ^= found >> np.uint64(29)
    found *= np.uint64(0xBF58476D1CE4E5B9)
    return found ^ (found >> np.uint64(32))


def event_times(keys: Longs, hours: Longs | int) -> Longs:
    """When a key's row of an hour came: microseconds."""
    within = (mixed(keys, hours, 0) % np.uint64(HOUR_US)).astype(np.int64)
    times: Longs = BEGAN_US + hours * HOUR_US + within
    return times


def feature(keys: Longs, hours: Longs | int, number: int) -> npt.NDArray[np.float32]:
    """A feature's values, float32 in [0, 1)."""
    whole = mixed(keys, hours, number + 1) >> np.uint64(64 - FRACTION_BITS)
    return whole.astype(np.float32) / np.float32(1 << FRACTION_BITS)


def write_source(folder: Path, keys: int, hours: int) -> None:
    """An hourly row of every key, in the order of time; files of about `FILE_ROWS` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_a_file = max(1, FILE_ROWS // keys)
    for first in range(0, hours, of_a_file):
        parts = []
        for hour in range(first, min(first + of_a_file, hours)):
            times = event_times(np.arange(keys), hour)
            order = np.argsort(times)
            stamps = pa.array(times[order]).cast(pa.timestamp("us", tz="UTC"))
            values = {name: feature(order, hour, number) for number, name in enumerate(FEATURES)}
            parts.append(pa.table({KEY: order, MOMENT: stamps, **values}))
        pq.write_table(pa.concat_tables(parts), folder / f"hours-{first:06}.parquet", use_dictionary=False)


def entity_rows(rows: int, keys: int, hours: int) -> pa.Table:
    """Random keys at random moments."""
    import pyarrow as pa

    random = np.random.default_rng(SEED)
    moments = pa.array(BEGAN_US + random.integers(0, hours * HOUR_US, rows)).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({KEY: random.integers(0, keys, rows), MOMENT: moments})


def joined(folder: Path, world: tuple[int, int, int], *, profile: bool = False) -> dict[str, Any]:
    """Join, and compare every value with the formula's.

    Raises:
        StackError: one differs.
    """
    from features.asof import Files, View, join

    entities = entity_rows(*world)
    names = {name: name for name in FEATURES}
    view = View(
        name="history", source=Files(paths=(str(folder),)), keys={KEY: KEY}, timestamp=MOMENT, features=names, ttl=TTL
    )
    if profile:
        with profiled("join"):
            join(entities, [view])
    began = time.perf_counter()
    found = join(entities, [view])
    seconds = time.perf_counter() - began
    keys, moments = entities[KEY].to_numpy(), entities[MOMENT].cast("int64").to_numpy()
    hours = (moments - BEGAN_US) // HOUR_US
    hours -= event_times(keys, hours) > moments  # the hour's row had not come: the one before
    known = hours >= 0
    for number, name in enumerate(FEATURES):
        values = found[name].combine_chunks()
        right = feature(keys[known], hours[known], number)
        wrong = values.null_count != (~known).sum() or not np.array_equal(values.drop_null().to_numpy(), right)
        if wrong:
            raise StackError(
                f"the join gives other values than the generator wrote for {name}: look at features/asof.py"
            )
    return {"seconds": seconds, "found": int(known.sum())}


def watched(command: list[str], what: str = "the join") -> tuple[dict[str, Any], float]:
    """Run a program; its last line as JSON, and the most memory (MB) that it and its children had at once.

    The lines before its last are said as they come.

    Raises:
        StackError: it failed; quotes its last line.
    """
    peak, last = 0.0, [""]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        reading = threading.Thread(target=_pass_on, args=(process.stdout, last), name="lines")
        reading.start()
        while process.poll() is None:
            peak = max(peak, _memory_mb(process.pid))
            time.sleep(LOOK_SECONDS)
        reading.join()
        errors.seek(0)
        said = errors.read().strip().splitlines() or ["no message"]
    if process.returncode != 0:
        raise StackError(f"{what} ended ({said[-1]}): try fewer --rows")
    found: dict[str, Any] = json.loads(last[0])
    return found, peak


def _pass_on(lines: Iterable[str], last: list[str]) -> None:
    """Say each line once the next one has come; the last stays in `last`."""
    for line in lines:
        if last[0]:
            say(last[0])
        last[0] = line.rstrip()


def _memory_mb(pid: int) -> float:
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


def main() -> None:
    """Write, join, and print the line; or be the process that joins."""
    if len(sys.argv) > 1 and sys.argv[1] == "--inside":
        world = (int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        print(json.dumps(joined(Path(sys.argv[2]), world)))
        return
    asked = options(__doc__, rounds=1)
    rows = asked.size(ROWS, ROWS_QUICK)
    keys = min(KEYS_MAX, max(1, rows // 100))
    hours = max(1, rows // keys)
    world = (max(1, keys * hours // ENTITY_SHARE), keys, hours)
    with tempfile.TemporaryDirectory(prefix="almanac-join-") as name:
        folder = Path(name)
        say(f"writing {keys * hours:,} source rows: {keys:,} keys, {hours:,} hours")
        write_source(folder, keys, hours)
        if asked.profile:
            joined(folder, world, profile=True)
            return
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        say(f"joining {world[0]:,} entity rows with {size:,.0f} MB of files")
        command = [sys.executable, "-m", "benchmarks.join", "--inside", name, *map(str, world)]
        found, peak = watched(command)
    within = {"memory_mb_max": MEMORY_MB_MAX, "seconds_max": SECONDS_MAX}
    held = peak < MEMORY_MB_MAX and found["seconds"] < SECONDS_MAX
    figures = {"source_rows": keys * hours, "entity_rows": world[0], "features": len(FEATURES), "files_mb": size}
    rate = keys * hours / found["seconds"]
    finish(
        {"name": "join", "unit": "source rows/s", "ours": rate, **found, "peak_memory_mb": peak, **within,
         "within": held, **figures, **machine(Cores.choose())}
    )  # fmt: skip
    if not held:
        raise StackError("the join took more memory or time than it may: see the line above")


if __name__ == "__main__":
    run(main)
