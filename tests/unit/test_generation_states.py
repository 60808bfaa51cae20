"""The state machine of generations: its table, its diagram, and what any sequence of moves leaves true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import AlmanacError, GateError, UsageError
from almanac.generation_states import (
    FINAL,
    TRANSITIONS,
    Board,
    Event,
    Move,
    Standing,
    State,
    after,
    diagram,
    publish,
    roll_back,
)

ARCHITECTURE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def carried_out(board: Board, move: Move) -> Board:
    """The board after a move, as a store writes it."""
    standings = dict(board.standings)
    for number, state in move.changes.items():
        epoch = move.epoch if number == move.generation else standings[number].epoch
        standings[number] = Standing(generation=number, state=state, epoch=epoch)
    return replace(
        board,
        epoch=move.epoch,
        current=move.generation,
        previous=move.previous,
        held=move.held,
        standings=standings,
    )


def opened(board: Board) -> tuple[Board, int]:
    number = len(board.standings) + 1
    staged = Standing(generation=number, state=State.STAGED)
    return replace(board, standings={**board.standings, number: staged}), number


def published(count: int) -> Board:
    board = Board(pipeline="weather")
    for _ in range(count):
        board, number = opened(board)
        board = carried_out(board, publish(board, number))
    return board


def states(board: Board) -> Mapping[int, str]:
    return {number: found.state.value for number, found in board.standings.items()}


def test_the_table_is_the_diagram_of_the_docs() -> None:
    """`python -m almanac.generation_states` prints it."""
    assert f"```mermaid\n{diagram()}\n```" in ARCHITECTURE.read_text()


def test_every_state_is_reached_and_nothing_follows_the_final_ones() -> None:
    assert {State.STAGED, *TRANSITIONS.values()} == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - FINAL
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_what_is_not_in_the_table_is_refused(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(UsageError, match=f"{state} cannot {event}"):
            after(state, event)


def test_going_back_rolls_back_all_that_came_later_and_holds() -> None:
    board = carried_out(published(4), roll_back(published(4), 2))
    assert states(board) == {1: "previous", 2: "current", 3: "rolled_back", 4: "rolled_back"}
    assert (board.epoch, board.current, board.previous, board.held) == (5, 2, 1, 4)
    board, number = opened(board)
    with pytest.raises(GateError, match=r"generation 4 was rolled back.*rollback weather --clear"):
        publish(board, number)
    cleared = replace(board, held=None)
    assert states(carried_out(cleared, publish(cleared, number)))[2] == "previous"


def test_going_back_to_what_was_rolled_back_undoes_it() -> None:
    board = carried_out(published(3), roll_back(published(3)))
    assert (board.current, board.held) == (2, 3)
    board = carried_out(board, roll_back(board, 3))
    assert states(board) == {1: "previous", 2: "previous", 3: "current"}
    assert (board.epoch, board.previous, board.held) == (5, 2, None)


@pytest.mark.parametrize(
    ("to", "message"),
    [(9, "no generation 9"), (3, "current already"), (4, "is staged and cannot"), (1, "is retired and cannot")],
)
def test_a_rollback_to_what_it_cannot_be_is_one_clear_line(to: int, message: str) -> None:
    board, _ = opened(published(3))
    gone = Standing(generation=1, state=State.RETIRED, epoch=1)
    board = replace(board, standings={**board.standings, 1: gone})
    with pytest.raises(UsageError, match=message):
        roll_back(board, to)


def test_without_a_previous_generation_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(UsageError, match="nothing yet: `almanac trigger weather` first"):
        roll_back(Board(pipeline="weather"), 99)
    with pytest.raises(UsageError, match="no previous generation"):
        roll_back(published(1))


@given(st.lists(st.sampled_from(["publish", "back", "clear", "retire"]) | st.integers(1, 8), max_size=25))
def test_whatever_is_asked_for_the_board_stays_whole(steps: list[str | int]) -> None:
    board = Board(pipeline="weather")
    for step in steps:
        epoch = board.epoch
        try:
            if step == "publish":
                board, number = opened(board)
                board = carried_out(board, publish(board, number))
            elif step == "clear":
                board = replace(board, held=None)
            elif step == "retire":
                board = replace(board, standings=_retired(board))
            else:
                board = carried_out(board, roll_back(board, None if step == "back" else int(step)))
        except AlmanacError:
            assert board.epoch == epoch
            continue
        assert board.epoch == epoch + (step not in ("clear", "retire"))
        assert [n for n, s in states(board).items() if s == "current"] == ([board.current] if board.current else [])
        assert board.previous is None or states(board)[board.previous] == "previous"
        assert board.held is None or states(board)[board.held] in ("rolled_back", "retired")


def _retired(board: Board) -> dict[int, Standing]:
    """Everything that the pointer does not name goes."""
    pointed = (board.current, board.previous)
    return {
        number: replace(found, state=State.RETIRED)
        if number not in pointed and (found.state, Event.RETIRE) in TRANSITIONS
        else found
        for number, found in board.standings.items()
    }
