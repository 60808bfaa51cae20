"""Who is to blame for features that are missing: the store while it fills, or a cell."""

from __future__ import annotations

import pyarrow as pa

from streaming import lacking as lacking_module
from streaming.lacking import FILLING_SECONDS_MAX, LACK_SECONDS_MAX, Lacks, probed_cells

LACKING = {13: ["lag_1h"]}


def probed(*lags: float | None) -> pa.Table:
    return pa.table({"cell_id": list(range(len(lags))), "lag_1h": pa.array(lags, pa.float32())})


FULL, FILLING, EMPTY = probed(1.0, 2.0), probed(1.0, None), probed(None, float("nan"))


def test_the_last_cell_is_among_the_probed_ones_and_there_are_few() -> None:
    assert probed_cells(20)[-1] == 19
    assert probed_cells(1_000_000)[0] == 0
    assert len(probed_cells(1_000_000)) == lacking_module.PROBED_CELLS
    assert probed_cells(1) == [0]


def test_a_store_without_features_for_anyone_is_waited_for_without_end() -> None:
    lacks = Lacks()
    assert not any(lacks.are_final(LACKING, EMPTY, float(second)) for second in range(0, 100_000, 500))


def test_a_store_that_fills_costs_no_event_and_a_cell_that_stays_empty_is_given_up() -> None:
    lacks = Lacks()
    assert not lacks.are_final(LACKING, FULL, 0.0)
    assert lacks.are_final(LACKING, FULL, LACK_SECONDS_MAX)
    assert not lacks.are_final(LACKING, FILLING, LACK_SECONDS_MAX + 1)
    assert not lacks.are_final(LACKING, FULL, LACK_SECONDS_MAX + 2)
    assert not lacks.are_final(LACKING, FULL, LACK_SECONDS_MAX + 3)
    assert lacks.are_final(LACKING, FULL, 2 * LACK_SECONDS_MAX + 2)


def test_in_a_full_store_a_cell_is_read_twice_and_a_second_event_of_it_need_not_wait() -> None:
    lacks = Lacks()
    lacks.are_final(LACKING, FULL, 0.0)
    later = LACK_SECONDS_MAX + 100
    assert lacks.are_final(LACKING, FULL, later)
    assert not lacks.are_final({14: ["lag_1h"], **LACKING}, FULL, later)
    assert lacks.are_final({14: ["lag_1h"], **LACKING}, FULL, later)


def test_a_probed_cell_that_never_has_features_holds_nobody_up_for_ever() -> None:
    lacks = Lacks()
    assert not lacks.are_final(LACKING, FILLING, 0.0)
    assert not lacks.are_final(LACKING, FILLING, FILLING_SECONDS_MAX)
    assert lacks.are_final(LACKING, FILLING, FILLING_SECONDS_MAX + LACK_SECONDS_MAX)
    lacks.none()
    assert not lacks.are_final(LACKING, FILLING, 2 * FILLING_SECONDS_MAX + LACK_SECONDS_MAX)


def test_what_a_cell_lacks_is_what_the_others_are_asked_for() -> None:
    others = probed(1.0, 1.0).append_column("hour", pa.array([None, None], pa.float32()))
    lacks = Lacks()
    lacks.are_final(LACKING, others, 0.0)
    assert lacks.are_final(LACKING, others, LACK_SECONDS_MAX)


def test_the_memory_is_bounded() -> None:
    lacks = Lacks()
    lacking_module_max = lacking_module.REMEMBERED_MAX
    lacks.are_final({cell: ["lag_1h"] for cell in range(lacking_module_max + 10)}, None, 0.0)
    assert not lacks.are_final({3: ["lag_1h"]}, None, LACK_SECONDS_MAX)  # forgotten, so read once more
    assert lacks.are_final({3: ["lag_1h"], lacking_module_max: ["lag_1h"]}, None, LACK_SECONDS_MAX)
