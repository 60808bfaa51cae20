"""Processes forked from a warm parent: what they end with, and how long they are waited for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from almanac.errors import AlmanacError

STUCK_SECONDS_MAX = 120.0
POLL_SECONDS = 0.002
WENT_WRONG, REFUSED = 1, 3
"""Exit codes: anything unforeseen; a deliberate error, which some turns lead to."""


def fork(act: Callable[[], None], folder: Path) -> int:
    """Do this in a child, which hears no Ctrl-C; returns its pid. What it raises is written down for `said_by`."""
    child = os.fork()
    if child:
        return child
    status = WENT_WRONG
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        act()
        status = 0
    except AlmanacError as error:
        _write_down(folder, error)
        status = REFUSED
    except BaseException as error:  # noqa: BLE001  (whatever it is, the parent must hear of it)
        _write_down(folder, error)
    finally:
        os._exit(status)


def wait(child: int, *, untraced: bool = False) -> int:
    """The wait status of a child; one that hangs is ended, which shows in the status."""
    until = time.monotonic() + STUCK_SECONDS_MAX
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG | (os.WUNTRACED if untraced else 0))
        if pid:
            return status
        time.sleep(POLL_SECONDS)
    os.kill(child, signal.SIGTERM)
    return os.waitpid(child, 0)[1]


def was_killed(status: int) -> bool:
    """Whether a wait status says `kill -9`."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def was_ended(status: int) -> bool:
    """Whether a wait status says SIGTERM, which nothing answered."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


def was_refused(status: int, child: int, folder: Path, error: str) -> bool:
    """Whether a child ended by this deliberate error; `error`: its name, empty for any."""
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == REFUSED and said_by(child, folder).startswith(error)


def said_by(child: int, folder: Path) -> str:
    """What a child raised; empty if nothing."""
    file = folder / f"error-{child}"
    return file.read_text() if file.exists() else ""


def _write_down(folder: Path, error: BaseException) -> None:
    (folder / f"error-{os.getpid()}").write_text(repr(error))
