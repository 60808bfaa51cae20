"""supervisord, woken by the death of a program: `python -I manager.py -c <file>`.

supervisord waits in its poller for up to a second, looks for dead programs only then, and starts them again only
after waiting once more: up to two seconds in which nobody is answered. Here the signal of a death ends the wait.
And where supervisord waits a second longer after each death that comes soon after a start, the wait is bounded: a
program that is ended again and again from outside is back as soon the twentieth time as the first.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from supervisor import poller, process, supervisord
from supervisor.states import ProcessStates

WAKEUPS_READ_BYTES = 4096
RESTART_SECONDS_MAX = 3
"""What a program waits before it is started once more, at most; how often, `START_RETRIES` says."""


class WakingPoller(poller.PollPoller):  # type: ignore[misc]  # supervisor has no types
    """A poller that signals wake, and that does not wait the next time either: what was reaped is then started."""

    _pipe: int | None = None
    _woken = False

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        """File descriptors that can be read and written, after at most `timeout` seconds."""
        if self._pipe is None:  # only now: supervisord closes what was opened before its loop
            self._pipe, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self.register_readable(self._pipe)
        readable, writable = super().poll(0 if self._woken else timeout)
        self._woken = self._pipe in readable
        if self._woken:
            os.read(self._pipe, WAKEUPS_READ_BYTES)
            readable.remove(self._pipe)
        return readable, writable


class PromptProcess(process.Subprocess):  # type: ignore[misc]
    """A program whose wait for its next start does not grow without end."""

    delay: float

    def change_state(self, new_state: int, expected: bool = True) -> None:
        """Enter a state; before another start the wait is bounded."""
        super().change_state(new_state, expected)
        if new_state == ProcessStates.BACKOFF:
            self.delay = min(self.delay, time.time() + RESTART_SECONDS_MAX)


def main() -> None:
    """Run supervisord with the command line's arguments."""
    poller.Poller = WakingPoller
    process.Subprocess = PromptProcess
    supervisord.main(sys.argv[1:])


if __name__ == "__main__":
    main()
