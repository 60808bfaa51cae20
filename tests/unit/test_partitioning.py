"""Partitions cover every entity exactly once, and points snap to the nearest cell."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import DeclarationError, UnknownEntity
from almanac.partitioning import Buckets, Grid

grids = st.builds(
    Grid,
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    tile=st.integers(1, 12),
    north=st.just(50.0),
    west=st.floats(-180, 179),
    step=st.sampled_from([0.1, 0.25, 1.0]),
)


@given(grids)
def test_every_cell_is_in_exactly_one_partition(grid: Grid) -> None:
    seen = [cell for partition in range(grid.count) for cell in grid.entities(partition)]
    assert sorted(seen) == list(range(grid.cells))
    for partition in range(grid.count):
        cells = list(grid.entities(partition))
        assert cells == sorted(cells)
        assert {grid.partition_of(cell) for cell in cells} == {partition}


@given(grids, st.data())
def test_a_point_snaps_to_the_cell_it_lies_in(grid: Grid, data: st.DataObject) -> None:
    cell = data.draw(st.integers(0, grid.cells - 1))
    lat, lon = grid.position(cell)
    north = data.draw(st.floats(-0.49, 0.49)) * grid.step
    east = data.draw(st.floats(-0.49, 0.49)) * grid.step
    assert grid.snap(lat + north, lon + east) == cell
    assert grid.snap(lat, lon + 360) == cell


@pytest.mark.parametrize(("lat", "lon"), [(58.2, 0.0), (49.8, 0.0), (52.0, -10.2), (52.0, 2.2), (math.nan, 0.0)])
def test_a_point_outside_the_grid_is_refused(lat: float, lon: float) -> None:
    with pytest.raises(UnknownEntity, match=r"outside the grid|finite"):
        Grid(rows=33, cols=49, tile=8).snap(lat, lon)


@pytest.mark.parametrize("cell", [-1, 1617, "17", 1.0, True, None])
def test_an_unknown_cell_is_refused(cell: object) -> None:
    with pytest.raises(UnknownEntity, match="not on the grid"):
        Grid(rows=33, cols=49, tile=8).partition_of(cell)  # type: ignore[arg-type]


@given(st.text(st.characters(exclude_characters="\0\ufffd"), min_size=1, max_size=50), st.integers(1, 1000))
def test_a_key_has_one_bucket(key: str, count: int) -> None:
    buckets = Buckets(count=count)
    assert 0 <= buckets.partition_of(key) < count
    assert buckets.partition_of(key) == Buckets(count=count).partition_of(key)


def test_buckets_do_not_depend_on_the_process() -> None:
    # Fixed by BLAKE2b: a change would send every stored user to another partition.
    assert Buckets(count=1 << 16).partition_of("17850") == 26910


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows": 0, "cols": 1, "tile": 1},
        {"rows": 1, "cols": 1, "tile": 0},
        {"rows": 9000, "cols": 9000, "tile": 8, "step": 0.01},
        {"rows": 10, "cols": 1, "tile": 1, "step": 30},
        {"rows": 1, "cols": 1, "tile": 1, "step": 0},
    ],
)
def test_a_grid_that_cannot_be_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(DeclarationError):
        Grid(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["\0", "a\0b", "a\ufffdb", "\ud800", "x\udfff"])
def test_what_no_store_takes_is_no_key(key: str) -> None:
    with pytest.raises(UnknownEntity, match="holds a zero, or a sign that stands for no text"):
        Buckets(count=4).check(key)
