"""Fresh computation at a lookup, as the declaration has it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from almanac.errors import DeclarationError

FRESH_DEADLINE_MAX = timedelta(seconds=30)
FRESH_CONCURRENCY_MAX = 64


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Fresh computation at a lookup: what it may take, where nothing made beforehand can answer.

    Args:
        deadline: from the request's start, waiting for a slot included.
        concurrency: computations at work at once in one lookup process; others wait for a slot.
    """

    deadline: timedelta = timedelta(milliseconds=250)
    concurrency: int = 4

    def __post_init__(self) -> None:
        if not timedelta(0) < self.deadline <= FRESH_DEADLINE_MAX:
            raise DeclarationError(
                f"Fresh.deadline is {self.deadline}: give a duration above 0 and up to {FRESH_DEADLINE_MAX}"
            )
        if not 1 <= self.concurrency <= FRESH_CONCURRENCY_MAX:
            raise DeclarationError(f"Fresh.concurrency is {self.concurrency}: give 1 to {FRESH_CONCURRENCY_MAX}")
