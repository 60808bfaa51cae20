"""`almanac up`: start or adopt the stack, wait until every part is healthy, stay or leave."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from almanac.declarations import load_pipelines
from almanac.errors import StackError
from almanac.settings import Settings, load_settings
from almanac.stack import health
from almanac.stack.down import take_down
from almanac.stack.lock import held
from almanac.stack.places import Places
from almanac.stack.programs import INSTEAD, choose, environment_settings
from almanac.stack.progress import Progressing, Reporter
from almanac.stack.start import start
from almanac.stack.state import ensure_usable, unusable
from almanac.stack.status import print_addresses
from almanac.stack.supervisor import Supervisor

WATCH_SECONDS = 2.0
MANAGER_SILENT_MAX = 3
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def check_named(named: Settings) -> None:
    """Make sure that servers named by URL answer, before anything is started.

    Raises:
        StackError: one does not; names the variable.
    """
    for name, programs in INSTEAD.items():
        if getattr(named, name) and (reason := health.ask(programs[0], named, None)):
            raise StackError(f"the server of ALMANAC_{name.upper()} does not answer ({reason}): start it, or unset it")


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGHUP: end as at Ctrl-C."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def up(only: Iterable[str] | None, *, detach: bool) -> None:
    """Start or adopt the stack of the state directory that the environment names.

    In the foreground it stays until Ctrl-C, SIGTERM or SIGHUP, then takes everything down.

    Raises:
        StackError: something could not be started; what this call started was taken down again.
        UsageError: a program asked for does not exist.
    """
    named = environment_settings()
    places = Places.of(named.state_dir)
    programs = choose(named, only)
    places.make()
    with _writing(places), held(places):
        for number in END_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, _interrupt)
        adopted = Supervisor(places).alive()
        # A declaration that cannot be read must not stop what runs with a good one.
        load_pipelines((load_settings(state_dir=places.state_dir) if adopted else named).pipelines)
        check_named(named)
        reporter = Progressing()
        if not adopted:
            ensure_usable(places, programs, reporter.say)
        try:
            with reporter:
                start(places, named, programs, reporter, adopted=adopted)
        except BaseException as error:
            if not (adopted and detach) or isinstance(error, KeyboardInterrupt):
                _end(places, reporter)
            raise
        print_addresses(places, load_settings(state_dir=places.state_dir))
        if not detach:
            stay(places, reporter)


@contextmanager
def _writing(places: Places) -> Iterator[None]:
    """A disk that is full or read-only, wherever that is noticed, as one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise unusable(places, error) from None


def stay(places: Places, reporter: Reporter) -> None:
    """Stay until interrupted, then take everything down.

    Raises:
        StackError: the process manager died; what was left was taken down.
    """
    reporter.say("up; Ctrl-C takes everything down")
    try:
        watch(places, reporter)
    except KeyboardInterrupt:
        reporter.say("taking everything down")
    finally:
        _end(places, reporter)


def _end(places: Places, reporter: Reporter) -> None:
    for number in (signal.SIGINT, *END_SIGNALS):
        signal.signal(number, signal.SIG_IGN)  # it ends anyhow, and within limits
    take_down(places, reporter.say)


def watch(places: Places, reporter: Reporter) -> None:
    """Stay while the stack is up, and say what dies.

    Raises:
        StackError: the process manager died.
    """
    supervisor = Supervisor(places)
    before = {name: state for name, state in supervisor.states().items() if state.alive}
    silent = 0
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            states = supervisor.states()
        except StackError:
            silent += 1
            if silent >= MANAGER_SILENT_MAX:
                raise
            continue
        silent = 0
        for name, state in states.items():
            former = before.get(name)
            if state.state == "fatal" and (former is None or former.state != "fatal"):
                reporter.say(f"{name} keeps dying and is given up: see {places.log(name)}, then `almanac start {name}`")
            elif state.alive and former is not None and former.pid and former.pid != state.pid:
                reporter.say(f"{name} was restarted (pid {former.pid}, now {state.pid})")
        before = {
            name: state if state.alive or state.state == "fatal" else before.get(name, state)
            for name, state in states.items()
        }
