"""Run by the process manager for each program: become the program, with its settings of this moment.

    python -I launch.py <run folder> <program>

Reads `programs.json` and `overrides.json` in the run folder, so that a restart can
change one setting and no secret stands in a command line. Imports little: it runs
before every start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

# Long enough to close a file; what a dead scheduler's tasks were at is done again in any case.
GROUP_TERM_SECONDS = 0.5
GROUP_END_SECONDS_MAX = 2.0
POLL_SECONDS = 0.05


def _group_members(group: int) -> list[int]:
    """Processes of this session in a process group. Linux only; elsewhere none are found."""
    session = os.getsid(0)
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(entry.name)
            if os.getpgid(pid) == group and os.getsid(pid) == session:
                members.append(pid)
        except OSError:
            continue  # gone meanwhile
    return members


def _end_former(run: Path, program: str) -> None:
    """End what a killed predecessor of this program left of its process group (workers of a scheduler)."""
    path = run / f"{program}.pid"
    try:
        former = int(path.read_text())
    except (OSError, ValueError):
        former = 0
    path.write_text(str(os.getpid()))
    if former in (0, os.getpid()):
        return
    give_up_at = time.monotonic() + GROUP_TERM_SECONDS
    number = signal.SIGTERM
    while members := _group_members(former):
        for pid in members:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if time.monotonic() > give_up_at:
            if number == signal.SIGKILL:
                return
            number, give_up_at = signal.SIGKILL, time.monotonic() + GROUP_END_SECONDS_MAX
        time.sleep(POLL_SECONDS)


def launch(run: Path, program: str) -> None:
    """Replace this process by the program; returns only by an exception."""
    entry = json.loads((run / "programs.json").read_text())[program]
    environment: dict[str, str] = entry["environment"]
    overrides = run / "overrides.json"
    if overrides.exists():
        environment |= json.loads(overrides.read_text()).get(program, {})
    _end_former(run, program)
    with (run / f"{program}.starts").open("a") as starts:
        starts.write(f"{time.time():.3f}\n")
    os.chdir(entry["directory"])
    os.execve(entry["command"][0], entry["command"], environment)  # noqa: S606 - no shell is meant


if __name__ == "__main__":
    launch(Path(sys.argv[1]), sys.argv[2])
