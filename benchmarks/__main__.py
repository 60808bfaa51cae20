"""List the benchmarks, or run one: `python -m benchmarks [NAME [OPTIONS …]]`."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def benchmarks() -> dict[str, str]:
    """What each benchmark measures, by name: the modules of this folder that can be run."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if "main" in names and not path.stem.startswith("_"):
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def main() -> int:
    """Run the named benchmark in this process; returns the exit code."""
    found = benchmarks()
    if len(sys.argv) == 1:
        print("make bench NAME=<name> [ARGS=--quick | --profile | --help]")
        for name, line in found.items():
            print(f"  {name:<10} {line}")
        return 0
    name = sys.argv[1].replace("-", "_")
    if name not in found:
        print(f"benchmark: there is none named {name!r}: choose one of {', '.join(found)}", file=sys.stderr)
        return 2
    sys.argv = [f"benchmarks.{name}", *sys.argv[2:]]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
