"""Start one embedded server, or Airflow, by itself, without the process manager: for tests and small tools."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from almanac.errors import StackError
from almanac.settings import Settings
from almanac.stack import airflow, kafka, postgres, redis
from almanac.stack.places import Places
from almanac.stack.programs import program_environment
from almanac.stack.server import HOST, Server, free_port, secret

START_SECONDS_MAX = 60
AIRFLOW_SECONDS_MAX = 300
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


@contextmanager
def running_airflow(settings: Settings, database: str, dags: Path, variables: Mapping[str, str]) -> Iterator[Settings]:
    """Airflow's four programs as `almanac up` runs them; yields the settings with its address and password.

    Args:
        settings: of a state directory.
        database: SQLAlchemy URL of a database of its own.
        dags: the folder of DAG files, in place of our own.
        variables: what Almanac's settings are read from in tasks.

    Raises:
        StackError: it did not become healthy in time.
    """
    places, port = Places.of(settings.state_dir), free_port()
    places.make()
    airflow.prepare(places)
    base = f"http://{HOST}:{port}"

    def server(name: str) -> Server:
        environment = {
            **program_environment(places, settings),
            **airflow.environment(places, port, database, name),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            **variables,
        }
        command = (sys.executable, *airflow.words(name))
        return Server(
            name=name, command=command, directory=airflow.home(places), environment=environment,
            address=base, port=port, why_not=lambda: None,
        )  # fmt: skip

    first = server("airflow-api-server")
    subprocess.run(
        (sys.executable, "-m", "airflow", "db", "migrate"), env=dict(first.environment), cwd=first.directory,
        check=True, stdout=subprocess.DEVNULL, timeout=AIRFLOW_SECONDS_MAX,
    )  # fmt: skip
    with ExitStack() as stack:
        for name in airflow.ARGUMENTS:
            stack.enter_context(running(server(name), places.log(name)))
        give_up_at = time.monotonic() + AIRFLOW_SECONDS_MAX
        for name in airflow.ARGUMENTS:
            while (reason := airflow.why_not(base, name, None)) is not None:
                if time.monotonic() > give_up_at:
                    raise StackError(f"{name} did not start ({reason}): see {places.log(name)}")
                time.sleep(POLL_SECONDS)
        found = {
            "airflow_url": base, "airflow_username": airflow.USER,
            "airflow_password": secret(settings.state_dir, "airflow-admin"),
        }  # fmt: skip
        yield settings.model_copy(update=found)
