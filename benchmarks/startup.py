"""How long things take to start: the lookup's first answer, `almanac --help`, parsing the DAG files.

    python -m benchmarks.startup [--runs 5]

Prints a line per measurement and, last, one JSON object with the medians in
seconds. The lookup is given addresses where nothing listens: its process must
answer `/livez` whether its stores do or not. Parsing is each DAG file's own
time, beyond importing `airflow.sdk`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5
RUNS_MAX = 100
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0
PARSE_SECONDS_MAX = 180.0
POLL_SECONDS = 0.005

_PARSE = """
import runpy, sys, time
import airflow.sdk
began = time.perf_counter()
for path in sys.argv[1:]:
    runpy.run_path(path)
print(time.perf_counter() - began)
"""


def lookup_first_answer() -> float:
    """Seconds from starting the process to the first 200 of /livez.

    Raises:
        SystemExit: it exited, or did not answer within a minute.
    """
    port = _unused_port()
    with tempfile.TemporaryDirectory(prefix="almanac-bench-") as folder:
        variables = {
            **os.environ,
            "ALMANAC_STATE_DIR": folder,
            "ALMANAC_LOOKUP_HOST": "127.0.0.1",
            "ALMANAC_LOOKUP_PORT": str(port),
            "ALMANAC_POSTGRES_URL": f"postgresql://nobody@127.0.0.1:{_unused_port()}/none",
            "ALMANAC_REDIS_URL": f"redis://127.0.0.1:{_unused_port()}",
        }
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "serving_cache.lookup"],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not _alive(port):
                taken = time.perf_counter() - began
                if process.poll() is not None or taken > START_SECONDS_MAX:
                    raise SystemExit(
                        "the lookup service did not start: run `python -m serving_cache.lookup` to see why"
                    )
                time.sleep(POLL_SECONDS)
            return time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS_MAX)


def help_text() -> float:
    """Seconds that `almanac --help` takes."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "almanac.cli", "--help"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=START_SECONDS_MAX,
    )
    return time.perf_counter() - began


def dag_parse() -> float:
    """Seconds that running all DAG files takes once `airflow.sdk` is imported."""
    files = sorted(str(path) for path in (ROOT / "dags").glob("almanac_*.py"))
    with tempfile.TemporaryDirectory(prefix="almanac-bench-") as folder:
        variables = {
            **os.environ,
            "AIRFLOW_HOME": folder,
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        done = subprocess.run(
            [sys.executable, "-c", _PARSE, *files],
            cwd=folder,
            env=variables,
            check=True,
            capture_output=True,
            text=True,
            timeout=PARSE_SECONDS_MAX,
        )
    return float(done.stdout.strip().splitlines()[-1])


def median(name: str, measure: Callable[[], float], runs: int) -> float:
    """The median of several runs, each of them printed; one more before them warms the file cache."""
    measure()
    found = [measure() for _ in range(runs)]
    print(f"{name}: " + " ".join(f"{seconds:.3f}" for seconds in found) + " s", flush=True)
    return round(statistics.median(found), 4)


def main() -> None:
    """Measure all three and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each, 1 to {RUNS_MAX}")
    parser.add_argument("--quick", action="store_true", help="one run of each: does it work? Not a measurement")
    given = parser.parse_args()
    runs = 1 if given.quick else min(max(given.runs, 1), RUNS_MAX)
    medians = {
        "lookup_first_answer_seconds": median("lookup, first answer", lookup_first_answer, runs),
        "help_seconds": median("almanac --help", help_text, runs),
        "dag_parse_seconds": median("dags/, own time", dag_parse, max(1, runs // 2)),
    }
    print(json.dumps({"name": "startup", "runs": runs, "medians": medians}))


def _alive(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
