"""The reasons for a refusal, derived from code: every place of some modules that raises one."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class Raises:
    """The `raise` statements of some modules, named by module, function and number within it.

    Args:
        modules: what refuses.
        errors: names of what is raised, called or as a function that makes one; a bare `raise` is no reason.
    """

    def __init__(self, modules: Iterable[ModuleType], errors: Iterable[str]) -> None:
        self._places: dict[str, list[tuple[int, int, str]]] = {}
        wanted = set(errors)
        for module in modules:
            path = str(module.__file__)
            tree = ast.parse(Path(path).read_text())
            for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
                found = [node for node in ast.walk(function) if isinstance(node, ast.Raise) and _name(node) in wanted]
                for number, node in enumerate(sorted(found, key=lambda one: one.lineno)):
                    name = f"{Path(path).stem}.{function.name}#{number + 1}"
                    self._places.setdefault(path, []).append((node.lineno, node.end_lineno or node.lineno, name))

    @property
    def names(self) -> frozenset[str]:
        """Every reason."""
        return frozenset(name for places in self._places.values() for _, _, name in places)

    def of(self, error: BaseException) -> str:
        """The reason of an error that was caught; of one that comes from elsewhere, its class and text."""
        reason, at = "", error.__traceback__
        while at is not None:
            for first, last, name in self._places.get(at.tb_frame.f_code.co_filename, ()):
                if first <= at.tb_lineno <= last:
                    reason = name
            at = at.tb_next
        return reason or f"{type(error).__name__}: {str(error)[:80]}"


def _name(node: ast.Raise) -> str:
    called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return called.id if isinstance(called, ast.Name) else ""
