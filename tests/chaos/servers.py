"""Servers of a test's own that can be killed, frozen, starved of disk, and started again where they were."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from almanac.stack import postgres, redis
from almanac.stack.server import Server, free_port
from almanac.stack.servers import stop, wait_healthy

GONE_SECONDS_MAX = 30
UNLIMITED = resource.RLIM_INFINITY


@dataclass
class Harmed:
    """A server and its process."""

    server: Server
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return self.server.address

    def start(self, file_bytes_max: int = UNLIMITED) -> None:
        """Start it, where it was before, and wait until it answers; no file of it grows beyond so many bytes."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.server.command, cwd=self.server.directory, env=dict(self.server.environment),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, UNLIMITED)),
                restore_signals=False,  # a file that grows too large is then an error, as on a full disk, not a signal
            )  # fmt: skip
        wait_healthy(self.server, self.process, self.log)

    def kill(self) -> None:
        """End it and all its processes by SIGKILL."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()  # first: it would replace its children
        self.process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=GONE_SECONDS_MAX)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Killed now, started again at the end."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped by a signal with all its processes, as under a hung disk."""
        assert self.process is not None
        whole = [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children())]
        for pid in whole:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in whole:
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def full_disk(self, file_bytes_max: int) -> Iterator[None]:
        """Started again so that no file of it grows beyond so many bytes; at the end once more, without a limit."""
        self._stop()
        self.start(file_bytes_max)
        try:
            yield
        finally:
            self._stop()
            self.start()

    def _stop(self) -> None:
        assert self.process is not None
        stop(self.process, self.server.stop_signal)


@contextmanager
def harmed_postgres(folder: Path) -> Iterator[Harmed]:
    """A Postgres with the database `almanac`; durable, so that a kill loses nothing."""
    found = Harmed(postgres.prepare(folder, free_port()), folder / "postgres.log")
    found.start()
    try:
        postgres.ensure_databases(folder, found.server.port)
        yield found
    finally:
        found._stop()


@contextmanager
def harmed_redis(folder: Path) -> Iterator[Harmed]:
    """An empty Redis."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Harmed(redis.prepare(folder, free_port()), folder / "redis.log")
    found.start()
    try:
        yield found
    finally:
        found._stop()
