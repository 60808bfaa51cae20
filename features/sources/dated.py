"""What all sources have in common: how far they reach, whether their clock was shifted, and what tells two apart."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol


class Dated(Protocol):
    """Something that was observed at moments."""

    @property
    def earliest(self) -> datetime:
        """The first observed moment."""
        ...

    @property
    def clock_shift(self) -> timedelta:
        """What was added to the observations' own times; zero unless replayed."""
        ...

    @property
    def identity(self) -> str:
        """Equal for two sources only if they give equal observations at every time."""
        ...

    def latest(self, now: datetime) -> datetime:
        """The last observed moment at or before `now`.

        Raises:
            SourceError: nothing was observed until then.
        """
        ...

    def describe(self) -> str:
        """One line for a person: what it is, and whether its clock was shifted."""
        ...
