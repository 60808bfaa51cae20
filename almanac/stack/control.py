"""`almanac stop`, `start` and `restart` of single programs of a running stack."""

from __future__ import annotations

import json
from collections.abc import Iterable

from almanac.errors import StackError, UsageError
from almanac.settings import Settings, load_settings
from almanac.stack.places import Places
from almanac.stack.programs import MANAGED, check_name, read_json
from almanac.stack.server import write_private
from almanac.stack.steps import Calling
from almanac.stack.supervisor import Supervisor
from almanac.stack.waiting import wait_healthy

STOP_MARGIN_SECONDS = 10.0
PREFIX = "ALMANAC_"


def running_stack(places: Places) -> Supervisor:
    """The process manager of a stack that is up.

    Raises:
        StackError: the stack is not up.
    """
    supervisor = Supervisor(places)
    if not supervisor.alive():
        raise StackError(f"the stack of {places.state_dir} is not up: run `almanac up`")
    return supervisor


def _of_this_stack(places: Places, name: str) -> str:
    if check_name(name) not in read_json(places.programs):
        raise UsageError(
            f"{name} is not part of this stack (named by URL, or left out by --only): see `almanac status`"
        )
    return name


def stop(places: Places, name: str) -> None:
    """Stop one program; it stays stopped until `almanac start` or `almanac up`.

    Raises:
        StackError: the stack is not up, or the program did not stop in time.
        UsageError: there is no such program.
    """
    check_name(name)
    supervisor = running_stack(places)
    _of_this_stack(places, name)
    supervisor.stop([name], MANAGED[name].stop_seconds + STOP_MARGIN_SECONDS)


def start(places: Places, name: str) -> None:
    """Start one program and wait until it is healthy.

    Raises:
        StackError: the stack is not up, or the program did not become healthy in time.
        UsageError: there is no such program.
    """
    check_name(name)
    supervisor = running_stack(places)
    _of_this_stack(places, name)
    supervisor.start(name)
    wait_healthy(places, load_settings(state_dir=places.state_dir), name, Calling())


def restart(places: Places, name: str, changes: Iterable[str]) -> None:
    """Restart one program with exactly these settings changed (none: as `almanac up` started it).

    Args:
        changes: `NAME=VALUE`, with or without the prefix `ALMANAC_`.

    Raises:
        StackError: the stack is not up, or the program did not become healthy in time.
        UsageError: no such program or setting, or a value of the wrong kind.
    """
    overrides = parse_changes(changes)
    stop(places, name)
    every = read_json(places.overrides)
    every[name] = overrides
    write_private(places.overrides, json.dumps(every))
    start(places, name)


def parse_changes(changes: Iterable[str]) -> dict[str, str]:
    """Environment variables of `NAME=VALUE` words.

    Raises:
        UsageError: not of that form, no such setting, or a value of the wrong kind.
    """
    found: dict[str, str] = {}
    for change in changes:
        name, separator, value = change.partition("=")
        field = name.upper().removeprefix(PREFIX).lower()
        if not separator:
            raise UsageError(f"--set {change!r} has no value: write NAME=VALUE")
        if field not in Settings.model_fields or field == "state_dir":
            raise UsageError(f"--set {name}: no such setting: see docs/operations.md, for example FRESH_FOR_SECONDS=30")
        load_settings(**{field: value})
        found[PREFIX + field.upper()] = value
    return found
