"""The process manager: supervisord with a configuration of ours, in a session of its own, asked over XML-RPC."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from almanac.errors import StackError
from almanac.stack import launch
from almanac.stack.places import Places
from almanac.stack.server import secret, write_private
from almanac.stack.steps import last_line

ANSWER_SECONDS_MAX = 10.0
START_SECONDS_MAX = 20.0
POLL_SECONDS = 0.1
KILL_SECONDS_MAX = 5
PRIVATE_UMASK = 0o077
USER = "almanac"
MANAGER = Path(__file__).resolve().with_name("manager.py")
LOG_BYTES_MAX = "5MB"
LOG_BACKUPS = 2
# Each further attempt waits a second longer, up to the manager's three: about four minutes of attempts, then FATAL.
START_RETRIES = 80

# Paths come in by the environment, because this format cuts values at " #" and " ;".
CONFIGURATION = """\
; Written by almanac at each start: changes here are lost.
[unix_http_server]
file=%(ENV_ALMANAC_SOCKET)s
chmod=0600
username={user}
password={password}

[supervisord]
nodaemon=true
silent=true
identifier=almanac
logfile=%(ENV_ALMANAC_LOGS)s/supervisord.log
logfile_maxbytes=1MB
logfile_backups=1
pidfile=%(ENV_ALMANAC_RUN)s/supervisord.pid

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
SECTION = """
[program:{name}]
command=%(ENV_ALMANAC_LAUNCH)s {name}
autostart=false
autorestart=true
startsecs={start_seconds}
startretries={retries}
stopsignal={stop_signal}
stopwaitsecs={stop_seconds}
stopasgroup=true
redirect_stderr=true
stdout_logfile=%(ENV_ALMANAC_PROGRAM_LOGS)s/{name}.log
stdout_logfile_maxbytes={log_bytes}
stdout_logfile_backups={log_backups}
"""


@dataclass(frozen=True, kw_only=True)
class Managed:
    """How the process manager treats one program.

    Args:
        start_seconds: alive that long, a start counts as successful.
        stop_seconds: it gets that long to stop before SIGKILL.
    """

    name: str
    stop_signal: str = "TERM"
    start_seconds: int = 5
    stop_seconds: int = 10


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """What the process manager knows of a program; `state` in its words, in small letters."""

    name: str
    state: str
    pid: int | None
    since: datetime | None
    problem: str

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.state in ("starting", "running")


class _Connection(xmlrpc.client.Transport):
    """XML-RPC over the unix socket, with a password and a time limit."""

    def __init__(self, path: Path, password: str) -> None:
        super().__init__()
        from supervisor.xmlrpc import SupervisorTransport, UnixStreamHTTPConnection

        class Limited(UnixStreamHTTPConnection):  # type: ignore[misc]  # supervisor has no types
            def connect(self) -> None:
                super().connect()
                self.sock.settimeout(ANSWER_SECONDS_MAX)

        def connection() -> Any:
            made = Limited("localhost")
            made.socketfile = str(path)
            return made

        self._inner = SupervisorTransport(USER, password, f"unix://{path}")
        self._inner._get_connection = connection

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        try:
            return self._inner.request(host, handler, request_body, verbose)
        finally:
            self._inner.close()


class Supervisor:
    """The process manager of one state directory; safe to use from several threads."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def _call(self, method: str, *arguments: object) -> Any:
        """Ask the process manager.

        Raises:
            StackError: it does not answer, or refuses.
        """
        path = self._places.socket
        transport = _Connection(path, secret(self._places.state_dir, "supervisor"))
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(proxy, f"supervisor.{method}")(*arguments)
        except xmlrpc.client.Fault as fault:
            words = " ".join(str(argument) for argument in arguments)
            raise StackError(f"the process manager refused {method} {words} ({fault.faultString})") from None
        except (OSError, HTTPException, xmlrpc.client.ProtocolError) as error:
            raise StackError(f"the process manager does not answer ({error}): run `almanac up`") from None

    def alive(self) -> bool:
        """Whether it answers."""
        if not self._places.socket.exists():
            return False
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except StackError:
            return False

    def states(self) -> dict[str, ProcessState]:
        """All programs it knows, running or not."""
        return {entry["name"]: _state_of(entry) for entry in self._call("getAllProcessInfo")}

    def state(self, name: str) -> ProcessState:
        """One program's state."""
        return _state_of(self._call("getProcessInfo", name))

    def start(self, name: str) -> None:
        """Start a program unless it runs; does not wait for its health."""
        state = self.state(name)
        if state.state == "backoff":  # it waits to try again: try now
            self._call("stopProcess", name, True)
        if not state.alive:
            (self._places.run / f"{name}.starts").unlink(missing_ok=True)  # counts from each start that was wanted
            self._call("startProcess", name, False)

    def stop(self, names: Sequence[str], seconds_max: float) -> None:
        """Stop programs at once, and wait until all have stopped.

        Raises:
            StackError: one still runs after the time limit.
        """
        for name in names:
            if self.state(name).state in ("starting", "running", "backoff"):
                self._call("stopProcess", name, False)
        give_up_at = time.monotonic() + seconds_max
        while remaining := [name for name in names if self.state(name).state in ("running", "starting", "stopping")]:
            if time.monotonic() > give_up_at:
                raise StackError(f"{', '.join(remaining)} did not stop within {seconds_max:.0f} s: `almanac down`")
            time.sleep(POLL_SECONDS)

    def shut_down(self, seconds_max: float) -> None:
        """End it with all its programs; by SIGKILL after the time limit."""
        process = manager_process(self._places)
        self._call("shutdown")
        if process is None:
            return
        try:
            process.wait(seconds_max)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(KILL_SECONDS_MAX)

    def launch(self, programs: Sequence[Managed]) -> subprocess.Popen[bytes]:
        """Start supervisord itself, in a session of its own, with no program started yet.

        Raises:
            StackError: it does not answer in time.
        """
        places = self._places
        write_private(places.configuration, _configuration(places, programs))
        starter = [sys.executable, "-I", str(Path(launch.__file__).resolve()), str(places.run)]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "ALMANAC_LAUNCH": shlex.join(starter),
            "ALMANAC_LOGS": str(places.logs),
            "ALMANAC_PROGRAM_LOGS": str(places.logs).replace("%", "%%"),  # expanded twice
            "ALMANAC_RUN": str(places.run),
            "ALMANAC_SOCKET": str(places.socket),
        }
        places.socket.unlink(missing_ok=True)
        with (places.logs / "supervisord.out").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", str(MANAGER), "-c", str(places.configuration)],
                cwd=places.run, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, umask=PRIVATE_UMASK,
            )  # fmt: skip
        record = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
        write_private(places.session, json.dumps(record))
        give_up_at = time.monotonic() + START_SECONDS_MAX
        while not self.alive():
            if process.poll() is not None or time.monotonic() > give_up_at:
                process.kill()
                process.wait(KILL_SECONDS_MAX)
                reason = last_line(places.logs / "supervisord.out")
                raise StackError(f"the process manager did not start ({reason}): see {places.logs}/supervisord.log")
            time.sleep(POLL_SECONDS)
        return process


def manager_process(places: Places) -> psutil.Process | None:
    """The live process of the recorded process manager."""
    try:
        record = json.loads(places.session.read_text())
        process = psutil.Process(record["pid"])
        if process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (OSError, ValueError, KeyError, psutil.Error):
        pass
    return None


def _configuration(places: Places, programs: Sequence[Managed]) -> str:
    text = CONFIGURATION.format(user=USER, password=secret(places.state_dir, "supervisor"))
    return text + "".join(
        SECTION.format(
            name=program.name,
            start_seconds=program.start_seconds,
            retries=START_RETRIES,
            stop_signal=program.stop_signal,
            stop_seconds=program.stop_seconds,
            log_bytes=LOG_BYTES_MAX,
            log_backups=LOG_BACKUPS,
        )
        for program in programs
    )


def _state_of(entry: dict[str, Any]) -> ProcessState:
    since = datetime.fromtimestamp(entry["start"], UTC) if entry["start"] else None
    return ProcessState(
        name=entry["name"],
        state=entry["statename"].lower(),
        pid=entry["pid"] or None,
        since=since,
        problem=entry["spawnerr"],
    )
