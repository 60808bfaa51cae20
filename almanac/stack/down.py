"""`almanac down`: stop everything in reverse order, within limits, and leave no process, socket or address behind."""

from __future__ import annotations

from collections.abc import Callable

from almanac.errors import StackError
from almanac.stack import leftovers
from almanac.stack.lock import taken_over
from almanac.stack.places import Places
from almanac.stack.programs import MANAGED, STOP_STAGES
from almanac.stack.supervisor import Supervisor

SHUT_DOWN_SECONDS_MAX = 10.0
UP_ENDS_SECONDS_MAX = 90.0
STOP_MARGIN_SECONDS = 10.0


def take_down(places: Places, tell: Callable[[str], None]) -> bool:
    """Stop all programs, the process manager, and what is left; returns whether anything ran.

    Raises:
        StackError: a process could not be ended.
    """
    supervisor = Supervisor(places)
    ran = supervisor.alive()
    if ran:
        try:
            for stage in STOP_STAGES:
                known = [name for name in stage if name in supervisor.states()]
                seconds_max = max((MANAGED[name].stop_seconds for name in known), default=0) + STOP_MARGIN_SECONDS
                supervisor.stop(known, seconds_max)
            supervisor.shut_down(SHUT_DOWN_SECONDS_MAX)
        except StackError as error:
            tell(f"{error}; ending by pid what is left")
    ended = leftovers.end(places, tell)
    places.clear_run()
    return ran or ended > 0


def down(places: Places, tell: Callable[[str], None], *, purge: bool) -> bool:
    """Take the stack down, `almanac up` included; returns whether anything ran.

    Args:
        purge: also remove the state directory's data: databases, topics, models, features, logs, passwords.

    Raises:
        StackError: something could not be ended or removed.
    """
    if not places.state_dir.is_dir():
        return False
    with taken_over(places, UP_ENDS_SECONDS_MAX) as was_up:
        ran = take_down(places, tell) or was_up
        if purge:
            places.purge()
    return ran
