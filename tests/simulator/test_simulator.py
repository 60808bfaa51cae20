"""The protocol on a virtual clock: nothing wrong in the seeds below, and every planted bug is noticed."""

from __future__ import annotations

import pytest

from tests.simulator.bugs import BUGS, CAUGHT_AT, planted
from tests.simulator.readers import Violation
from tests.simulator.world import simulate

SEEDS = 150
SEEDS_PER_TEST = 30
BUG_SEEDS_MAX = 400


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_nothing_is_ever_mixed_missing_or_moved_back(first: int) -> None:
    worlds = [simulate(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert sum(len(world.moves) for world in worlds) > SEEDS_PER_TEST
    assert sum(world.hub.kills for world in worlds) > SEEDS_PER_TEST


def test_a_seed_is_replayed_step_by_step() -> None:
    assert simulate(7).hub.trace == simulate(7).hub.trace
    assert simulate(7).hub.trace != simulate(8).hub.trace


def live_through(first: int, count: int) -> None:
    for seed in range(first, first + count):
        simulate(seed)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug: str) -> None:
    first = CAUGHT_AT.get(bug, 0)
    with planted(bug), pytest.raises(Violation, match="seed"):
        live_through(first, BUG_SEEDS_MAX)


def test_there_are_bugs_enough() -> None:
    assert len(BUGS) >= 20
