"""A clock ahead of the machine's, for every process that loads declarations: named among them in `ALMANAC_PIPELINES`.

The file that `ALMANAC_TEST_CLOCK` names holds the seconds, as a double. Both the wall clock and the steady one are
ahead, for an hour that has passed is no step. Postgres, Kafka and Airflow itself keep the machine's time; so the clock
of the demonstration that pairs errors begins behind it, for what Postgres notes must not seem to be of before.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from datetime import datetime, timedelta
from pathlib import Path

import almanac.clock
import almanac.steady

VARIABLE = "ALMANAC_TEST_CLOCK"
SECONDS = struct.Struct("d")

_utc_now, _steady_seconds = almanac.clock.utc_now, almanac.steady.steady_seconds


def write(path: Path, seconds: float) -> None:
    """Set how far ahead the clock is; processes that follow the file see it at once."""
    if not path.exists():
        path.write_bytes(SECONDS.pack(seconds))
        return
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SECONDS.size) as memory:
        SECONDS.pack_into(memory, 0, seconds)


def behind(turns: int) -> float:
    """Where the clock begins, so that so many hours can turn until it shows the machine's time."""
    return -3600.0 * turns


def read(path: Path) -> float:
    """How far ahead the clock is, in seconds."""
    return float(SECONDS.unpack(path.read_bytes())[0])


def machine_now() -> datetime:
    """The machine's own time."""
    return _utc_now()


def follow(path: Path) -> None:
    """Have this process's clocks be ahead by what the file says, from now on."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), SECONDS.size, access=mmap.ACCESS_READ)

    def ahead() -> float:
        return float(SECONDS.unpack_from(memory)[0])

    def utc_now() -> datetime:
        return _utc_now() + timedelta(seconds=ahead())

    def steady_seconds() -> float:
        return _steady_seconds() + ahead()

    for module in list(sys.modules.values()):  # those that have imported the functions already have them by name
        names = getattr(module, "__dict__", {})
        for name, real, ours in (("utc_now", _utc_now, utc_now), ("steady_seconds", _steady_seconds, steady_seconds)):
            if names.get(name) is real:
                setattr(module, name, ours)


if VARIABLE in os.environ and _utc_now.__module__ == almanac.clock.__name__:
    follow(Path(os.environ[VARIABLE]))
