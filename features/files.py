"""Files that are whole or absent: atomic replacement and a lock between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from almanac.errors import Unavailable

LOCK_WAIT_SECONDS_MAX = 300.0
LOCK_POLL_SECONDS = 0.1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; after the block, flush it to disk and rename it over `path`.

    A reader, or a death at any moment, finds the old file or the new one. When
    the block raises, `path` stays as it was.

    Args:
        lasting: False for what nobody reads after the machine stopped: it is not flushed, and may be damaged then.

    Raises:
        Unavailable: the disk is full.
    """
    try:
        with _replacing(path, lasting) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise Unavailable(
            f"{path} cannot be written, the disk is full ({os.strerror(error.errno)}); the file is as it was: "
            "free some space, then try again"
        ) from error


@contextmanager
def _replacing(path: Path, lasting: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name must not end in .parquet: readers take every such file of a folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield temporary
        if lasting:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if not lasting:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(path: Path, wait_seconds_max: float = LOCK_WAIT_SECONDS_MAX) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel frees it when its holder dies.

    Raises:
        Unavailable: another process held the lock all the time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds_max
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unavailable(
                        f"{path} was locked by another process for {wait_seconds_max:.0f} s: retry when that has ended"
                    ) from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
