"""Decisions and files of the embedded stack that need no server."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from almanac.errors import StackError, UsageError
from almanac.settings import Settings
from almanac.stack import airflow, control, kafka_jars, launch, leftovers, lock, postgres, programs, system
from almanac.stack.places import SOCKET_PATH_BYTES_MAX, Places
from almanac.stack.server import PORTS, free_port, port_is_free, secret, write_private
from almanac.stack.start import ProgramTable, check_known
from almanac.stack.steps import CalledOff, Calling, Command, Step, last_line, run_command, run_steps
from almanac.stack.supervisor import Supervisor


class Quiet:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.done_steps: list[str] = []

    def begin(self, step: str) -> None: ...

    def note(self, step: str, text: str) -> None: ...

    def done(self, step: str) -> None:
        self.done_steps.append(step)

    def say(self, text: str) -> None: ...


def named(**values: object) -> Settings:
    """Settings as if the caller had named only these."""
    return Settings.model_construct(_fields_set=set(values), **{**defaults(), **values})


def defaults() -> dict[str, object]:
    return {name: field.default for name, field in Settings.model_fields.items()}


# Secrets and ports


def test_a_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: secret(tmp_path, f"part-{number % 4}"), range(32)))
    assert len(set(made)) == 4
    assert made == [secret(tmp_path, f"part-{number % 4}") for number in range(32)]
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_damaged_secrets_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(StackError, match="cannot be read"):
        secret(tmp_path, "redis")
    assert (tmp_path / "secrets.json").read_text() == "{"


def test_a_private_file_replaces_another_whole(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["endpoints.json"]


def test_free_ports_lie_below_those_of_outgoing_connections() -> None:
    port = free_port()
    assert port in PORTS
    assert PORTS.stop <= 32_768
    assert port_is_free(port)


# What runs


def test_all_programs_but_those_named_by_url() -> None:
    assert programs.choose(named(), None) == tuple(programs.MANAGED)
    without = programs.choose(named(redis_url="redis://h/0", airflow_url="http://h"), None)
    assert without == ("postgres", "kafka", "reconciler", "stream", "monitor", "lookup")
    assert programs.choose(named(), ["redis", "postgres"]) == ("postgres", "redis")
    with pytest.raises(UsageError, match="no program is named 'cobol': name one of postgres, redis"):
        programs.choose(named(), ["cobol"])


def test_every_program_is_stopped_in_some_stage_and_needs_what_exists() -> None:
    staged = [name for stage in programs.STOP_STAGES for name in stage]
    assert sorted(staged) == sorted(programs.MANAGED)
    assert {need for needs in programs.NEEDS.values() for need in needs} <= {*programs.MANAGED, *programs.NEEDS}


def test_ports_of_last_time_are_kept(tmp_path: Path) -> None:
    places = Places.of(tmp_path)
    first = programs.choose_ports(places, named(), programs.MANAGED, {})
    assert len(set(first.values())) == len(first) == 8
    assert programs.choose_ports(places, named(), programs.MANAGED, {}) == first
    places.ports.write_text("{")  # damaged: chosen anew
    assert set(programs.choose_ports(places, named(), programs.MANAGED, {})) == set(first)


def test_a_stack_of_another_version_is_not_adopted() -> None:
    check_known(["redis", "lookup"], programs.MANAGED)
    with pytest.raises(StackError, match=r"without monitor: run `almanac down`, then `almanac up`"):
        check_known(programs.MANAGED, set(programs.MANAGED) - {"monitor"})


def test_a_port_named_for_metrics_is_the_first_of_three(tmp_path: Path) -> None:
    places = Places.of(tmp_path)
    first = next(p for p in range(21_000, 31_000, 3) if all(port_is_free(p + n) for n in range(3)))
    caller = named(metrics_port=first)
    found = programs.choose_ports(places, caller, programs.MANAGED, {})
    assert [found[name] for name in ("reconciler", "stream", "monitor")] == [first, first + 1, first + 2]
    plan = programs.StackPlan(places=places, named=caller, programs=(), ports=found, endpoints={})
    ports = {
        name: programs.python_program(plan, name).environment.get("ALMANAC_METRICS_PORT") for name in programs.MODULES
    }
    assert ports == {"reconciler": f"{first}", "stream": f"{first + 1}", "monitor": f"{first + 2}", "lookup": None}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 2))
        taken.listen()
        with pytest.raises(StackError, match="ALMANAC_METRICS_PORT, for monitor"):
            programs.choose_ports(places, caller, programs.MANAGED, {})


def test_addresses_written_down_are_settings_and_urls_named_win(tmp_path: Path) -> None:
    places = Places.of(tmp_path)
    ports = dict.fromkeys(("postgres", "redis", "kafka", "airflow", "lookup", *programs.METRICS_PROGRAMS), 1)
    caller = named(redis_url="redis://elsewhere/0", source_data="weather=data.grib", lookup_host="0.0.0.0")  # noqa: S104
    chosen = programs.choose(caller, None)
    found = programs.addresses(places, caller, chosen, ports, "postgresql://u@h/almanac")
    assert set(found) <= set(Settings.model_fields)
    assert found["redis_url"] == "redis://elsewhere/0"
    assert found["source_data"] == f"weather={Path.cwd() / 'data.grib'}"
    assert found["lookup_url"] == found["monitor_url"] == "http://127.0.0.1:1"
    assert found["origin_secret"] == secret(tmp_path, "stream-origin")
    assert "metrics_port" not in found
    assert "source_seed" not in found


def test_programs_see_absolute_paths_and_only_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMANAC_SOURCE_DATA", "weather=data.grib")
    monkeypatch.setenv("ALMANAC_PIPELINES", "pipelines, mine.py")
    monkeypatch.setenv("SOMEBODYS_TOKEN", "secret")
    monkeypatch.setenv("AIRFLOW_HOME", "/elsewhere")
    found = programs.program_environment(Places.of(tmp_path), programs.environment_settings())
    assert found["ALMANAC_SOURCE_DATA"] == f"weather={Path.cwd() / 'data.grib'}"
    assert found["ALMANAC_PIPELINES"] == f"pipelines,{Path.cwd() / 'mine.py'}"
    assert found["ALMANAC_STATE_DIR"] == str(tmp_path)
    assert not {"SOMEBODYS_TOKEN", "AIRFLOW_HOME"} & set(found)


def test_an_entry_changes_for_settings_and_not_for_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places.of(tmp_path)
    places.make()
    table = ProgramTable(places, {})

    def put() -> bool:
        caller = programs.environment_settings()
        plan = programs.StackPlan(places=places, named=caller, programs=(), ports={"stream": 1}, endpoints={})
        return table.put(programs.python_program(plan, "stream"))

    put()
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert not put()
    monkeypatch.setenv("ALMANAC_FRESH_FOR_SECONDS", "30")
    assert put()


def test_airflow_uses_the_database_beside_a_named_one() -> None:
    found = airflow.database_url("postgresql://u:p%40@h:5/almanac?sslmode=require")
    assert found == "postgresql+psycopg2://u:p%40@h:5/airflow?sslmode=require"


@pytest.mark.parametrize(
    ("change", "words"),
    [("FRESH_FOR_SECONDS", "NAME=VALUE"), ("COLOUR=red", "COLOUR"), ("FRESH_FOR_SECONDS=soon", "FRESH_FOR_SECONDS")],
)
def test_wrong_changes_are_refused(change: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        control.parse_changes([change])


def test_changes_become_environment_variables() -> None:
    given = ["FRESH_FOR_SECONDS=30", "ALMANAC_LOOKUP_HOST=127.0.0.1"]
    assert control.parse_changes(given) == {"ALMANAC_FRESH_FOR_SECONDS": "30", "ALMANAC_LOOKUP_HOST": "127.0.0.1"}


# Files


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    places = Places.of(tmp_path / ("deep" * 30))
    assert len(os.fsencode(places.socket)) <= SOCKET_PATH_BYTES_MAX
    assert places.socket != Places.of(tmp_path / ("deep" * 29)).socket
    places.make()
    assert stat.S_IMODE(places.socket.parent.stat().st_mode) == 0o700
    places.clear_run()
    assert not places.socket.parent.exists()


def test_an_unusable_state_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="ALMANAC_STATE_DIR"):
        Places.of(tmp_path / "file" / "state").make()


def test_a_jar_of_other_content_is_noticed(tmp_path: Path) -> None:
    jar = kafka_jars.locked()[0]
    assert not jar.intact(tmp_path)
    jar.path(tmp_path).parent.mkdir(parents=True)
    jar.path(tmp_path).write_bytes(b"something else")
    assert not jar.intact(tmp_path)


def test_every_locked_jar_has_a_hash_and_the_broker_is_among_them() -> None:
    jars = kafka_jars.locked()
    assert all(len(jar.sha256) == 64 for jar in jars)
    roots = {":".join((jar.group, jar.artifact, jar.version)) for jar in jars}
    assert set(kafka_jars.ROOTS) <= roots


def test_postgres_binaries_are_the_newest_in_the_wheel() -> None:
    folder = postgres.binaries()
    assert (folder / "initdb").is_file()
    done = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True)
    assert " 18." in done.stdout


# Steps


def test_steps_run_after_what_they_need() -> None:
    order: list[str] = []
    reporter = Quiet()
    steps = [
        Step("last", ("middle", "absent"), lambda: order.append("last")),
        Step("middle", ("first",), lambda: order.append("middle")),
        Step("first", (), lambda: order.append("first")),
    ]
    run_steps(steps, reporter, Calling())
    assert order == ["first", "middle", "last"]
    assert reporter.done_steps == order


def test_a_failed_step_calls_the_others_off() -> None:
    calling = Calling()
    started = threading.Event()
    ended: list[str] = []

    def long() -> None:
        try:
            started.set()
            while True:
                calling.pause()
        except CalledOff:
            ended.append("long")
            raise

    def failing() -> None:
        started.wait(5)
        raise StackError("no disk")

    with pytest.raises(StackError, match="no disk"):
        run_steps([Step("long", (), long), Step("failing", (), failing)], Quiet(), calling)
    assert ended == ["long"]


def command(tmp_path: Path, code: str, seconds_max: float = 20) -> Command:
    words = (sys.executable, "-I", "-c", code)
    return Command(
        name="schema", words=words, directory=tmp_path, environment={}, log=tmp_path / "log", seconds_max=seconds_max
    )


def test_a_failed_command_quotes_its_error(tmp_path: Path) -> None:
    code = "print('ValueError: no such table'); print('see the manual'); raise SystemExit(1)"
    with pytest.raises(StackError, match=r"schema failed \(ValueError: no such table\): see .*log"):
        run_command(command(tmp_path, code), Calling())


def test_a_command_without_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="longer than 1 s"):
        run_command(command(tmp_path, "input() if False else __import__('time').sleep(60)", 1), Calling())
    assert last_line(tmp_path / "log") == "its log is empty"


# Launcher, lock, leftovers


def test_the_launcher_becomes_the_program_with_its_changed_setting(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['A'], os.environ['B'], os.getpid(), 'HOME' in os.environ)"
    entry = {
        "command": [sys.executable, "-I", "-c", code],
        "directory": str(tmp_path),
        "environment": {"A": "1", "B": "2"},
    }
    (tmp_path / "programs.json").write_text(json.dumps({"lookup": entry}))
    (tmp_path / "overrides.json").write_text(json.dumps({"lookup": {"B": "3"}, "stream": {"A": "9"}}))
    starter = [sys.executable, "-I", launch.__file__, str(tmp_path), "lookup"]
    with subprocess.Popen(starter, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=20)
    assert output.split() == [str(tmp_path), "1", "3", str(process.pid), "False"]
    assert (tmp_path / "lookup.pid").read_text() == str(process.pid)
    assert len((tmp_path / "lookup.starts").read_text().splitlines()) == 1


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    places = Places.of(tmp_path)
    with lock.held(places), pytest.raises(StackError, match=f"pid {os.getpid()}"), lock.held(places):
        pass
    with lock.taken_over(places, 1) as was_held:
        assert not was_held


def test_processes_elsewhere_are_not_ours(tmp_path: Path) -> None:
    places = Places.of(tmp_path)
    places.make()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    places.session.write_text(json.dumps({"pid": os.getsid(0), "created": 0}))  # our own session's number
    waiting = [sys.executable, "-I", "-c", "input()"]
    found = {}
    for folder, name in ((elsewhere, "elsewhere"), (places.run, "inside")):
        with subprocess.Popen(waiting, cwd=folder, stdin=subprocess.PIPE, start_new_session=True) as process:
            found[name] = process.pid in [one.pid for one in leftovers.find(places)]
            process.communicate(b"\n")
    assert found == {"elsewhere": False, "inside": True}


def test_no_process_manager_no_answer(tmp_path: Path) -> None:
    places = Places.of(tmp_path)
    places.make()
    assert not Supervisor(places).alive()
    places.socket.write_text("not a socket")
    assert not Supervisor(places).alive()


# System libraries


def test_a_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "LIBRARY", "libnotthere.so.1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StackError, match=r"libnotthere\.so\.1.*install libgomp1"):
        system.ensure_libgomp()
