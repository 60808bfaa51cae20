"""What the gate fetched is what the scoring reads; and nothing of it is left behind."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from almanac.errors import FeatureError
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from jobs import inputs, quarantine
from jobs.pieces import cut, pieces_of
from jobs.plan import Plan
from jobs.quarantine import Finding
from jobs.score import planned_version
from pipelines.weather import weather
from tests.generations import bucket_pipeline
from tests.streams import register_model

USERS = bucket_pipeline("users")
PLAN = Plan(
    pipeline="users",
    generation=7,
    token=1,
    cutoff="2026-03-01T12:00:00Z",
    as_of="2026-03-01T12:00:00Z",
    model="weather-v1",
    shards=[[0, 1], [2, 3]],
)


class Fetched:
    """Stands in for Feast: two users a partition, and how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(
        self, pipeline: Pipeline, settings: Settings, plan: Plan, partitions: Sequence[int], members: object = None
    ) -> pa.Table:
        self.asked.append(list(partitions))
        rows = [(f"u{part}{n}", float(part), part) for part in partitions for n in range(2)]
        columns = [list(column) for column in zip(*rows, strict=True)]
        kinds = (pa.string(), pa.float32(), pa.int32())
        return pa.table(
            [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)],
            names=["user_id", "spend", inputs.PARTITION],
        )


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    found = Fetched()
    monkeypatch.setattr(inputs, "fetch", found)
    monkeypatch.setattr("jobs.members.Members.count", lambda members, partitions: 2 * len(partitions))
    return found


@pytest.fixture
def at(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path)


def gate(at: Settings, plan: Plan = PLAN, rows_max: int = 100) -> list[pa.Table]:
    return [table for _, table in inputs.gathered(USERS, at, plan, rows_max)]


def features_of(at: Settings, plan: Plan, partitions: list[int]) -> pa.Table:
    ((_, table),) = pieces_of(USERS, at, plan, partitions, rows_max=100)
    return table


def kept(at: Settings) -> list[Path]:
    return sorted((at.state_dir / "runs").rglob("*.arrow"))


def test_the_scoring_asks_nobody_for_what_the_gate_kept(at: Settings, fetched: Fetched) -> None:
    (table,) = gate(at)
    assert (table.num_rows, fetched.asked) == (8, [[0, 1, 2, 3]])
    found = features_of(at, PLAN, [3])  # 2 was quarantined, say
    assert found.to_pydict() == {"user_id": ["u30", "u31"], "spend": [3.0, 3.0], inputs.PARTITION: [3, 3]}
    assert len(fetched.asked) == 1


def test_tables_are_given_out_a_limit_at_a_time(at: Settings, fetched: Fetched) -> None:
    assert [table.num_rows for table in gate(at, rows_max=4)] == [4, 4]


def test_shards_are_fetched_together_as_far_as_there_is_room(at: Settings, fetched: Fetched) -> None:
    plan = replace(PLAN, shards=[[0], [1], [2, 3], [4], [5]])
    assert [table.num_rows for table in gate(at, plan, rows_max=8)] == [8, 4]
    assert fetched.asked == [[0, 1, 2, 3], [4, 5]]
    for part in range(6):
        assert features_of(at, plan, [part])["spend"].to_pylist() == [float(part)] * 2
    assert len(fetched.asked) == 2


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, lasting: bool) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("features.files._replacing", refused)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_no_features_and_stops_nothing(at: Settings, fetched: Fetched) -> None:
    (table,) = gate(at)
    assert (table.num_rows, kept(at)) == (8, [])
    assert features_of(at, PLAN, [3]).num_rows == 2
    assert fetched.asked == [[0, 1, 2, 3], [3]]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_no_report_of_a_gate_and_stops_nothing(at: Settings) -> None:
    finding = Finding(expectation="spend < 1", result={}, rows={0: [{"user_id": "u00", "spend": 2.0}]})
    assert quarantine.keep(USERS, at, PLAN, "features", [finding]) == ""


def test_what_was_planned_is_scored_though_the_declaration_names_another_model(tmp_path: Path) -> None:
    at = load_settings(state_dir=tmp_path)
    planned = register_model(at, replace(weather, model="planned@champion"), 1.0)
    register_model(at, replace(weather, model="other@champion"), 2.0)
    found = planned_version(at, replace(PLAN, model=planned))
    assert found.id == planned == "planned-v1"


def test_another_attempt_another_as_of_or_a_damaged_file_is_fetched(at: Settings, fetched: Fetched) -> None:
    gate(at)
    for other in (replace(PLAN, token=2), replace(PLAN, as_of="2026-03-01T11:00:00Z"), replace(PLAN, generation=8)):
        features_of(at, other, [0])
    assert fetched.asked[1:] == [[0], [0], [0]]
    for path in kept(at):
        path.write_bytes(path.read_bytes()[:100])
    assert features_of(at, PLAN, [0]).num_rows == 2
    assert fetched.asked[4:] == [[0]]


def test_features_that_other_code_fetched_are_fetched_again(
    at: Settings, fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate(at)
    monkeypatch.setattr(inputs, "code_digest", lambda pipeline: "of a join that was repaired meanwhile")
    assert features_of(at, PLAN, [0]).num_rows == 2
    assert fetched.asked[1:] == [[0]]


def test_views_that_changed_under_a_run_stop_it_before_anything_is_read(
    at: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.identity.definitions_digest", lambda pipeline, settings: "as they are now")
    monkeypatch.setattr("features.recent.known_at", lambda *asked: pytest.fail("features were read"))
    with pytest.raises(FeatureError, match=r"changed since generation 7 was planned.*clear the run from plan"):
        inputs.fetch(USERS, at, replace(PLAN, definitions="as they were"), [0])


def test_a_run_keeps_no_more_than_its_limit(at: Settings, fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "KEPT_BYTES_MAX", 10)
    gate(at)
    assert kept(at) == []
    assert features_of(at, PLAN, [0, 1]).num_rows == 4


def test_a_run_forgets_what_its_attempts_kept_and_old_leftovers_go(at: Settings, fetched: Fetched) -> None:
    gate(at)
    gate(at, replace(PLAN, token=2))
    gate(at, replace(PLAN, generation=71))
    inputs.forget(at, PLAN)
    assert {path.parent.name for path in kept(at)} == {"g71-1"}
    long_ago = time.time() - inputs.LEFT_SECONDS_MAX - 60
    os.utime(at.state_dir / "runs" / "users" / "g71-1", (long_ago, long_ago))
    gate(at, replace(PLAN, generation=72))
    assert {path.parent.name for path in kept(at)} == {"g72-1"}


def test_a_shard_comes_in_pieces_whether_it_was_kept_or_not(at: Settings, fetched: Fetched) -> None:
    for _ in range(2):
        found = list(pieces_of(USERS, at, PLAN, [2, 3], rows_max=3))
        assert [about for about, _ in found] == [[2], [3]]
        assert [table["user_id"].to_pylist() for _, table in found] == [["u20", "u21"], ["u30", "u31"]]
        gate(at)  # from now on they are kept
        fetched.asked.clear()
    assert fetched.asked == []


def test_pieces_leave_out_what_nobody_asked_for_and_name_partitions_without_rows() -> None:
    table = pa.table({"spend": [1.0, 2.0, 3.0], inputs.PARTITION: pa.array([0, 2, 2], pa.int32())})
    found = [(about, piece["spend"].to_pylist()) for about, piece in cut(table, [0, 1, 2], 2)]
    assert found == [([0, 1], [1.0]), ([2], [2.0, 3.0])]
    assert [(about, piece.num_rows) for about, piece in cut(table, [1], 2)] == [([1], 0)]
