"""Named moments at which a process may die: tests arm them, and prove that a death there tears nothing.

Outside of tests nothing is armed, and passing one costs a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

NAMES: Final = (
    "plan.opened",
    "score.claimed",
    "score.rows-written",
    "score.staged",
    "score.cached",
    "publish.indexed",
    "publish.read-back",
    "publish.manifest-written",
    "publish.attached",
    "publish.pointer-moved",
    "publish.committed",
    "rollback.prepared",
    "rollback.pointer-moved",
    "rollback.committed",
    "reconcile.compared",
    "sync.blocks-written",
    "sync.manifest-written",
    "sync.pointer-moved",
    "sync.held",
    "clean-up.manifests-dropped",
    "clean-up.detached",
    "clean-up.table-dropped",
)
"""In the order of a run: planning, scoring, publishing, rollback, reconciling, clean-up."""

_armed: Callable[[str], None] | None = None


def arm(action: Callable[[str], None] | None) -> None:
    """Have an action called with each name that this process passes from now on; None: nothing any more."""
    global _armed
    _armed = action


def passing(name: str) -> None:
    """Say that this moment has come."""
    if _armed is not None:
        _armed(name)
