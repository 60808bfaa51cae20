"""Files of the past that are replayed: their clock, shifted up to now once and kept, and what is said of them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from almanac.clock import HOUR, format_time
from almanac.errors import SourceError
from features.files import locked, replacing

CLOCK_FILE = "clock.json"
LIVE_WITHIN = timedelta(hours=24)  # a file that ends later than this before now is live: its clock is its own


class Recorded(Protocol):
    """A file of the past whose clock may be shifted."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of its bytes."""
        ...

    @property
    def first(self) -> datetime:
        """Its first moment, on its own clock."""
        ...

    @property
    def last(self) -> datetime:
        """Its last moment, on its own clock."""
        ...


Of = TypeVar("Of", bound=Recorded)


class Replayed(Generic[Of]):
    """What sources made of a file have in common.

    Args:
        recording: the file.
        shift: what is added to its times; see `settle_clock`.
    """

    def __init__(self, recording: Of, shift: timedelta) -> None:
        self._recording = recording
        self.clock_shift = shift

    @property
    def earliest(self) -> datetime:
        """The file's first moment, shifted."""
        return self._recording.first + self.clock_shift

    @property
    def identity(self) -> str:
        """The file's content and the shift."""
        return f"file sha256={self._recording.digest} shift_hours={self.clock_shift // HOUR}"

    def _told(self, what: str) -> str:
        """One line for a person: the file, what it has, from when to when, and whether its clock was shifted."""
        first, last = self._recording.first, self._recording.last
        text = f"{self._recording.path.name}, {what}, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
        if not self.clock_shift:
            return text
        return f"{text}; replayed with the clock shifted by {self.clock_shift // HOUR} hours"

    def _nothing_until(self, now: datetime) -> SourceError:
        shifted = " on its shifted clock" if self.clock_shift else ""
        return SourceError(
            f"{self._recording.path} has nothing at or before {format_time(now)}: "
            f"it begins at {format_time(self.earliest)}{shifted}; ask for a later time"
        )


def settle_clock(path: Path, name: str, recording: Recorded, now: datetime, step: timedelta = HOUR) -> timedelta:
    """The shift of a recording's clock: decided at its first use, kept in `path`, the same ever after.

    A whole number of steps, so that the last moment becomes one of the hour, or the day, that
    ends at `now`. Hours may turn the hour of day: training and serving read the
    same shifted clock, so the daily cycle is learnt where it then lies. Days leave nights nights.
    """
    with locked(path.with_suffix(".lock")):
        known = _read_clocks(path)
        entry = known.get(name)
        if entry is not None and entry["sha256"] == recording.digest:
            return timedelta(hours=entry["shift_hours"])
        shift = clock_shift(recording.last, now, step)
        known[name] = {
            "file": recording.path.name,
            "sha256": recording.digest,
            "shift_hours": shift // HOUR,
            "settled_at": format_time(now),
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        return shift


def _read_clocks(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())
        for entry in found.values():
            entry["sha256"], entry["shift_hours"] = str(entry["sha256"]), int(entry["shift_hours"])
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path} cannot be read ({error!r}): remove it, and the replayed clock is settled anew"
        ) from None


def clock_shift(last: datetime, now: datetime, step: timedelta = HOUR) -> timedelta:
    """What to add to times: none for a live recording, else whole steps that bring its last moment up to now."""
    if timedelta(0) <= now - last <= LIVE_WITHIN:
        return timedelta(0)
    return (now - last) // step * step
