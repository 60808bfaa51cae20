"""`almanac down --purge` removes what Almanac keeps in the state directory, all of it and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

from almanac import settings as settings_module
from almanac.settings import PROJECT_ROOT
from almanac.stack import places as places_module
from almanac.stack.places import PURGED, Places
from almanac.stack.status import FEATURE_PAGES


def test_a_purge_removes_only_what_is_ours(tmp_path: Path) -> None:
    places = Places.of(tmp_path)
    places.make()
    (tmp_path / "notes.txt").write_text("mine")
    places.purge()
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_a_purge_leaves_no_quarantine_no_reports_no_runs_and_nothing_of_writers_that_were_killed(
    tmp_path: Path,
) -> None:
    places = Places.of(tmp_path / "state")
    places.make()
    for name in ("quarantine/weather/g1.html", "reports/features/weather.html", "runs/weather/g1-2/a.arrow",
                 ".backup-x1/models/m", ".secrets.json.12.ab", ".ports.json.12.ab", ".state.json.1.a"):  # fmt: skip
        path = places.state_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("data")
    places.purge()
    assert not places.state_dir.exists()


def test_a_purge_removes_whatever_any_module_keeps_in_the_state_directory() -> None:
    """Found in the code: each path that is built on the state directory begins with a name that is purged."""
    shared = {"servers.py"}  # servers for tests, whose folders pytest removes
    found: dict[str, str] = {}
    for package in ("almanac", "dags", "features", "jobs", "pipelines", "serving_cache", "streaming"):
        for path in (PROJECT_ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _is_state(node.left):
                    found[f"{path.name}: {ast.unparse(node.right)}"] = ast.unparse(node.right)
    known = {**vars(settings_module), **vars(places_module), "FEATURE_PAGES": FEATURE_PAGES}
    names = {
        at: str(known.get(text, text.strip("'"))).partition("/")[0]
        for at, text in found.items()
        if at.partition(":")[0] not in shared and text not in ("name", "folder")  # those of PURGED, of FOLDERS
    }
    assert {"inputs.py: RUNS", "quarantine.py: QUARANTINE", "page.py: FEATURE_PAGES"} <= names.keys()
    assert {at: name for at, name in names.items() if name not in PURGED} == {}


def _is_state(node: ast.expr) -> bool:
    return ast.unparse(node).rpartition(".")[2] == "state_dir"
