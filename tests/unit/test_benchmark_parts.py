"""What the benchmarks share: turns, medians, ratios, stage times; and the peers' locks."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import benchmarks
from benchmarks.load import get, post
from benchmarks.measuring import Stopwatch, finish, in_turn, median, ratio, shares, significant
from benchmarks.orchestration import at_rows, covered
from benchmarks.reference import grid_of_cells, reference_pipeline
from benchmarks.reference_columns import COLUMNS
from benchmarks.rollback import summed_up

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


def test_contenders_take_turns() -> None:
    asked: list[str] = []

    def measure(name: str, rate: float) -> dict[str, float]:
        asked.append(name)
        return {"rate": rate * len(asked)}

    found = in_turn({"a": lambda: measure("a", 1), "b": lambda: measure("b", 10)}, rounds=3)
    assert asked == ["a", "b"] * 3
    assert [result["rate"] for result in found["a"]] == [1, 3, 5]
    assert median(found["a"], "rate") == 3


def test_rollbacks_are_summed_up_over_all_rounds() -> None:
    rounds = [{"visible_ms": list(range(n, 300, 3)), "answer_ms": float(n)} for n in range(3)]
    found = summed_up(rounds)
    assert found == {"median_ms": 149.5, "p99_ms": 297, "max_ms": 299, "floor_ms": 1.0, "rollbacks": 300}


def test_ratios_need_both_sides_and_figures_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(3.0, None) is None
    assert ratio(None, 2.0) is None
    assert significant(12345.678) == 12350  # whole numbers without a point
    assert significant(0.0123456) == 0.01235
    finish({"name": "x", "ours": 1 / 3, "peer": None, "nested": {"floor": [2 / 3, None]}})
    assert json.loads(capsys.readouterr().out) == {"name": "x", "ours": 0.3333, "nested": {"floor": [0.6667, None]}}


def test_time_inside_another_stage_counts_once() -> None:
    class Work:
        def inner(self) -> None:
            time.sleep(0.05)

        def outer(self) -> None:
            self.inner()

    original = Work.outer
    with Stopwatch({"outer": (Work, "outer"), "inner": (Work, "inner")}) as watch:
        Work().outer()
    assert watch.seconds["inner"] >= 0.05
    assert watch.seconds["outer"] < watch.seconds["inner"]
    assert Work.outer is original
    assert sum(stage["share"] for stage in shares(watch.seconds).values()) == pytest.approx(1)


def test_the_reference_is_what_it_says() -> None:
    assert len(COLUMNS) == len(set(COLUMNS)) == 30
    assert len(reference_pipeline(10_000).outputs) == 4
    for cells in (500, 10_000, 200_000):
        assert cells * 0.95 < grid_of_cells(cells).cells <= cells


def test_requests_are_http() -> None:
    assert get("http://h:1", "/a?b=1").startswith(b"GET /a?b=1 HTTP/1.1\r\nHost: h:1\r\n")
    assert post("http://h:1", "/a", b"{}").endswith(b"Content-Length: 2\r\n\r\n{}")


def test_a_large_run_is_reckoned_from_small_ones() -> None:
    ours = {"stages": {"score": 6.0, "plan": 1.0, "publish": 0.5}, "overhead_seconds": 5.0}
    found = at_rows(ours, ours | {"overhead_seconds": 8.0}, 250_000)
    assert (found["shards"], found["turn_seconds"], found["overhead_seconds"]) == (10, 1.0, 5 + 4)
    assert found["seconds"] == 1 + 20 + 120 + 9


def test_what_is_at_work_at_once_counts_once() -> None:
    times = [
        SimpleNamespace(started_at=datetime(2026, 3, 1, 12, 0, second, tzinfo=UTC), seconds=seconds)
        for second, seconds in ((30, 2.0), (0, 10.0), (5, 3.0), (8, 4.0))
    ]
    assert covered(times) == 12 + 2  # type: ignore[arg-type]


def test_every_benchmark_says_what_it_measures() -> None:
    found = benchmarks()
    assert {"batch", "lookup", "stream", "answer"} <= set(found)
    assert all(line.endswith((".", ":")) or len(line) > 20 for line in found.values())
    assert not {"measuring", "reference"} & set(found)


@pytest.mark.parametrize("name", ["feast", "quix"])
def test_peers_are_locked_by_hash_and_name_no_index(name: str) -> None:
    lock = (PEERS / f"{name}.lock.txt").read_text()
    pinned = re.findall(r"^([a-z0-9._-]+(?:\[[a-z,]+\])?)==\S+ \\$", lock, re.M)
    assert len(pinned) > 20
    blocks = re.split(r"^(?=[a-z0-9])", lock, flags=re.M)
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)
    assert "://" not in lock
    wanted = re.findall(r"^([a-z0-9_-]+)", (PEERS / f"{name}.in").read_text(), re.M)
    assert set(wanted) <= {found.split("[")[0] for found in pinned}


def test_a_namespace_is_patched_back_even_after_an_error() -> None:
    def fail() -> None:
        raise ValueError("no")

    work = SimpleNamespace(run=fail)
    with pytest.raises(ValueError, match="no"), Stopwatch({"run": (work, "run")}):
        work.run()
    assert work.run is fail
