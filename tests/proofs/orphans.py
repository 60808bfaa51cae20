"""Descendants that lost their parents: adopted, so that a server that a killed command left behind can be ended."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36
GONE_SECONDS_MAX = 5.0
"""How long a process may take to end after a signal."""


class Orphans:
    """This process as the one that orphans below it are given to, in place of init (prctl(2)).

    Raises:
        OSError: the kernel refuses.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def reap(self, besides: int) -> None:
        """Take note of adopted processes that have ended, as init would: who waits for one to be gone waits no longer.

        Args:
            besides: process id of the child that somebody else waits for.
        """
        for process in psutil.Process().children():
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.pid != besides and process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)

    def end(self) -> int:
        """End every process below this one; how many were still running."""
        self.reap(0)
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=GONE_SECONDS_MAX)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=GONE_SECONDS_MAX)
        self.reap(0)
        return len(processes)
