"""Find and end what a killed stack left running: by pid, and only what is surely ours."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from almanac.errors import StackError
from almanac.stack.places import PROGRAM_FOLDERS, Places

END_SECONDS_MAX = 10.0
KILL_SECONDS_MAX = 5.0
ROUNDS_MAX = 5
EXECUTABLES = ("redis-server", "java", "postgres", "setpriv")


def _folder(process: psutil.Process) -> Path | None:
    try:
        return Path(process.cwd().removesuffix(" (deleted)"))
    except (psutil.Error, OSError):
        return None


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _recorded_session(places: Places) -> int | None:
    try:
        return int(json.loads(places.session.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_program(process: psutil.Process) -> bool:
    """Whether it runs an executable of the stack, away from any terminal."""
    try:
        name = Path(process.exe()).name
        return process.terminal() is None and (name in EXECUTABLES or name == Path(sys.executable).resolve().name)
    except (psutil.Error, OSError):
        return False


def find(places: Places) -> list[psutil.Process]:
    """What still runs of this state directory's stack.

    A process is ours if it works in one of the programs' folders and is of the
    recorded session, or runs one of the stack's executables without a terminal
    (Postgres gives each of its processes a session). If one of the recorded
    session is, all of that session are: tasks may work elsewhere.
    """
    folders = tuple(places.state_dir / name for name in PROGRAM_FOLDERS)
    recorded = _recorded_session(places)
    own = os.getsid(0)
    processes = [process for process in psutil.process_iter() if _alive(process) and process.pid != os.getpid()]
    sessions = {process.pid: _session(process) for process in processes}
    inside = [
        process
        for process in processes
        if (folder := _folder(process)) and any(folder.is_relative_to(ours) for ours in folders)
    ]
    ours = {process.pid for process in inside if _is_program(process) and sessions[process.pid] != own}
    if recorded is not None and any(sessions[process.pid] == recorded for process in inside):
        ours |= {pid for pid, session in sessions.items() if session == recorded}
    return [process for process in processes if process.pid in ours]


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise StackError(
            f"process {process.pid} of the stack belongs to another user: end it, then try again"
        ) from None


def _polite_signal(process: psutil.Process) -> int:
    """Postgres stops at SIGINT without waiting for its clients; the others at SIGTERM."""
    try:
        return signal.SIGINT if Path(process.exe()).name == "postgres" else signal.SIGTERM
    except (psutil.Error, OSError):
        return signal.SIGTERM


def _wait(processes: Iterable[psutil.Process], seconds_max: float) -> list[psutil.Process]:
    _, remaining = psutil.wait_procs(list(processes), timeout=seconds_max)
    return [process for process in remaining if _alive(process)]


def end(places: Places, tell: Callable[[str], None]) -> int:
    """End what is left, the process manager first so that it restarts nothing; returns how many were ended.

    Args:
        tell: told in one line what is being ended.

    Raises:
        StackError: something remains, or may not be ended.
    """
    ended = 0
    for _ in range(ROUNDS_MAX):
        remaining = find(places)
        if not remaining:
            return ended
        names = ", ".join(f"{_name(process)} ({process.pid})" for process in remaining[:5])
        more = f" and {len(remaining) - 5} more" if len(remaining) > 5 else ""
        tell(f"ending what was left running: {names}{more}")
        recorded = _recorded_session(places)
        managers = [process for process in remaining if process.pid == recorded]
        for process in managers:
            _signal(process, signal.SIGKILL)
        _wait(managers, KILL_SECONDS_MAX)
        others = [process for process in remaining if process.pid != recorded]
        for process in others:
            _signal(process, _polite_signal(process))
        for process in _wait(others, END_SECONDS_MAX):
            _signal(process, signal.SIGKILL)
        _wait(others, KILL_SECONDS_MAX)
        ended += len(remaining)
    remaining = find(places)
    if remaining:
        pids = ", ".join(str(process.pid) for process in remaining)
        raise StackError(f"processes {pids} of the stack could not be ended: end them by hand")
    return ended


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return "a process"
