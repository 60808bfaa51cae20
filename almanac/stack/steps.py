"""Steps with needs, each run in a thread as soon as what it needs is done; any of them may call the rest off."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from almanac.errors import StackError
from almanac.logs import message_of
from almanac.stack.progress import Reporter

STEPS_AT_ONCE = 12
POLL_SECONDS = 0.1
KILL_SECONDS_MAX = 5
LOG_TAIL_BYTES = 20_000
LINE_CHARACTERS_MAX = 300
TELLING = re.compile(r"^[\w.]*(Error|Exception)\b|\b(ERROR|FATAL|CRITICAL)\b")


class CalledOff(Exception):
    """Another step failed, or the user interrupted: stop quietly."""


class Calling:
    """Shared by the steps: whether to go on."""

    def __init__(self) -> None:
        self._off = threading.Event()

    def off(self) -> None:
        """Ask every step to stop."""
        self._off.set()

    def check(self) -> None:
        """Raise `CalledOff` when there is no more use in going on."""
        if self._off.is_set():
            raise CalledOff

    def pause(self, seconds: float = POLL_SECONDS) -> None:
        """Wait a moment, then check."""
        self._off.wait(seconds)
        self.check()


@dataclass(frozen=True)
class Step:
    """One thing to do: its name, the names of the steps it needs, and the work."""

    name: str
    needs: tuple[str, ...]
    work: Callable[[], None]


def run_steps(steps: Sequence[Step], reporter: Reporter, calling: Calling) -> None:
    """Run all steps, each after those it needs (needs that are not among the steps count as done).

    Raises:
        AlmanacError: of the first step that failed; the others were called off and have ended.
    """
    by_name = {step.name: step for step in steps}
    sorter = TopologicalSorter({step.name: [need for need in step.needs if need in by_name] for step in steps})
    sorter.prepare()
    pending: dict[Future[None], str] = {}
    with ThreadPoolExecutor(STEPS_AT_ONCE) as pool:
        try:
            while sorter.is_active():
                for name in sorter.get_ready():
                    reporter.begin(name)
                    pending[pool.submit(by_name[name].work)] = name
                finished, _ = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = pending.pop(future)
                    future.result()
                    reporter.done(name)
                    sorter.done(name)
        except BaseException:
            calling.off()
            raise


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program that runs once: `seconds_max` is how long it may take."""

    name: str
    words: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str]
    log: Path
    seconds_max: float


def last_line(log: Path) -> str:
    """The last line of a log that names an error, else its last line, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LOG_TAIL_BYTES, 0))
            lines = [
                message_of(line.strip()) for line in file.read().decode(errors="replace").splitlines() if line.strip()
            ]
    except OSError:
        lines = []
    telling = [line for line in lines if TELLING.search(line)]
    return (telling or lines or ["its log is empty"])[-1][:LINE_CHARACTERS_MAX]


def run_command(command: Command, calling: Calling) -> None:
    """Run a command to its end.

    Raises:
        StackError: it failed or took too long; quotes the last line of its log.
        CalledOff: the other steps were called off; the command was ended.
    """
    command.directory.mkdir(parents=True, exist_ok=True)
    give_up_at = time.monotonic() + command.seconds_max
    with command.log.open("wb") as output:
        process = subprocess.Popen(
            command.words, cwd=command.directory, env=dict(command.environment), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None:
            calling.pause()
            if time.monotonic() > give_up_at:
                raise StackError(f"{command.name} took longer than {command.seconds_max:.0f} s: see {command.log}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(KILL_SECONDS_MAX)
    if process.returncode != 0:
        raise StackError(f"{command.name} failed ({last_line(command.log)}): see {command.log}")
