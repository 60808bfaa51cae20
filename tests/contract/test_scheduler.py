"""Airflow's scheduler imports beforehand what tasks need: all of it, and nothing that is not there."""

from __future__ import annotations

import ast
import importlib.util

from dags import scheduler
from tests.compose import ROOT


def test_what_the_scheduler_imports_for_its_tasks_is_there() -> None:
    ours = [name for name in scheduler.BEFOREHAND if name.partition(".")[0] in ("almanac", "features", "jobs")]
    assert len(ours) > 5
    for name in ours + [name.partition(".")[0] for name in scheduler.BEFOREHAND]:
        assert importlib.util.find_spec(name) is not None, f"there is no module {name}"
    assert list(scheduler.BEFOREHAND) == sorted(set(scheduler.BEFOREHAND))


def test_the_scheduler_imports_every_job_that_a_task_calls() -> None:
    parsed = [ast.parse(path.read_text()) for path in (ROOT / "dags").glob("almanac_*.py")]
    called = {node.module for file in parsed for node in ast.walk(file) if isinstance(node, ast.ImportFrom)}
    jobs = {module for module in called if module and module.startswith("jobs.")}
    assert len(jobs) > 5
    assert jobs <= set(scheduler.BEFOREHAND)
