"""Which entities a run asks for: as the partitioning itself says, whichever way they are worked out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.partitioning import Grid
from almanac.settings import load_settings
from jobs.members import Members, cells_of
from jobs.plan import Plan
from tests.generations import bucket_pipeline

PLAN = Plan(
    pipeline="users", generation=1, token=1, cutoff="2026-03-01T12:00:00Z", as_of="2026-03-01T12:00:00Z",
    model="weather-v1", shards=[],
)  # fmt: skip


@given(rows=st.integers(1, 20), cols=st.integers(1, 20), tile=st.integers(1, 8))
def test_cells_of_a_tile_are_the_grids(rows: int, cols: int, tile: int) -> None:
    grid = Grid(rows=rows, cols=cols, tile=tile)
    for part in range(grid.count):
        assert cells_of(grid, part).tolist() == list(grid.entities(part))


def test_keys_are_listed_once_and_stand_by_bucket_and_ascending(monkeypatch: pytest.MonkeyPatch) -> None:
    users = bucket_pipeline("users")
    keys = [f"u{number:02}" for number in range(40)]
    listings = []

    def entities(*asked: object) -> Iterator[list[str]]:
        listings.append(asked)
        yield keys[:25]
        yield keys[25:]

    monkeypatch.setattr("features.tables.tables_of", lambda pipeline, settings: ())
    monkeypatch.setattr("features.tables.entities", entities)
    members = Members(users, load_settings(), replace(PLAN))
    for wanted in ([1, 0], [2], [3], list(range(users.partitions.count))):
        found = members.of(wanted)
        expected = [(key, part) for part in wanted for key in keys if users.partitions.partition_of(key) == part]
        assert list(zip(found["user_id"].to_pylist(), found["_partition"].to_pylist(), strict=True)) == expected
    assert members.of([]).num_rows == 0
    assert members.count(range(users.partitions.count)) == len(keys)
    assert len(listings) == 1
