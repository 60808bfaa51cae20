"""What code may load by a name that it puts together: then all counts that such a name can mean.

Pure: from what a module's compiled code names to packages of which every module counts, and patterns of files.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from almanac.code.compiled import Compiled

IMPORTING = frozenset({"import_module", "__import__", "run_module", "iter_modules", "walk_packages", "resolve_name"})
"""Functions of Python that take or give a module's name."""
LOADING = IMPORTING | {"spec_from_file_location", "exec_module", "load_module", "run_path", "exec"}
"""Those, and functions that run code of a file."""
LISTING = frozenset({"glob", "rglob", "iglob", "iterdir", "listdir", "scandir", "walk"})
"""Functions of Python that list what is in a folder."""
OWN_PLACES = frozenset({"__file__", "__path__", "__package__", "__spec__"})
"""Where a module is, as it may know itself."""
GET_DATA, GET_DATA_OF = "get_data", frozenset({"pkgutil", "pkgutil.get_data"})
RESOURCES = frozenset({"importlib.resources", "importlib_resources"})
"""Modules that read a file of a package by the package's name, as `get_data` does."""
ENTRY_POINTS = frozenset({"entry_points", "iter_entry_points"})
"""Functions that give what distributions offer under the name of a group."""
OWN_NAME = "__name__"
TELLING = LOADING | LISTING | OWN_PLACES | ENTRY_POINTS | {GET_DATA, OWN_NAME}
"""The names of which it matters whether code uses them."""

_PLACEHOLDER = re.compile(r"[%{].*", re.DOTALL)
_SUFFIX = re.compile(r"\.[A-Za-z0-9_.]{1,20}")
_TEXT = re.compile(r"[A-Za-z_][\w.]*\.?")


def prefixes(code: Compiled, package: str) -> set[str]:
    """Beginnings of names, each with a point at its end, of which every module counts; some may name no package.

    Args:
        code: of one module.
        package: that it is in; empty if in none.
    """
    if not code.names & LOADING:
        return set()
    begun = {_PLACEHOLDER.sub("", text) for text in code.texts if "%" in text or "{" in text}
    found = {text for text in begun if text.endswith(".") and _TEXT.fullmatch(text)}
    apart = "." in code.texts and bool(code.names & IMPORTING)  # a name's parts are put together with points
    if apart:
        found |= {f"{text}." for text in code.texts if _TEXT.fullmatch(text) and not text.endswith(".")}
    if code.names & OWN_PLACES or (apart and OWN_NAME in code.names):
        found |= {f"{package}."} if package else set()
    if "__path__" in code.names:
        found |= {f"{name}." for name, level, _ in code.imports if name and not level}
    return found


def reads_packages(code: Compiled) -> bool:
    """Whether code may read files of a package that it names by a text."""
    imported = {name for name, _, _ in code.imports}
    imported |= {f"{name}.{one}" for name, _, names in code.imports for one in names}
    return bool(imported & RESOURCES) or (GET_DATA in code.names and not imported.isdisjoint(GET_DATA_OF))


def is_listed(code: Compiled, name: str) -> bool:
    """Whether code that finds files may mean one of this name, by a pattern or by its end.

    Code that asks for no place of its own may have the folder from another module: then a file counts that is no code.
    """
    own = bool(code.names & (OWN_PLACES - {"__package__"})) or reads_packages(code)
    if not own and name.endswith(".py"):
        return False
    if any(name.endswith(text) and name != text for text in code.texts if _SUFFIX.fullmatch(text)):
        return True
    patterns = [text.rpartition("/")[2] for text in code.texts if "*" in text or "?" in text]
    patterns = [pattern for pattern in patterns if own or _SUFFIX.search(pattern)]
    if not code.names & LISTING or not (own or patterns):
        return False
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
