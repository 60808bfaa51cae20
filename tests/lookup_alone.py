"""Run the lookup where Python finds no package but those of its own lock: `python -m tests.lookup_alone a,b,c`.

The tests start it in this way, so that whatever they ask of it is answered with the packages of its image.
"""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lookup.txt"


def plain(name: str) -> str:
    """A distribution's name as PyPA's specification of names compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> frozenset[str]:
    """Names of the distributions in the lookup's lock."""
    return frozenset(plain(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", LOCK.read_text(), flags=re.M))


@cache
def others() -> frozenset[str]:
    """Top-level modules of distributions that the lookup's image does not have."""
    there = {*locked(), "almanac"}
    owners = importlib.metadata.packages_distributions()
    return frozenset(module for module, names in owners.items() if not there & {plain(name) for name in names})


class Refusing:
    """A finder that says of other distributions' modules that they are not there."""

    def __init__(self, absent: frozenset[str]) -> None:
        self._absent = absent

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise for what is absent, leave the rest to the finders behind."""
        if name.partition(".")[0] in self._absent:
            raise ModuleNotFoundError(f"No module named {name!r} (the lookup's image has none)", name=name)
        return None


if __name__ == "__main__":
    absent = frozenset(sys.argv.pop(1).split(","))  # the tests know them; looking costs a third of a second
    for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
        del sys.modules[name]  # what this interpreter imports as it starts
    sys.meta_path.insert(0, Refusing(absent))
    runpy.run_module("serving_cache.lookup", run_name="__main__", alter_sys=True)
