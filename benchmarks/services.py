"""Services that benchmarks ask over HTTP: started on a core and a free port, waited for, ended by their pid."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from almanac.errors import StackError
from almanac.settings import Settings
from almanac.stack.servers import stop
from benchmarks.measuring import on_core
from benchmarks.reference import World

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
IDLE_LOOK_SECONDS = 0.3
IDLE_PERCENT_MAX = 3.0  # of one core
IDLE_SECONDS_MAX = 30.0


class Configured(Protocol):
    """What a service is started for."""

    @property
    def settings(self) -> Settings:
        """Those of this process."""

    def environment(self) -> dict[str, str]:
        """The variables from which the service's process reads its own."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]

    def memory_mb(self) -> float:
        """Resident memory of the process and its children, in megabytes."""
        return memory_mb(self.process.pid)


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its children, in megabytes."""
    whole = psutil.Process(pid)
    return float(sum(part.memory_info().rss for part in (whole, *whole.children(recursive=True))) / 1e6)


def own_memory_mb() -> float:
    """Resident memory of this process alone, in megabytes."""
    return float(psutil.Process().memory_info().rss / 1e6)


@contextmanager
def running_service(
    words: Sequence[str], world: Configured, port: int, core: int, *, ready: str, **variables: str
) -> Iterator[Service]:
    """Run this Python with some words, wait until a path answers 200, end it by SIGTERM.

    Raises:
        StackError: it ended, or did not answer in time; quotes the last line of its log.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALMANAC_")}
    log = world.settings.state_dir / f"service-{port}.log"
    with log.open("ab") as output, on_core(core):
        process = subprocess.Popen(
            [sys.executable, *words], cwd=world.settings.state_dir, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, env={**kept, **world.environment(), **variables},
        )  # fmt: skip
    service = Service(url=f"http://127.0.0.1:{port}", process=process)
    try:
        wait_for(service.url, ready, process, log)
        yield service
    finally:
        stop(process, "TERM")


def wait_for(url: str, path: str, process: subprocess.Popen[bytes] | None, log: Path | None) -> None:
    """Wait until a path answers 200.

    Raises:
        StackError: the process ended, or nothing answered in time.
    """
    give_up_at = time.monotonic() + START_SECONDS_MAX
    while not _answers(url + path):
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > give_up_at:
            lines = (log.read_text(errors="replace").strip().splitlines() if log else []) or ["no log"]
            raise StackError(f"nothing answers at {url}{path} ({lines[-1]}): see {log}")
        time.sleep(POLL_SECONDS)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  an http:// address of our own
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running_lookup(world: World, port: int, core: int) -> Iterator[Service]:
    """The lookup service as `almanac up` starts it, once it has loaded what it loads after its start."""
    words = ["-m", "serving_cache.lookup"]
    with running_service(words, world, port, core, ready="/readyz", ALMANAC_LOOKUP_PORT=str(port)) as service:
        wait_idle(service)
        yield service


def wait_idle(service: Service) -> None:
    """Wait until the process does nothing any more, or for `IDLE_SECONDS_MAX`: its model is loaded while it listens."""
    process, give_up_at = psutil.Process(service.process.pid), time.monotonic() + IDLE_SECONDS_MAX
    while process.cpu_percent(IDLE_LOOK_SECONDS) > IDLE_PERCENT_MAX and time.monotonic() < give_up_at:
        pass


@contextmanager
def running_constant(world: World, port: int, core: int, sizes: tuple[int, int]) -> Iterator[Service]:
    """Constant bytes from the same HTTP server: `sizes` for GET and for POST."""
    words = ["-m", "benchmarks.constant", str(port), *map(str, sizes)]
    with running_service(words, world, port, core, ready="/") as service:
        yield service
