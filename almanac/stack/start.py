"""Bring every planned program to health: the steps of a start, on a new process manager or on the one that runs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

from almanac.errors import StackError
from almanac.postgres_url import postgres_address
from almanac.settings import Settings, load_settings
from almanac.stack import airflow, kafka, leftovers, postgres, redis
from almanac.stack.places import Places
from almanac.stack.programs import (
    INSTEAD,
    MANAGED,
    NEEDS,
    PASSED_ON,
    SERVERS,
    StackPlan,
    absolute,
    addresses,
    airflow_environment,
    choose_ports,
    entry,
    program_environment,
    python_program,
    read_json,
)
from almanac.stack.progress import Reporter
from almanac.stack.server import Server, write_private
from almanac.stack.steps import Calling, Command, Step, run_command, run_steps
from almanac.stack.supervisor import Supervisor
from almanac.stack.waiting import wait_healthy

SCHEMA_SECONDS_MAX = 300
STOP_SECONDS_MAX = 30


class ProgramTable:
    """`programs.json`: what the launcher reads; written whole at each change."""

    def __init__(self, places: Places, entries: dict[str, Any]) -> None:
        self._places = places
        self._entries = entries
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The programs in it."""
        return list(self._entries)

    def put(self, server: Server) -> bool:
        """Add or replace a program; returns whether a process of it would have to restart for that."""
        with self._lock:
            old, new = self._entries.get(server.name), entry(server)
            if old != new:
                self._entries[server.name] = new
                self._write()
            return _matters(old) != _matters(new)

    def remove(self, name: str) -> None:
        """Forget a program."""
        with self._lock:
            if self._entries.pop(name, None) is not None:
                self._write()

    def _write(self) -> None:
        write_private(self._places.programs, json.dumps(self._entries, indent=1))


def _matters(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """An entry without what differs from one terminal to the next and changes nothing of the program."""
    if found is None:
        return None
    environment = {name: value for name, value in found["environment"].items() if name not in PASSED_ON}
    return {**found, "environment": environment}


class StartUp:
    """One start of the stack: the steps and what they share."""

    def __init__(self, plan: StackPlan, table: ProgramTable, reporter: Reporter) -> None:
        self.plan = plan
        self.table = table
        self.reporter = reporter
        self.calling = Calling()
        self.supervisor = Supervisor(plan.places)
        self.settings = load_settings(state_dir=plan.places.state_dir)

    def steps(self) -> list[Step]:
        """What has to be done for the planned programs."""
        programs = self.plan.programs
        steps = [Step(name, NEEDS.get(name, ()), self._work(name)) for name in programs]
        needed = {need for name in programs for need in NEEDS.get(name, ())}
        if "airflow-schema" in needed:
            steps.append(Step("airflow-schema", NEEDS["airflow-schema"], self._airflow_schema))
        if "almanac-schema" in needed:
            steps.append(Step("almanac-schema", NEEDS["almanac-schema"], self._almanac_schema))
        return steps

    def _work(self, name: str) -> Callable[[], None]:
        return (lambda: self._server(name)) if name in SERVERS else (lambda: self._python(name))

    def _server(self, name: str) -> None:
        """Start Postgres, Redis or Kafka; a running one is left as it is."""
        places, ports = self.plan.places, self.plan.ports
        if not self.supervisor.state(name).alive or name not in self.table.names():
            if name == "postgres":
                server = postgres.prepare(places.state_dir, ports[name])
            elif name == "redis":
                server = redis.prepare(places.state_dir, ports[name])
            else:
                server = kafka.prepare(places.state_dir, ports[name], absolute(self.settings.cache_dir), self._jars)
            self.calling.check()
            self.table.put(server)
            self.supervisor.start(name)
            if name == "postgres":
                self._wait(name, server.why_not)
                postgres.ensure_databases(places.state_dir, ports[name])
        self._wait(name)

    def _jars(self, done: int, total: int) -> None:
        self.calling.check()
        self.reporter.note("kafka", f"fetching jars once: {done} of {total}")

    def _python(self, name: str) -> None:
        """Start a program of Airflow's or of our own; a running one restarts if its settings changed."""
        if self.table.put(python_program(self.plan, name)) and self.supervisor.state(name).alive:
            self.supervisor.stop([name], STOP_SECONDS_MAX)
        self.calling.check()
        self.supervisor.start(name)
        self._wait(name)

    def _wait(self, name: str, ask: Callable[[], str | None] | None = None) -> None:
        wait_healthy(self.plan.places, self.settings, name, self.calling, ask)

    def _airflow_schema(self) -> None:
        """`airflow db migrate`, unless this version of Airflow did it on this database."""
        places = self.plan.places
        environment = {
            **program_environment(places, self.plan.named),
            **airflow_environment(self.plan, "airflow-api-server"),
        }
        connection = environment[airflow.CONNECTION_VARIABLE]
        given = airflow.CONNECTION_VARIABLE in os.environ
        if self.plan.named.postgres_url and not given:
            ensure_airflow_database(self.plan.named.postgres_url)
        embedded = not self.plan.named.postgres_url and not given
        database = "embedded" if embedded else hashlib.sha256(connection.encode()).hexdigest()
        marker = airflow.home(places) / "schema.json"
        wanted = {"airflow": version("apache-airflow"), "database": database}
        if read_json(marker) == wanted:
            return
        words = (sys.executable, "-m", "airflow", "db", "migrate")
        self._command("airflow-schema", words, environment)
        write_private(marker, json.dumps(wanted))

    def _almanac_schema(self) -> None:
        words = (sys.executable, "-m", "serving_cache.migrate")
        self._command("almanac-schema", words, program_environment(self.plan.places, self.plan.named))

    def _command(self, name: str, words: tuple[str, ...], environment: dict[str, str]) -> None:
        places = self.plan.places
        command = Command(
            name=name, words=words, directory=places.folder(name), environment=environment,
            log=places.log(name), seconds_max=SCHEMA_SECONDS_MAX,
        )  # fmt: skip
        run_command(command, self.calling)


def ensure_airflow_database(postgres_url: str) -> None:
    """Make the database `airflow` on a server named by URL.

    Raises:
        StackError: it is not there and may not be made.
    """
    import psycopg

    try:
        url = postgres_address(postgres_url).url
        with psycopg.connect(url, autocommit=True, connect_timeout=postgres.CONNECT_SECONDS_MAX) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'airflow'").fetchone():
                connection.execute("CREATE DATABASE airflow")
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[-1]
        raise StackError(
            f"Airflow's database `airflow` is not on the server of ALMANAC_POSTGRES_URL ({reason}): "
            f"create it, or set {airflow.CONNECTION_VARIABLE}"
        ) from None


def start(places: Places, named: Settings, programs: tuple[str, ...], reporter: Reporter, *, adopted: bool) -> None:
    """Bring every program to health, on a new process manager or on the one that runs.

    Raises:
        StackError: a program could not be started.
    """
    supervisor = Supervisor(places)
    entries: dict[str, Any] = {}
    endpoints: dict[str, Any] = {}
    in_use: dict[str, int] = {}
    if adopted:
        check_known(programs, supervisor.states())
        reporter.say("adopting the stack that is up")
        entries, endpoints = read_json(places.programs), read_json(places.endpoints)
        # A stopped program's port is kept too: the others hold its address.
        known = {"airflow" if name == "airflow-api-server" else name for name in entries}
        in_use = {name: port for name, port in read_json(places.ports).items() if name in known}
    else:
        leftovers.end(places, reporter.say)
        places.clear_run()
        places.make()
    ports = choose_ports(places, named, programs, in_use)
    url = postgres.url(places.state_dir, ports["postgres"], "almanac")
    endpoints |= addresses(places, named, programs, ports, url)
    write_private(places.endpoints, json.dumps(endpoints, indent=2))
    plan = StackPlan(places=places, named=named, programs=programs, ports=ports, endpoints=endpoints)
    table = ProgramTable(places, entries)
    if adopted:
        _drop_replaced(supervisor, table, named)
    else:
        supervisor.launch(list(MANAGED.values()))
    start_up = StartUp(plan, table, reporter)
    run_steps(start_up.steps(), reporter, start_up.calling)


def check_known(programs: Collection[str], running: Collection[str]) -> None:
    """Make sure that a process manager that runs already can start these programs: it learns them at its own start.

    Raises:
        StackError: it was started by another version of Almanac, without one of them.
    """
    unknown = [name for name in programs if name not in running]
    if unknown:
        raise StackError(
            f"the stack that is up was started by another version of Almanac, without {', '.join(unknown)}: "
            "run `almanac down`, then `almanac up`; the data stays"
        )


def _drop_replaced(supervisor: Supervisor, table: ProgramTable, named: Settings) -> None:
    """Stop programs that the caller has since named by URL."""
    replaced = [program for name, programs in INSTEAD.items() if getattr(named, name) for program in programs]
    dropped = [name for name in replaced if name in table.names()]
    supervisor.stop(dropped, STOP_SECONDS_MAX)
    for name in dropped:
        table.remove(name)
