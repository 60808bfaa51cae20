"""Starting the service and asking it from the command line, as a person does."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from almanac.clock import utc_now
from serving_cache.postgres import PostgresStore
from tests.generations import grid_pipeline, migrated, new_name, published_generation
from tests.lookups import declared, environment, running_lookup, unused_port

COMMAND_SECONDS_MAX = 60


@dataclass(frozen=True)
class Asked:
    variables: dict[str, str]
    pipeline: str

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`almanac lookup …` with the entry points as they are installed."""
        return subprocess.run(
            [sys.executable, "-m", "almanac.cli", "lookup", *words],
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
        )


@pytest.fixture(scope="module")
def asked(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("command")
    grid = migrated(postgres_url, grid_pipeline(new_name()))
    with PostgresStore(postgres_url) as store:
        published_generation(store, grid, 281.3, utc_now() - timedelta(minutes=20))
    file = declared(folder, f'grid = grid_pipeline("{grid.name}")')
    variables = environment(folder, file, postgres=postgres_url, redis=f"redis://127.0.0.1:{unused_port()}")
    with running_lookup(variables, folder / "log") as client:
        yield Asked({**variables, "ALMANAC_LOOKUP_URL": str(client.base_url)}, grid.name)


def test_a_table_for_a_person(asked: Asked) -> None:
    done = asked.run(asked.pipeline, "17", "18")
    assert (done.returncode, done.stderr) == (0, "")
    assert "281.3" in done.stdout
    assert "batch from postgres" in done.stdout
    assert "redis cannot be reached" in done.stdout


def test_json_for_a_script(asked: Asked) -> None:
    done = asked.run(asked.pipeline, "--lat", "57.6", "--lon", "-9.4", "--max-stale", "2h", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["entity"] == 18


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{p}", "17", "--max-stale", "60"], 6, "older than max_stale of 60 s"),
        (["{p}", "17", "99"], 6, "1 of 2 were not answered; the first: cell 99 is not on the grid"),
        (["{p}", "99"], 2, "cell 99 is not on the grid"),
        (["{p}", "17", "--max-stale", "soon"], 2, "max_stale is 'soon'"),
        (["nothing", "17"], 2, "no pipeline 'nothing' is declared"),
        (["{p}"], 2, "name what to look up"),
        (["{p}", "--lat", "57"], 2, "both --lat and --lon"),
        (["{p}", "a/../../b?c#d"], 2, "is not on the grid"),
    ],
)
def test_errors_are_one_line(asked: Asked, words: list[str], code: int, said: str) -> None:
    done = asked.run(*(word.replace("{p}", asked.pipeline) for word in words))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_service_that_is_not_there_is_one_line(asked: Asked) -> None:
    done = asked.run(asked.pipeline, "17", ALMANAC_LOOKUP_URL=f"http://127.0.0.1:{unused_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert "does not answer" in done.stderr


def started(variables: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serving_cache.lookup"],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
    )


def test_a_port_in_use_is_named_with_the_remedy(asked: Asked, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = started({**asked.variables, "ALMANAC_LOOKUP_PORT": str(port)}, tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert "ALMANAC_LOOKUP_PORT" in done.stderr


def test_a_second_service_does_not_share_the_firsts_port(asked: Asked, tmp_path: Path) -> None:
    port = asked.variables["ALMANAC_LOOKUP_URL"].rstrip("/").rpartition(":")[2]
    done = started({**asked.variables, "ALMANAC_LOOKUP_PORT": port}, tmp_path)
    assert done.returncode == 5
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALMANAC_POSTGRES_URL", "", "no postgres_url is known"),
        ("ALMANAC_LOOKUP_HOST", "192.0.2.1", "cannot listen on 192.0.2.1"),
        ("ALMANAC_LOOKUP_PORT", "70000", "port 70000 does not exist"),
        ("ALMANAC_FRESH_FOR_SECONDS", "-1", "ALMANAC_FRESH_FOR_SECONDS is not usable"),
        ("ALMANAC_PIPELINES", "nowhere.to.find", "nowhere.to.find cannot be imported"),
        ("ALMANAC_POSTGRES_URL", "postgresql://[", "Postgres URL"),
        ("ALMANAC_REDIS_URL", "http://x", "Redis URL"),
    ],
)
def test_bad_settings_are_one_line(asked: Asked, tmp_path: Path, name: str, value: str, said: str) -> None:
    variables = {**asked.variables, "ALMANAC_LOOKUP_PORT": str(unused_port()), name: value}
    done = started(variables, tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_sigint_ends_it_as_sigterm_does(asked: Asked, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "serving_cache.lookup"],
        cwd=tmp_path,
        env=asked.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=COMMAND_SECONDS_MAX)
    assert first.startswith("lookup listens on http://127.0.0.1:")
    assert "Traceback" not in rest
    assert process.returncode in (0, -signal.SIGINT)
