"""`python -m streaming`: signals are answered from the first moment on, then everything else is imported."""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # Importing takes seconds, in which a signal would end the process as if it had failed.
    from streaming.process import main as work

    return work(stop)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that hangs in a client library must not keep the process
