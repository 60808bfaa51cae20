"""What a fresh computation stands on, without servers: models, writing back, decoding rows and plans."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import AlmanacError, FeatureError, Unavailable
from almanac.pipeline import Pipeline
from features.online_reading import Reader, decode_plan
from serving_cache.lookup.models import Models
from serving_cache.lookup.write_back import WriteBack
from serving_cache.records import OverlayRecord
from tests.fresh import packed, plan_for, register_model
from tests.generations import grid_pipeline, overlay_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PIPELINE = grid_pipeline("small")
READER = Reader(plan_for(PIPELINE))


def load(root: Path, pipeline: Pipeline, model: str | None, times: int = 1) -> list[str]:
    """What each of several requests for a model is told: its id, or why there is none."""

    async def run() -> list[str]:
        models = Models(root)

        async def one() -> str:
            try:
                return (await models.get(pipeline, model)).model_id
            except AlmanacError as error:
                return str(error)

        try:
            return [await one() for _ in range(times)]
        finally:
            await models.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda version: (version / "model.onnx").write_bytes(b"x"), "model.onnx"),
        (lambda version: (version / "model.onnx").unlink(), "cannot be read"),
        (lambda version: (version / "manifest.json").write_text("{}"), "is not a model's manifest"),
        (lambda version: shutil.rmtree(version), "weather"),
    ],
    ids=["altered", "no file", "no manifest", "no version"],
)
def test_a_bad_model_is_refused_and_tried_again_later(
    tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    good = register_model(tmp_path, PIPELINE)
    harm(good.path)
    first, second = load(tmp_path, PIPELINE, good.id, times=2)
    assert reason in first
    assert str(tmp_path) not in first
    assert second == first  # remembered for a moment, so that requests do not queue for the disk


def test_the_alias_names_the_model_where_no_generation_does(tmp_path: Path) -> None:
    assert load(tmp_path, PIPELINE, None) == ["no model weather@champion is registered: run `almanac train small`"]
    register_model(tmp_path, PIPELINE)
    assert load(tmp_path, PIPELINE, None) == ["weather-v1"]
    register_model(tmp_path, PIPELINE)
    assert load(tmp_path, PIPELINE, None) == ["weather-v2"]
    assert load(tmp_path, PIPELINE, "weather-v1", times=2) == ["weather-v1"] * 2
    assert "is not a version of the registry" in load(tmp_path, PIPELINE, "somebody's model")[0]


class Store:
    """A store that takes overlays, or fails."""

    def __init__(self, error: AlmanacError | None = None) -> None:
        self.error = error
        self.calls: list[list[str]] = []

    def put_overlays(self, pipeline: str, records: Sequence[OverlayRecord]) -> int:
        if self.error is not None:
            raise self.error
        self.calls.append([record.entity for record in records])
        return len(records)

    def close(self) -> None:
        pass


def written(record: Store, copy: Store, offers: list[list[OverlayRecord]]) -> None:
    async def run() -> None:
        back = WriteBack(lambda: (record, copy))
        for offer in offers:
            back.offer("small", offer)
            if back._task is not None:
                await back._task
        await back.close()

    asyncio.run(run())


def test_each_prediction_is_written_once_to_the_record_and_then_its_copy() -> None:
    record, copy = Store(), Store()
    one, two, newer = overlay_of("1", NOW, 0), overlay_of("2", NOW, 0), overlay_of("1", NOW + timedelta(minutes=1), 0)
    written(record, copy, [[one, two], [one], [one, two], [newer]])
    assert record.calls == copy.calls == [["1", "2"], ["1"]]


def test_without_the_record_its_copy_is_not_written_and_the_next_computation_tries_again() -> None:
    record, copy = Store(Unavailable("Postgres did not answer")), Store()
    one = overlay_of("1", NOW, 0)
    written(record, copy, [[one], [one]])
    assert copy.calls == []
    record.error = None
    written(record, copy, [[one]])
    assert record.calls == copy.calls == [["1"]]


def test_without_its_copy_the_record_is_written() -> None:
    record, copy = Store(), Store(Unavailable("Redis did not answer"))
    written(record, copy, [[overlay_of("1", NOW, 0)], [overlay_of("1", NOW, 0)]])
    assert record.calls == [["1"]]


@given(st.lists(st.tuples(st.floats(width=32), st.booleans()), min_size=1, max_size=40))
def test_numbers_come_back_bit_for_bit_and_nulls_as_nan(cells: list[tuple[float, bool]]) -> None:
    observed, before, position = READER.layouts
    values = [packed(observed, NOW, None if null else number) for number, null in cells]
    values += [packed(before, NOW, 2.0)] * len(cells) + [packed(position, NOW, 50.0)] * len(cells)
    found = READER.decode(values, NOW).columns["t2m"]
    expected = np.array([np.nan if null else np.float32(number) for number, null in cells], dtype=np.float64)
    np.testing.assert_array_equal(found, expected)


@given(st.lists(st.none() | st.binary(max_size=24), min_size=3, max_size=3))
def test_any_bytes_are_read_or_refused_in_one_line(damaged: list[bytes | None]) -> None:
    told = ""
    try:
        READER.decode(damaged, NOW)
    except FeatureError as error:
        told = str(error)
    assert "\n" not in told


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"version":1,"layout":"feast-redis-3"}', b'{"version":9,"layout":"x"}'],
)
def test_a_plan_that_cannot_be_read_says_what_to_do(data: bytes) -> None:
    with pytest.raises(FeatureError, match=r"the reading plan .*: run `almanac feast apply`"):
        decode_plan(data)


def test_a_service_that_no_event_pushes_speaks_from_its_oldest_changing_view() -> None:
    plan = plan_for(PIPELINE)
    still = msgspec.structs.replace(
        plan, views=tuple(msgspec.structs.replace(view, observed=False) for view in plan.views)
    )
    ages = (timedelta(0), timedelta(hours=2), timedelta(days=900))
    row = [packed(layout, NOW - age, 1.0) for layout, age in zip(READER.layouts, ages, strict=True)]
    assert READER.decode(row, NOW).as_of == (NOW,)
    assert Reader(still).decode(row, NOW).as_of == (NOW - timedelta(hours=2),)
    missing = [row[0], None, row[2]]
    assert Reader(still).decode(missing, NOW).as_of == (None,)  # how old the missing one is nobody knows
