"""What the demonstration claims, and whether each claim held."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from almanac.errors import AlmanacError


class DemoFailed(AlmanacError):
    """A stage could not be shown; its message says which and why."""


@dataclass
class Report:
    """Claims with their evidence, printed as they are made and again as a table at the end."""

    started: float = field(default_factory=time.monotonic)
    claims: list[tuple[bool, str, str]] = field(default_factory=list)

    def stage(self, title: str) -> None:
        """Announce a stage with the time since the start."""
        print(f"\n[{time.monotonic() - self.started:5.0f} s] {title}", flush=True)

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"          {text}", flush=True)

    def claim(self, held: bool, what: str, evidence: str) -> bool:
        """Record a claim and show it."""
        self.claims.append((held, what, evidence))
        self.say(f"{'✓' if held else '✗'} {what}: {evidence}")
        return held

    @property
    def held(self) -> bool:
        """Whether every claim held, and there was at least one."""
        return bool(self.claims) and all(held for held, _, _ in self.claims)

    def print_table(self) -> None:
        """The table at the end."""
        from almanac.output import print_table

        print()
        print_table(
            ["held", "what", "evidence"],
            [["yes" if held else "NO", what, evidence] for held, what, evidence in self.claims],
            title="What this run proved",
        )
