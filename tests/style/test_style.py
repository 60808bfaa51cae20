"""The style limits, the linter, the type checker and the import rules, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["almanac", "jobs", "streaming", "serving_cache", "features", "pipelines", "dags", "benchmarks"]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
PARAMETERS_MAX = 7
CHECK_SECONDS_MAX = 280

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def own_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of the functions inside it (a DAG's tasks are such)."""
    inner = [n for n in ast.walk(node) if n is not node and isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    nested = {
        line
        for child in inner
        for line in range(min([child.lineno, *(d.lineno for d in child.decorator_list)]), (child.end_lineno or 0) + 1)
    }
    return sum(1 for line in range(node.lineno, (node.end_lineno or 0) + 1) if line not in nested)


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_size_limits(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES_MAX, f"{path.name} has {lines} lines: split it by noun"
    for node in functions(path):
        assert own_lines(node) <= FUNCTION_LINES_MAX, f"{path.name}:{node.lineno} {node.name} is too long: split it"
        if path in SOURCES:
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            named = [a for a in arguments if a.arg not in ("self", "cls")]
            # A command's parameters are its options, one each: typer reads them off the function.
            command = "typer.Option" in ast.unparse(node.args) or "typer.Argument" in ast.unparse(node.args)
            # And a method that overrides another's has that one's, as ruff sees it too.
            overrides = any(isinstance(d, ast.Name) and d.id == "override" for d in node.decorator_list)
            assert command or overrides or len(named) <= PARAMETERS_MAX, (
                f"{path.name}:{node.lineno} {node.name} takes too many"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} says nothing of its purpose"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_and_no_shell(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "cloudpickle", "joblib", "dill"} & {name.split(".")[0] for name in names}
        if isinstance(node, ast.keyword) and node.arg == "shell":
            assert ast.unparse(node.value) == "False"


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ruff", "check", "--no-cache", "."],
        ["-m", "ruff", "format", "--no-cache", "--check", "."],
        ["-m", "mypy"],
        ["-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
    ],
    ids=["ruff-check", "ruff-format", "mypy", "import-rules"],
)
def test_checks_pass(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=CHECK_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_no_two_test_files_have_one_name() -> None:
    """Two would be one module for pytest, and the second is not run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == []
