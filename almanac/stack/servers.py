"""Start one embedded server by itself, without the process manager: for tests and small tools."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from almanac.errors import StackError
from almanac.stack import kafka, postgres, redis
from almanac.stack.server import Server, free_port

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
POLL_SECONDS = 0.05


@contextmanager
def running(server: Server, log: Path) -> Iterator[Server]:
    """Run a prepared server until the block ends, then end it by its pid.

    It also ends when this process dies, where `setpriv` is at hand.

    Raises:
        StackError: it did not become healthy in time; quotes the last line of its log.
    """
    command = server.command
    if setpriv := shutil.which("setpriv"):
        command = (setpriv, f"--pdeathsig={server.stop_signal}", *command)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=server.directory, env=dict(server.environment), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_healthy(server, process, log)
        yield server
    finally:
        stop(process, server.stop_signal)


def wait_healthy(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers.

    Raises:
        StackError: it exited, or did not answer in time.
    """
    give_up_at = time.monotonic() + START_SECONDS_MAX
    while (reason := server.why_not()) is not None:
        if process.poll() is not None or time.monotonic() > give_up_at:
            lines = log.read_text(errors="replace").strip().splitlines() or ["its log is empty"]
            raise StackError(f"{server.name} did not start ({reason}; log ends: {lines[-1]}): see {log}")
        time.sleep(POLL_SECONDS)


def stop(process: subprocess.Popen[bytes], stop_signal: str) -> None:
    """End a process: its own way first, then by SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.Signals[f"SIG{stop_signal}"])
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS_MAX)


@contextmanager
def running_postgres(state_dir: Path) -> Iterator[str]:
    """A Postgres of one's own, not durable; yields the URL of its database `almanac`."""
    with running(postgres.prepare(state_dir, free_port(), durable=False), state_dir / "postgres.log") as server:
        postgres.ensure_databases(state_dir, server.port)
        yield server.address


@contextmanager
def running_redis(state_dir: Path) -> Iterator[str]:
    """A Redis of one's own; yields its URL."""
    with running(redis.prepare(state_dir, free_port()), state_dir / "redis.log") as server:
        yield server.address


@contextmanager
def running_kafka(state_dir: Path, cache_dir: Path) -> Iterator[str]:
    """A Kafka broker of one's own; yields host:port."""
    with running(kafka.prepare(state_dir, free_port(), cache_dir), state_dir / "kafka.log") as server:
        yield server.address
