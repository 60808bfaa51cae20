"""Wait until a started program is healthy."""

from __future__ import annotations

import time
from collections.abc import Callable

from almanac.errors import StackError
from almanac.settings import Settings
from almanac.stack import health
from almanac.stack.places import Places
from almanac.stack.programs import AIRFLOW_PROGRAMS, SERVERS
from almanac.stack.steps import Calling, last_line
from almanac.stack.supervisor import Supervisor

HEALTHY_SECONDS_MAX = {"postgres": 60, "redis": 30, "kafka": 90, **dict.fromkeys(AIRFLOW_PROGRAMS, 480)}
HEALTHY_SECONDS_MAX_OTHERS = 90
STARTS_MAX = 2
# How often a program is asked: one that takes long to start should have the processor for itself.
ASK_SECONDS = {**dict.fromkeys(SERVERS, 0.1), **dict.fromkeys(AIRFLOW_PROGRAMS, 1.0)}
ASK_SECONDS_OTHERS = 0.25


def wait_healthy(
    places: Places, settings: Settings, name: str, calling: Calling, ask: Callable[[], str | None] | None = None
) -> None:
    """Wait until a started program is healthy.

    Args:
        ask: asks the program itself; by default as `almanac status` does.

    Raises:
        StackError: it gave up, or was not healthy in time; quotes the reason and the last line of its log.
    """
    supervisor = Supervisor(places)
    seconds_max = HEALTHY_SECONDS_MAX.get(name, HEALTHY_SECONDS_MAX_OTHERS)
    give_up_at = time.monotonic() + seconds_max
    earlier = health.restarts(places, name) or 0
    while True:
        state = supervisor.state(name)
        reason = ask() if ask and state.alive else health.why_not(name, settings, state)
        if reason is None:
            return
        failing = (health.restarts(places, name) or 0) - earlier >= STARTS_MAX
        if failing or state.state == "fatal" or time.monotonic() > give_up_at:
            limit = "keeps failing" if failing else f"was not healthy within {seconds_max} s"
            log = places.log(name)
            raise StackError(f"{name} {limit} ({reason}; its log ends: {last_line(log)}): see {log}")
        calling.pause(ASK_SECONDS.get(name, ASK_SECONDS_OTHERS))
