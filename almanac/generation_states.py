"""What may become of a generation, in one place and without I/O: states, a table of transitions, moves of the pointer.

The store reads a `Board`, asks for a `Move`, and carries it out in the same
transaction; nothing else decides where a generation stands. The diagram in
`docs/architecture.md` is made of this table: `python -m almanac.generation_states`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from almanac.errors import GateError, UsageError


class State(StrEnum):
    """Where a generation stands. `staged` is unfinished; every other state is an outcome."""

    STAGED = "staged"
    CURRENT = "current"
    PREVIOUS = "previous"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    ARCHIVED = "archived"


class Event(StrEnum):
    """What happens to a generation."""

    PUBLISH = "publish"
    ARCHIVE = "archive"
    REJECT = "reject"
    DISPLACE = "displace"
    ROLL_BACK = "roll back"
    GO_BACK = "go back to it"
    RETIRE = "retire"


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.STAGED, Event.PUBLISH): State.CURRENT,
    (State.STAGED, Event.ARCHIVE): State.ARCHIVED,
    (State.STAGED, Event.REJECT): State.REJECTED,
    (State.CURRENT, Event.DISPLACE): State.PREVIOUS,
    (State.CURRENT, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.PREVIOUS, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.PREVIOUS, Event.GO_BACK): State.CURRENT,
    (State.ROLLED_BACK, Event.GO_BACK): State.CURRENT,
    (State.PREVIOUS, Event.RETIRE): State.RETIRED,
    (State.ROLLED_BACK, Event.RETIRE): State.RETIRED,
    (State.ARCHIVED, Event.RETIRE): State.RETIRED,
}
"""What is not here does not happen."""

FINAL = frozenset({State.RETIRED, State.REJECTED})
"""Nothing comes after these."""

TURNABLE = frozenset({State.PREVIOUS, State.ROLLED_BACK})
"""Whole, and once current: a rollback may go to these."""


def after(state: State, event: Event) -> State:
    """The state that an event leads to.

    Raises:
        UsageError: this does not happen to a generation in that state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise UsageError(f"a generation that is {state} cannot {event}: see `almanac generations`") from None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A generation on the board; `epoch` is that of the move which last made it current."""

    generation: int
    state: State
    epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Board:
    """One pipeline's pointer and the generations that a move may touch.

    Args:
        held: the generation that was rolled back; nothing is published over it until that is cleared.
        standings: by number, every generation that is not final; others are unknown here.
    """

    pipeline: str
    epoch: int = 0
    current: int | None = None
    previous: int | None = None
    held: int | None = None
    standings: Mapping[int, Standing] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Move:
    """One move of the pointer, whole: to be carried out if the epoch is still `before`.

    Args:
        changes: the states that generations come to.
        left: the generation that ceased to be current.
    """

    kind: Literal["publish", "rollback"]
    before: int
    generation: int
    previous: int | None
    held: int | None
    left: int | None
    changes: Mapping[int, State]

    @property
    def epoch(self) -> int:
        """The pointer's epoch once it has moved."""
        return self.before + 1


def publish(board: Board, generation: int) -> Move:
    """A staged generation becomes current.

    Raises:
        GateError: a rollback holds: it has to be cleared first. Nothing changes.
        UsageError: it is not staged.
    """
    if board.held is not None:
        raise GateError(
            f"generation {generation} of {board.pipeline} is not published: generation {board.held} was rolled back "
            f"and nothing goes over that by itself; once its cause is mended run `almanac rollback {board.pipeline} "
            "--clear`, then publish again"
        )
    changes = {generation: after(_standing(board, generation).state, Event.PUBLISH)}
    if board.current is not None:
        changes[board.current] = after(_standing(board, board.current).state, Event.DISPLACE)
    return Move(
        kind="publish",
        before=board.epoch,
        generation=generation,
        previous=board.current,
        held=None,
        left=board.current,
        changes=changes,
    )


def roll_back(board: Board, to: int | None = None) -> Move:
    """An earlier generation becomes current again, or one that was rolled back does.

    What became current after an earlier one is rolled back with the current one, and holds: nothing is published
    over it until that is cleared. Going back to what was rolled back displaces, and lifts the hold if it was that.

    Args:
        to: which one; None for the previous one.

    Raises:
        UsageError: there is no such generation, or it cannot be gone back to. Nothing changes.
    """
    name = board.pipeline
    target = board.previous if to is None else to
    if board.current is None:
        raise UsageError(f"pipeline {name} has published nothing yet: `almanac trigger {name}` first")
    if target is None:
        raise UsageError(f"pipeline {name} has no previous generation to go back to: `almanac generations {name}`")
    if target == board.current:
        raise UsageError(f"generation {target} of {name} is current already: name another, or none for the previous")
    standing = _standing(board, target)
    if standing.state not in TURNABLE:
        raise UsageError(
            f"generation {target} of {name} is {standing.state} and cannot be gone back to: `almanac generations "
            f"{name}` shows which are previous or rolled_back"
        )
    undo = standing.state is State.ROLLED_BACK
    changes = {target: after(standing.state, Event.GO_BACK)}
    changes[board.current] = after(State.CURRENT, Event.DISPLACE if undo else Event.ROLL_BACK)
    if not undo:
        changes |= {
            number: after(found.state, Event.ROLL_BACK)
            for number, found in board.standings.items()
            if found.state is State.PREVIOUS and number != target and (found.epoch or 0) > (standing.epoch or 0)
        }
    left = {number: found for number, found in board.standings.items() if number != target}
    behind = [
        (board.epoch if number == board.current else found.epoch or 0, number)
        for number, found in left.items()
        if changes.get(number, found.state) is State.PREVIOUS
    ]
    held = board.held if undo else board.held or board.current
    return Move(
        kind="rollback",
        before=board.epoch,
        generation=target,
        previous=max(behind)[1] if behind else None,
        held=None if undo and held == target else held,
        left=board.current,
        changes=changes,
    )


def _standing(board: Board, generation: int) -> Standing:
    found = board.standings.get(generation)
    if found is None:
        raise UsageError(
            f"pipeline {board.pipeline} has no generation {generation}: `almanac generations {board.pipeline}` "
            "lists them"
        )
    return found


def diagram() -> str:
    """The table of transitions as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "  [*] --> staged: open"]
    lines += [f"  {state} --> {to}: {event}" for (state, event), to in TRANSITIONS.items()]
    lines += [f"  {state} --> [*]" for state in State if state in FINAL]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
