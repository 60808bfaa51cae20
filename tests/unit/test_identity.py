"""What features are read from, as one digest: it moves with definitions, files and code, and is empty where unsure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.code.following import code_of
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from features import identity
from features.identity import READING, definitions_digest, source_digest
from tests.generations import grid_pipeline

MOMENT = datetime(2026, 3, 10, 2, tzinfo=UTC)
ELSEWHERE = "/nowhere/rows/*.parquet"
FEAST = """\
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Float64, Int64

cell = Entity(name="place", join_keys=["cell_id"], value_type=ValueType.INT64, description="Where.")
view = FeatureView(
    name="seen", entities=[cell], ttl=timedelta(hours=6), description="What.",
    schema=[Field(name="t2m", dtype=Float32), Field(name="rain", dtype=Float32)],
    source=FileSource(name="seen_file", path="{path}", timestamp_field="event_timestamp"),
)
seen_v1 = FeatureService(name="seen_v1", features=[view])
"""
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

Ask = Callable[..., tuple[Pipeline, Settings]]


@pytest.fixture
def world(tmp_path: Path) -> Ask:
    """Definitions, by what is replaced in their text, in a registry of their own; and their pipeline."""

    def defined(path: str = "", **changes: str) -> tuple[Pipeline, Settings]:
        text = FEAST.format(path=path or tmp_path / "rows" / "*.parquet")
        for before, after in changes.items():
            assert before in text
            text = text.replace(before, after)
        file = tmp_path / "ours.py"
        file.write_text(text)
        settings = load_settings(
            state_dir=tmp_path / f"state-{time.monotonic_ns()}", postgres_url=None, redis_url=None,
            feature_repo=str(file),
        )  # fmt: skip
        return replace(grid_pipeline("seen"), entity="cell_id", features="seen_v1", source=None), settings

    return defined


def write(path: Path, value: float, *, age: float = 60) -> None:
    """One row, in a file that was changed so many seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = pa.array([MOMENT - timedelta(hours=1)], pa.timestamp("us", tz="UTC"))
    columns = {"cell_id": pa.array([1], pa.int64()), "event_timestamp": moments}
    pq.write_table(pa.table({**columns, "t2m": pa.array([value], pa.float32())}), path)
    then = time.time() - age
    os.utime(path, (then, then))


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time at which a file was made cannot be set back; here it counts as settled at once."""
    monkeypatch.setattr(identity, "SETTLED_SECONDS", -1.0)


_as_defined: list[str] = []


def digest_as_defined(world: Ask) -> str:
    """Of the definitions as they stand above, whose files no test reads."""
    _as_defined[:] = _as_defined or [definitions_digest(*world(path=ELSEWHERE))]
    return _as_defined[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"ValueType.INT64": "ValueType.INT32"},
        {'Field(name="t2m", dtype=Float32)': 'Field(name="t2m", dtype=Float64)'},
        {"hours=6": "hours=7"},
        {'timestamp_field="event_timestamp"': 'timestamp_field="t2m"'},
        {'timestamp_field="event_timestamp"': 'timestamp_field="event_timestamp", field_mapping={"t": "t2m"}'},
        {'timestamp_field="event_timestamp"': 'timestamp_field="event_timestamp", created_timestamp_column="rain"'},
        {"features=[view]": 'features=[view[["t2m"]]]'},
        {"features=[view]": 'features=[view.with_name("other")]'},
        {"rows/": "others/"},
    ],
    ids=lambda changes: next(iter(changes.values()))[:40],
)
def test_whatever_changes_features_moves_the_definitions_digest(world: Ask, changes: dict[str, str]) -> None:
    assert definitions_digest(*world(path=ELSEWHERE, **changes)) != digest_as_defined(world)


def test_what_is_said_to_people_does_not(world: Ask) -> None:
    said = world(
        **{'"What."': '"What is seen."', '"Where."': '"Which cell."', "ttl=": 'tags={"a": "b"}, owner="us", ttl='}
    )
    assert definitions_digest(*said) == definitions_digest(*world())


def test_a_repaired_join_moves_the_source_digest(world: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "rows" / "a.parquet", 1.0)
    here = world()
    before = source_digest(*here, MOMENT, MOMENT)
    assert before
    assert source_digest(*here, MOMENT, MOMENT) == before
    code = code_of(READING)
    for module in ("features.asof.search", "features.offline.retrieval", "features.packed.lists"):
        repaired = replace(code, modules={**code.modules, module: "repaired"})
        monkeypatch.setattr(identity, "code_of", lambda roots, repaired=repaired: repaired)
        assert source_digest(*here, MOMENT, MOMENT) != before, module


@pytest.mark.parametrize("place", ["rows/a.parquet", "rows/deeper/a.parquet"])
def test_a_folder_s_files_count_wherever_they_lie_in_it(world: Ask, tmp_path: Path, place: str) -> None:
    (tmp_path / "rows").mkdir()
    here = world(path=str(tmp_path / "rows"))
    write(tmp_path / place, 1.0)
    before = source_digest(*here, MOMENT, MOMENT)
    write(tmp_path / place, 2.0, age=30)
    after = source_digest(*here, MOMENT, MOMENT)
    assert before
    assert after
    assert after != before


def test_events_that_are_archived_beside_the_files_count(world: Ask, tmp_path: Path) -> None:
    write(tmp_path / "rows" / "a.parquet", 1.0)
    here = world()
    before = source_digest(*here, MOMENT, MOMENT)
    write(tmp_path / "rows" / "archive" / "2026-03-10T01" / "topic.parquet", 2.0)
    assert source_digest(*here, MOMENT, MOMENT) not in (before, "")


def test_nothing_can_be_told_of_a_source_without_files_or_elsewhere(world: Ask) -> None:
    assert source_digest(*world(), MOMENT, MOMENT) == ""
    assert source_digest(*world(path="s3://bucket/rows"), MOMENT, MOMENT) == ""
