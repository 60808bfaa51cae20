"""Feast's own stores beside ours: point-in-time joins, materialization, online reads, the memory of online features.

Peers are Feast's DuckDB and Redis stores of the same version, in this process, on the same core and the same servers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.features_parts import Bench, Part
from benchmarks.measuring import Cores, finish, machine, on_core, options, run, say

ROUNDS = 3
MODULES = ("features_historical", "features_materialize", "features_online", "features_sdk")


def all_parts() -> list[Part]:
    """The parts of all modules, in the order of the JSON line."""
    named = [f"benchmarks.{module}" for module in MODULES]
    return [part for module in named if find_spec(module) for part in import_module(module).PARTS]


def chosen(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """The parts that make at least one of the named objects; without names all."""
    return [part for part in parts if not names or set(names) & set(part.names)]


def main() -> None:
    """Measure the parts that were asked for, or profile them, and print the line."""
    cores = Cores.choose()
    with ExitStack() as stack:
        stack.enter_context(on_core(cores.measured))  # before any library starts its threads
        parts = all_parts()
        asked = options(__doc__, rounds=ROUNDS, parts=[name for part in parts for name in part.names])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="almanac-bench-")))
        bench = Bench(asked=asked, cores=cores, folder=folder, _stack=stack)
        objects: dict[str, Any] = {}
        for part in chosen(parts, asked.parts):
            say(f"== {', '.join(part.names)}")
            objects.update(part.run(bench))
        if not asked.profile:
            finish({"name": "features", "unit": "rows/s", **objects, "rounds": asked.rounds, **machine(cores)})


if __name__ == "__main__":
    run(main)
