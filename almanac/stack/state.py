"""A state directory's version, and whether this program can work in it: asked before anything is started.

`state.json` says which version of the layout the directory has and which Almanac wrote there
last. A directory without the file but with data is of version 0, from before there was one; every
version up to ours is brought up to date here, step by step, each step safe to run again. What lies
in the databases has versions of its own (Alembic's, Airflow's), which their migrations see to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from importlib.metadata import version

from almanac.errors import StackError
from almanac.stack import postgres
from almanac.stack.places import Places
from almanac.stack.server import write_private

STATE_VERSION = 1
ROOM_BYTES_MIN = 512 * 1024 * 1024
"""What a start takes at most: new databases, Kafka's first segments, logs."""

# From version n to n + 1. Version 1 only writes the version down.
STEPS: dict[int, Callable[[Places], None]] = {0: lambda places: None}


def version_of(places: Places) -> int | None:
    """The directory's version; None for one that holds nothing yet.

    Raises:
        StackError: the file is there and cannot be read.
    """
    try:
        return int(json.loads(places.state.read_text())["version"])
    except FileNotFoundError:
        return 0 if (places.state_dir / "secrets.json").exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{places.state} cannot be read ({error}): restore it from a backup of the folder, "
            f'or write {{"version": {STATE_VERSION}}} into it if this Almanac ran here before'
        ) from None


def ensure_usable(places: Places, programs: Collection[str], tell: Callable[[str], None]) -> None:
    """Bring the directory to this program's version, or refuse it before anything in it is touched.

    Args:
        programs: those to be started; data of others is not looked at.

    Raises:
        StackError: it is of a newer version, holds another PostgreSQL's data, is read-only or full.
    """
    found = version_of(places)
    if found is not None and found > STATE_VERSION:
        raise StackError(
            f"{places.state_dir} was used by a newer Almanac (state version {found}, this one knows {STATE_VERSION}): "
            "run that one, or set another ALMANAC_STATE_DIR"
        )
    if "postgres" in programs:
        _check_postgres(places)
    _check_room(places)
    if found is not None and found < STATE_VERSION:
        tell(f"{places.state_dir} is of state version {found}: bringing it to {STATE_VERSION}")
        for number in range(found, STATE_VERSION):
            STEPS[number](places)
    try:
        write_private(places.state, json.dumps({"version": STATE_VERSION, "almanac": version("almanac")}))
    except OSError as error:
        raise unusable(places, error) from None


def _check_postgres(places: Places) -> None:
    """PostgreSQL reads only data of its own major version."""
    try:
        found = (places.state_dir / "postgres" / "data" / "PG_VERSION").read_text().strip()
    except OSError:
        return  # none yet, or not readable: the server says why
    own = postgres.major_version()
    if found.isdigit() and int(found) != own:
        raise StackError(
            f"the databases in {places.state_dir} are of PostgreSQL {found}, this Almanac brings {own}: make a backup "
            "with the Almanac that made them (`almanac backup FILE`) and restore it in a new ALMANAC_STATE_DIR"
        )


def _check_room(places: Places) -> None:
    if not os.access(places.state_dir, os.W_OK | os.X_OK):
        raise unusable(places, PermissionError(13, "Permission denied or read-only file system"))
    free = shutil.disk_usage(places.state_dir).free
    if free < ROOM_BYTES_MIN:
        raise StackError(
            f"only {free / 1e6:,.0f} MB are free for {places.state_dir}, a start takes up to "
            f"{ROOM_BYTES_MIN / 1e6:,.0f}: make room, or set another ALMANAC_STATE_DIR"
        )


def unusable(places: Places, error: OSError) -> StackError:
    """The error for a directory that cannot be written."""
    return StackError(
        f"{places.state_dir} cannot be written ({error.strerror or error}): make room or make it writable, "
        "or set another ALMANAC_STATE_DIR"
    )
