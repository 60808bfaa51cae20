"""A lookup service of its own process for tests, over real stores that hold small generations."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from almanac.pipeline import Pipeline
from tests.lookup_alone import others

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 15

DECLARATIONS = """
from datetime import timedelta

from almanac.pipeline import Fresh
from tests.generations import bucket_pipeline, grid_pipeline, list_pipeline, numbered_pipeline

{lines}
"""


def unused_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def declared(folder: Path, *lines: str) -> Path:
    """A declaration file made of lines such as `grid = grid_pipeline("name")`."""
    path = folder / "declarations.py"
    path.write_text(DECLARATIONS.format(lines="\n".join(lines)))
    return path


def environment(folder: Path, declarations: Path, *, postgres: str, redis: str, **more: str) -> dict[str, str]:
    """What the service's process reads its settings from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALMANAC_")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "ALMANAC_STATE_DIR": str(folder / "state"),
        "ALMANAC_PIPELINES": str(declarations),
        "ALMANAC_POSTGRES_URL": postgres,
        "ALMANAC_REDIS_URL": redis,
        **more,
    }


@contextmanager
def running_lookup(variables: dict[str, str], log: Path) -> Iterator[httpx.Client]:
    """Start the service on a port of its own, wait until it lives, end it by SIGTERM."""
    port = unused_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.lookup_alone", ",".join(sorted(others()))],
            cwd=log.parent,
            env={**variables, "ALMANAC_LOOKUP_PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
            _wait_alive(client, process, log)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


def _wait_alive(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            if client.get("/livez").status_code == 200:
                return
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.02)


def eventually(client: httpx.Client, path: str, place: str, tries: int = 100) -> dict[str, object]:
    """Ask until an answer comes from a place: on a busy machine a store may miss its time limit now and then."""
    for _ in range(tries):
        response = client.get(path)
        if response.status_code == 200 and response.json()["place"] == place:
            return dict(response.json())
        time.sleep(0.05)
    raise AssertionError(f"no answer from {place} in {tries} tries; the last one: {response.text}")


def cells_of(pipeline: Pipeline) -> list[int]:
    """Every cell of a small grid."""
    return [cell for partition in range(pipeline.partitions.count) for cell in pipeline.partitions.entities(partition)]  # type: ignore[union-attr]
