"""What `python -m serving_cache.reconciler` and `…monitor` share: they run until a signal comes."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from almanac.errors import AlmanacError
from almanac.pipeline import Pipeline
from almanac.plain_text import one_line
from almanac.settings import Settings


class Stopped(BaseException):
    """A signal asked the process to end. What it does may be cut short anywhere."""


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped


def run_until_stopped(name: str, work: Callable[[Settings, Sequence[Pipeline]], None]) -> int:
    """Do the work for every declared pipeline until SIGTERM or SIGINT; returns the exit code.

    A deliberate error ends the process with its one line and its exit code.
    """
    from almanac import logs
    from almanac.declarations import pipelines
    from almanac.settings import settings

    try:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        found = settings()
        logs.configure(name, found.log_format)
        work(found, tuple(pipelines().values()))
    except Stopped:
        logging.getLogger(f"serving_cache.{name}").info("%s stopped", name)
    except AlmanacError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    return 0
