"""What is measured is asked for as of a moment before any of its truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from almanac.clock import DAY_MICROSECONDS
from almanac.ragged import Ragged
from almanac.settings import load_settings
from features.ranked import Taken
from jobs.training import ranker_data
from tests.baskets import basket_pipeline

PIPELINE = basket_pipeline("baskets")
SETTINGS = load_settings(state_dir=Path("unused"))
MIDNIGHT = 20_000 * DAY_MICROSECONDS
TAKEN = Taken(  # of a file that has dates instead of times: all at midnight
    keys=pa.array(["c1", "c2", "c1"]),
    moments=np.array([MIDNIGHT, MIDNIGHT, MIDNIGHT + DAY_MICROSECONDS], np.int64),
    items=Ragged.of([["a"], ["b", "c"], ["d"]], object),
)


class Asked(Exception):
    """Enough is known."""


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def asked(pipeline: Any, settings: Any, table: pa.Table) -> pa.Table:
        found.extend(table["event_timestamp"].cast(pa.int64()).to_pylist())
        raise Asked

    monkeypatch.setattr(ranker_data, "history_at", asked)
    return found


def test_a_nightly_list_does_not_know_what_was_taken_at_its_midnight(moments: list[int]) -> None:
    with pytest.raises(Asked):
        ranker_data.nightly(PIPELINE, SETTINGS, TAKEN, MIDNIGHT)
    assert moments == [MIDNIGHT - 1] * 2


@pytest.mark.parametrize("by_night", [False, True])
def test_a_baskets_list_does_not_know_the_basket(moments: list[int], by_night: bool) -> None:
    with pytest.raises(Asked):
        list(ranker_data.each_basket(PIPELINE, SETTINGS, TAKEN, np.arange(3), by_night=by_night))
    assert moments == (TAKEN.moments - 1).tolist()
