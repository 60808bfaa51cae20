"""One `almanac up` or `almanac down` at a time on a state directory."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from almanac.errors import StackError
from almanac.stack.places import Places
from almanac.stack.state import unusable

POLL_SECONDS = 0.1


def _try(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return True


@contextmanager
def _opened(places: Places) -> Iterator[IO[str]]:
    try:
        file = places.lock.open("a+")
    except OSError as error:
        raise unusable(places, error) from None
    with file:
        yield file


def _holder(file: IO[str]) -> int | None:
    file.seek(0)
    text = file.read().strip()
    return int(text) if text.isdigit() else None


@contextmanager
def held(places: Places) -> Iterator[None]:
    """Hold the lock; the system frees it when this process ends, however it ends.

    Raises:
        StackError: another `almanac up` holds it; names its pid and what to do.
    """
    with _opened(places) as file:
        if not _try(file):
            holder = _holder(file)
            raise StackError(
                f"another `almanac up` (pid {holder or 'unknown'}) runs on {places.state_dir}: "
                "see `almanac status`, end it with `almanac down`, or set another ALMANAC_STATE_DIR"
            )
        yield


@contextmanager
def taken_over(places: Places, seconds_max: float) -> Iterator[bool]:
    """Hold the lock, asking its holder by SIGTERM to end first; yields whether there was a holder.

    Raises:
        StackError: the holder did not end in time, or belongs to somebody else.
    """
    with _opened(places) as file:
        asked = False
        give_up_at = time.monotonic() + seconds_max
        while not _try(file):
            holder = _holder(file)
            if holder is not None and not asked:
                try:
                    os.kill(holder, signal.SIGTERM)
                except ProcessLookupError:
                    pass  # it ended a moment ago
                except PermissionError:
                    raise StackError(
                        f"`almanac up` (pid {holder}) belongs to another user: end it as that user"
                    ) from None
                asked = True
            if time.monotonic() > give_up_at:
                raise StackError(
                    f"`almanac up` (pid {holder}) did not end within {seconds_max:.0f} s: kill -9 {holder}"
                )
            time.sleep(POLL_SECONDS)
        yield asked
