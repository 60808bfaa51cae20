"""Questions about one moment, as a batch run asks them: the newest rows of a source come first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import asof_chunks, asof_index, asof_search
from features.asof import Files, View, join

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


def test_of_one_moment_older_row_groups_are_read_for_those_alone_who_are_not_in_newer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = [BEGAN + timedelta(hours=hour) for hour in range(4) for _ in range(3)]
    table = pa.table({"k": [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 9], "ts": pa.array(stamps, STAMP), "x": list(range(12))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    monkeypatch.setattr(asof_chunks, "BATCH_ROWS_MAX", 3)
    looked: list[int] = []
    inner = asof_search.Best.offer

    def counting(self: asof_search.Best, offer: asof_search.Offer) -> None:
        looked.append(offer.first)
        inner(self, offer)

    monkeypatch.setattr(asof_search.Best, "offer", counting)
    view = View(
        name="v",
        source=Files(paths=(str(tmp_path / "*.parquet"),)),
        keys={"k": "k"},
        timestamp="ts",
        features={"x": "x"},
    )

    def found(*keys: int) -> object:
        moments = pa.array([BEGAN + timedelta(hours=4)] * len(keys), STAMP)
        return join(pa.table({"k": keys, "event_timestamp": moments}), [view])["x"].to_pylist()

    assert found(1, 2) == [9, 10]
    assert looked == [9]
    looked.clear()
    monkeypatch.setattr(asof_index, "ROWS_MAX", 0)
    assert found(3, 1) == [8, 9]
    assert looked == [9, 6]
