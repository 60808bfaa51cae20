"""A clock ahead of the machine's, for every process that loads declarations: named among them in `ALMANAC_PIPELINES`.

The file that `ALMANAC_TEST_CLOCK` names holds the seconds, as a double. Both the wall clock and the steady one are
ahead, for an hour that has passed is no step. Postgres, Kafka and Airflow itself keep the machine's time; so the clock
of the demonstration that pairs errors begins behind it, for what Postgres notes must not seem to be of before.
"""

from __future__ import annotations

import mmap
import os
import struct
from datetime import datetime, timedelta
from pathlib import Path
from types import FunctionType

import almanac.clock
import almanac.steady

VARIABLE = "ALMANAC_TEST_CLOCK"
SECONDS = struct.Struct("d")


def _copy(function: FunctionType) -> FunctionType:
    return FunctionType(function.__code__, function.__globals__, function.__name__)


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
    now: datetime = getattr(almanac.clock, "machine_utc_now", almanac.clock.utc_now)()
    return now


def follow(path: Path) -> None:
    """Have this process's clocks be ahead by what the file says, from now on.

    The two functions get other code, for modules that were imported before have them by name already. That code finds
    what it calls among the names of the functions' own modules.
    """
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), SECONDS.size, access=mmap.ACCESS_READ)

    def ahead() -> float:
        return float(SECONDS.unpack_from(memory)[0])

    for module, function, code in (
        (almanac.clock, almanac.clock.utc_now, _utc_now_ahead.__code__),
        (almanac.steady, almanac.steady.steady_seconds, _steady_seconds_ahead.__code__),
    ):
        names = vars(module)
        names.setdefault(f"machine_{function.__name__}", _copy(function))
        names["ahead"], names["timedelta"] = ahead, timedelta
        function.__code__ = code


def _utc_now_ahead() -> datetime:
    return machine_utc_now() + timedelta(seconds=ahead())  # type: ignore[name-defined, no-any-return]  # noqa: F821


def _steady_seconds_ahead() -> float:
    return machine_steady_seconds() + ahead()  # type: ignore[name-defined, no-any-return]  # noqa: F821


if VARIABLE in os.environ and not hasattr(almanac.clock, "machine_utc_now"):
    follow(Path(os.environ[VARIABLE]))
