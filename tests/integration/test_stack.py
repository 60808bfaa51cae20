"""`almanac up`, `status`, `stop`, `start`, `restart` and `down` on real servers, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from almanac.settings import PROJECT_ROOT, load_settings, settings
from almanac.stack import health, leftovers
from almanac.stack.health import ProgramStatus
from almanac.stack.places import Places
from almanac.stack.server import secret

COMMAND_SECONDS_MAX = 150
WAIT_SECONDS_MAX = 30
STACK_EXIT = 5
USAGE_EXIT = 2


@dataclass
class Stack:
    """A state directory and the commands on it, as a person would give them."""

    state_dir: Path
    begun: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def places(self) -> Places:
        return Places.of(self.state_dir)

    def environment(self, **changes: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ALMANAC_")}
        return {
            **inherited,
            "ALMANAC_STATE_DIR": str(self.state_dir),
            "ALMANAC_CACHE_DIR": str(settings().cache_dir),
            **changes,
        }

    def run(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "almanac.cli", *words],
            cwd=PROJECT_ROOT, env=self.environment(**changes), capture_output=True, text=True,
            timeout=COMMAND_SECONDS_MAX, check=False,
        )  # fmt: skip

    def up(self, only: str, **changes: str) -> None:
        done = self.run("up", "--detach", "--only", only, **changes)
        assert done.returncode == 0, done.stderr

    def begin_up(self, only: str) -> subprocess.Popen[str]:
        """`almanac up` in the foreground; returns once everything is healthy."""
        process = subprocess.Popen(
            [sys.executable, "-m", "almanac.cli", "up", "--only", only],
            cwd=PROJECT_ROOT, env=self.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.begun.append(process)
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("up;"):
                return process
        raise AssertionError("".join(seen))

    def survey(self) -> dict[str, ProgramStatus]:
        """What `almanac status` shows, by program."""
        found = health.survey(self.places, load_settings(state_dir=self.state_dir))
        return {status.name: status for status in found}

    def pid(self, name: str) -> int:
        pid = self.survey()[name].pid
        assert pid is not None
        return pid

    def endpoints(self) -> dict[str, Any]:
        return dict(json.loads(self.places.endpoints.read_text()))

    def manager(self) -> int:
        return int(json.loads(self.places.session.read_text())["pid"])


def wait_for(what: Callable[[], Any]) -> Any:
    give_up_at = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := what()):
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.1)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended (nobody may reap it in a container: a zombie has ended)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The only line on stderr of a command that failed with this code."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("almanac:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture
def stack() -> Iterator[Stack]:
    """A state directory in a folder that only its owner may enter, with a name that is hard to quote."""
    folder = Path(tempfile.mkdtemp(prefix="almanac-stack-"))
    made = Stack(folder / "state dir #1 ; 100%")
    try:
        yield made
        if made.state_dir.exists():
            done = made.run("down")
            assert done.returncode == 0, done.stderr
            assert leftovers.find(made.places) == []
    finally:
        for process in made.begun:
            process.kill()
            process.communicate()
        if made.state_dir.exists():
            leftovers.end(made.places, print)
        shutil.rmtree(folder, ignore_errors=True)


def test_up_status_stop_start_down(stack: Stack) -> None:
    secret(stack.state_dir, "kafka-cluster", lambda: "-m0Xk3dPRGy4mS2eTn8vNw")  # one id in 64 looks like an option
    stack.up("postgres,redis,kafka")

    done = stack.run("status", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["up"]
    assert found["healthy"]
    assert [one["name"] for one in found["programs"]] == ["postgres", "redis", "kafka"]
    assert all(one["restarts"] == 0 and one["pid"] and one["since"] for one in found["programs"])
    for hidden in json.loads((stack.state_dir / "secrets.json").read_text()).values():
        assert hidden not in done.stdout
    for private in (stack.places.endpoints, stack.places.programs, stack.state_dir / "secrets.json"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    endpoints = stack.endpoints()
    with psycopg.connect(endpoints["postgres_url"]) as connection:
        connection.execute("CREATE TABLE kept (word text)")

    assert stack.run("stop", "redis").returncode == 0
    stopped = stack.run("status", "--json")
    assert stopped.returncode == STACK_EXIT
    states = {one["name"]: (one["state"], one["healthy"]) for one in json.loads(stopped.stdout)["programs"]}
    assert states == {"postgres": ("running", True), "redis": ("stopped", False), "kafka": ("running", True)}
    assert stack.run("start", "redis").returncode == 0
    assert stack.endpoints() == endpoints
    assert stack.survey()["redis"].why_not is None

    pids = [*(stack.pid(name) for name in stack.survey()), stack.manager()]
    assert stack.run("down").returncode == 0
    assert all(gone(pid) for pid in pids)
    assert leftovers.find(stack.places) == []
    assert not stack.places.endpoints.exists()
    assert not stack.places.socket.exists()
    assert stack.run("status").stdout.startswith("the stack of ")

    stack.up("postgres")  # the same data at the same address
    assert stack.endpoints()["postgres_url"] == endpoints["postgres_url"]
    assert rows_kept(stack) == 0
    assert stack.run("down", "--purge").returncode == 0
    assert not stack.state_dir.exists()


def rows_kept(stack: Stack) -> int:
    """Rows of the table that an earlier start made; fails if it is not there."""
    with psycopg.connect(stack.endpoints()["postgres_url"]) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def test_a_killed_program_is_restarted_and_counted(stack: Stack) -> None:
    stack.up("postgres,redis")
    before = stack.survey()
    for name in before:
        os.kill(stack.pid(name), signal.SIGKILL)

    def healthy_again(name: str) -> bool:
        now = stack.survey()[name]
        return now.why_not is None and now.pid != before[name].pid

    for name in before:
        wait_for(lambda name=name: healthy_again(name))
    after = stack.survey()
    assert [after[name].restarts for name in before] == [1, 1]
    assert [after[name].address for name in before] == [before[name].address for name in before]


def test_one_up_at_a_time_and_what_ends_it(stack: Stack) -> None:
    process = stack.begin_up("redis")
    pid = stack.pid("redis")
    message = one_line(stack.run("up", "--detach"), STACK_EXIT)
    assert f"pid {process.pid}" in message
    assert "almanac down" in message
    assert not gone(pid)

    process.terminate()
    assert process.wait(WAIT_SECONDS_MAX) == 0
    assert gone(pid)
    assert leftovers.find(stack.places) == []

    process = stack.begin_up("redis")
    assert stack.run("down").stdout.startswith("stopped")
    assert process.wait(WAIT_SECONDS_MAX) == 0
    assert leftovers.find(stack.places) == []


def test_what_a_kill_leaves_is_adopted_or_ended(stack: Stack) -> None:
    process = stack.begin_up("postgres,redis")
    manager, pid = stack.manager(), stack.pid("redis")
    process.kill()
    process.wait(WAIT_SECONDS_MAX)
    assert not gone(manager)

    stack.up("redis")  # the process manager lived on: adopted
    assert stack.manager() == manager
    assert stack.pid("redis") == pid
    assert list(stack.survey()) == ["postgres", "redis"]

    with psycopg.connect(stack.endpoints()["postgres_url"]) as connection:
        connection.execute("CREATE TABLE kept (word text)")
    pids = [stack.pid(name) for name in ("postgres", "redis")]
    os.kill(manager, signal.SIGKILL)
    wait_for(lambda: gone(manager))
    assert stack.run("status").returncode == STACK_EXIT
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], cwd=stack.state_dir, stdin=subprocess.PIPE)
    try:
        stack.up("postgres,redis")  # ended by pid, then started afresh
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate()
    assert all(gone(pid) for pid in pids)
    assert rows_kept(stack) == 0

    os.kill(stack.manager(), signal.SIGKILL)  # `down` finds them as well
    assert stack.run("down").stdout.startswith("stopped")
    assert leftovers.find(stack.places) == []


def test_wrong_calls_say_what_to_do(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = one_line(stack.run("up", "--detach", "--only", "lookup", ALMANAC_LOOKUP_PORT=port), STACK_EXIT)
        assert port in message
        assert "ALMANAC_LOOKUP_PORT" in message
    assert leftovers.find(stack.places) == []

    message = one_line(stack.run("up", "--detach", ALMANAC_REDIS_URL=f"redis://127.0.0.1:{port}/0"), STACK_EXIT)
    assert "ALMANAC_REDIS_URL" in message
    assert "fortran" in one_line(stack.run("up", "--only", "fortran"), USAGE_EXIT)
    assert "almanac up" in one_line(stack.run("stop", "redis"), STACK_EXIT)
    assert "COLOUR" in one_line(stack.run("restart", "lookup", "--set", "COLOUR=red"), USAGE_EXIT)


def test_a_server_named_by_url_is_used_and_not_started(stack: Stack, redis_url: str) -> None:
    stack.up("postgres,redis", ALMANAC_REDIS_URL=redis_url)
    assert stack.endpoints()["redis_url"] == redis_url
    states = {name: (status.state, status.why_not) for name, status in stack.survey().items()}
    # Healthy already, though the process manager may still count the seconds before it says "running".
    assert states["postgres"] in (("starting", None), ("running", None))
    assert states["redis"] == ("external", None)


def test_a_server_that_cannot_start_is_named_with_its_log(stack: Stack) -> None:
    data = stack.state_dir / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9.1\n")
    message = one_line(stack.run("up", "--detach", "--only", "postgres,redis"), STACK_EXIT)
    assert message.startswith("almanac: postgres keeps failing")
    assert str(stack.places.log("postgres")) in message
    assert leftovers.find(stack.places) == []
