"""Batch, stream and fresh computation say the same of the same moment, to the bit. The long form: `make parity`."""

from __future__ import annotations

import pytest

from tests.parity.cells import Cells
from tests.parity.shoppers import World

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CUSTOMERS, CELLS = 100, 100


def test_lists_are_the_same_whoever_makes_them() -> None:
    world = World.of(CUSTOMERS, seed=11)
    batch = world.batch()
    assert len(batch) == CUSTOMERS
    assert len({one.scores for _, one in batch.values()}) > CUSTOMERS * 0.9
    assert world.stream() == batch
    assert world.fresh() == batch


def test_numbers_are_the_same_whoever_makes_them() -> None:
    cells = Cells.of(CELLS, seed=11)
    batch = cells.batch()
    assert len(set(batch.values())) > CELLS * 0.9
    assert cells.stream() == batch
    assert cells.fresh() == batch
